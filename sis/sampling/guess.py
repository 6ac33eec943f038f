# SPDX-License-Identifier: Apache-2.0
"""What a folder's pictures are called, told from a few of them: `{image_id}.png`, `samples/{image_id}_{sample}.png`."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sis.errors import SisError, did_you_mean, first_of
from sis.sampling.pictures import Form, require_folder, shown, walk

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
#: Label maps whose files are looked for, and how deep.
_PROBES, _DEPTH = 20, 2
_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Guess:
    """A pattern, and how many samples of a label map fit it."""

    pattern: str
    samples: int


def guess_pattern(folder: Path, ids: Sequence[str]) -> Guess:
    """The one pattern by which the pictures of `folder` are called after the label maps `ids`.

    Raises SisError for a folder without pictures, and where none or several patterns fit.
    """
    require_folder(folder)
    paths = [unicodedata.normalize("NFC", path) for path in walk(folder, _DEPTH)]
    paths = [path for path in paths if path.lower().endswith(_PICTURES)]
    if not paths:
        raise SisError("no picture in this folder", where=folder, fix="it must hold PNGs called after the label maps")
    probes = sorted(ids)[:: max(1, len(ids) // _PROBES)][:_PROBES]
    named = {image_id: [p for p in paths if _named(p, image_id)] for image_id in probes}
    fits = _fitting(named)
    if not fits:
        example = f"{sorted(ids)[0]}.png" if ids else ""
        fix = f"call them so ({example}), or say how they are called: --pattern"
        near = did_you_mean(Path(paths[0]).stem, ids) if ids else ""
        raise SisError(
            f"no pattern tells which picture belongs to which label map; the first is {shown(paths[0])} "
            f"({near if near.startswith('did') else 'label maps: ' + first_of(sorted(ids), 2)})",
            where=folder, fix=fix,
        )  # fmt: skip
    if len(fits) > 1:
        words = " and ".join(repr(pattern) for pattern in fits[:4])
        raise SisError(f"several patterns fit: {words}", where=folder, fix=f"choose one: --pattern '{fits[0]}'")
    return Guess(fits[0], _samples(Form.of(fits[0]), paths, set(ids)))


def _named(path: str, image_id: str) -> bool:
    """Whether a file or a folder of a path is called after this image: letters or digits beside it make another id."""
    *folders, name = path.split("/")
    return image_id in folders or bool(re.search(rf"(?<![A-Za-z0-9]){re.escape(image_id)}(?![A-Za-z0-9])", name))


def _fitting(named: dict[str, list[str]]) -> list[str]:
    """The patterns that fit files of most probes; the plainest alone where it is `{image_id}.png`."""
    votes: Counter[str] = Counter()
    for image_id, paths in named.items():
        votes.update({pattern for path in paths for pattern in _patterns(path, image_id)})
    most = max(votes.values(), default=0)
    fits = {pattern for pattern, count in votes.items() if count == most}
    if "{image_id}.png" in fits:
        return ["{image_id}.png"]
    counted = {p for p in fits if "{sample" in p and _counts(Form.of(p), named)}
    fits = counted or {p for p in fits if "{sample" not in p}
    # A folder's own name says more than any name.
    fits -= {p for p in fits for other in fits if p != other and _wider(p, other)}
    return sorted(fits, key=lambda p: (len(p), p))


def _counts(form: Form, named: dict[str, list[str]]) -> bool:
    """Whether the numbers that stand for {sample} are 0, 1, 2, ... of every probe: 8 in `leftImg8bit` is none."""
    for image_id, paths in named.items():
        keys = [key for key in map(form.key, paths) if key is not None and key[0] == image_id]
        if {sample for _, sample in keys} != set(range(len({sample for _, sample in keys}))):
            return False
    return True


def _wider(pattern: str, other: str) -> bool:
    """Whether `pattern` is `other` with a folder's name left open."""
    ours, theirs = pattern.split("/"), other.split("/")
    alike = len(ours) == len(theirs) and all(a in (b, "*") for a, b in zip(ours, theirs, strict=True))
    return alike and ours.count("*") > theirs.count("*")


def _patterns(path: str, image_id: str) -> set[str]:
    """Every pattern that this path of an image may be an example of."""
    *folders, name = path.split("/")
    stem, _, end = name.rpartition(".")
    before, found, after = stem.partition(image_id)
    if found:
        head, tail = _literal(before), _literal(after)
        stems = {f"{head}{{image_id}}{tail}", *(f"{head}{{image_id}}{t}" for t in _numbered(after))}
        stems |= {f"{h}{{image_id}}{tail}" for h in _numbered(before)}
    else:
        stems = {_literal(stem), *_numbered(stem)}
    plain = ["{image_id}" if folder == image_id else _literal(folder) for folder in folders]
    places = {tuple(plain)}
    for at, folder in enumerate(folders):
        if folder != image_id:
            places |= {(*plain[:at], other, *plain[at + 1 :]) for other in {"*"} | _numbered(folder)}
    patterns = {"/".join([*place, f"{written}.{end}"]) for place in places for written in stems}
    return {p for p in patterns if p.count("{sample") <= 1 and "{image_id}" in p}


def _numbered(text: str) -> set[str]:
    """`text` with its last number read as the sample's."""
    matches = list(_NUMBER.finditer(text))
    if not matches:
        return set()
    last = matches[-1]
    width = len(last[0])
    field = f"{{sample:0{width}d}}" if width > 1 else "{sample}"
    return {f"{_literal(text[: last.start()])}{field}{_literal(text[last.end() :])}"}


def _literal(text: str) -> str:
    """Text that stands for itself in a pattern."""
    return text.replace("{", "{{").replace("}", "}}")


def _samples(form: Form, paths: list[str], known: set[str]) -> int:
    keys = [key for key in map(form.key, paths) if key is not None and key[0] in known]
    return max((sample for _, sample in keys), default=0) + 1
