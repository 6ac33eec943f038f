# SPDX-License-Identifier: Apache-2.0
"""A folder of somebody's pictures: which file is which image, and all that is wrong with them.

Patterns know {image_id}, {sample} and, for any letters of a sub-folder's name, `*`; `/` leads into sub-folders. Hidden
files and files that do not fit the pattern are passed over.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from sis.config.files import check_template
from sis.data.images import decoding, refuse_rescaled
from sis.data.manifest import stable_hash
from sis.data.picture_header import checked_header, refuse_missing_rows
from sis.errors import SisError, first_of
from sis.sampling.shards import Key

#: A file of more bytes is refused unread: the largest picture that is allowed needs less.
MAX_BYTES = 256_000_000
_KNOWN = {"image_id": "x", "sample": 0}
_BYTES = re.compile(r" \([0-9,]+ bytes\)")


@dataclass(frozen=True)
class Form:
    """A pattern of file names, read.

    parts: a regular expression for each folder; whole: for the path below the folder, with the groups image_id and
    sample; spec: how {sample} is written, None where there is none.
    """

    pattern: str
    parts: tuple[re.Pattern[str], ...]
    whole: re.Pattern[str]
    spec: str | None

    @classmethod
    def of(cls, pattern: str) -> Form:
        """Read a pattern. Raises SisError for unknown fields and for one that leads out of the folder."""
        check_template(pattern, _KNOWN, pattern)
        pattern = unicodedata.normalize("NFC", pattern)
        folders = pattern.split("/")[:-1]
        if pattern.startswith("/") or ".." in pattern.split("/"):
            raise SisError("this pattern leads out of its folder", where=pattern, fix="name the folder itself")
        specs = [spec or "" for _, name, spec, _ in string.Formatter().parse(pattern) if name == "sample"]
        if "{image_id}" not in pattern or "*" in pattern.split("/")[-1]:
            raise SisError("a pattern must contain {image_id}, and `*` in folders only", where=pattern)
        parts = tuple(re.compile(_expression(part, {"image_id", "sample"})) for part in folders if part)
        whole = re.compile(_expression("/".join(p for p in pattern.split("/") if p), set()))
        return cls(pattern, parts, whole, specs[0] if specs else None)

    def key(self, path: str) -> Key | None:
        """The image that a path below the folder names; None where the path does not fit."""
        match = self.whole.fullmatch(unicodedata.normalize("NFC", path))
        if match is None:
            return None
        if self.spec is None:
            return match["image_id"], 0
        number = int(match["sample"])
        return (match["image_id"], number) if format(number, self.spec) == match["sample"] else None

    def name(self, key: Key) -> str:
        """The path of an image below the folder (`*` stays)."""
        return self.pattern.format(image_id=key[0], sample=key[1])


def find_pictures(folder: Path, pattern: str, keys: Sequence[Key]) -> dict[Key, Path]:
    """The file of every image of `keys`.

    Raises SisError for a folder that is none or empty, and for missing, extra and doubled images, each counted and the
    first five named; for links that leave the folder.
    """
    require_folder(folder)
    form, wanted = Form.of(pattern), set(keys)
    if form.spec is None and any(sample for _, sample in keys):
        raise SisError("several samples a map need {sample} in the pattern", where=pattern)
    found: dict[Key, list[str]] = {}
    strange: list[str] = []
    for path in _listed(folder, form):
        key = form.key(path)
        if key is not None and (folder / path).is_file():
            found.setdefault(key, []).append(path)
        else:
            strange.append(path)
    _refuse_names(folder, form, keys, found, strange)
    files = {key: folder / paths[0] for key, paths in found.items() if key in wanted}
    real = folder.resolve()
    outside = [path for path in files.values() if real not in path.resolve().parents]
    faults = _Faults(len(keys))
    for path in outside:
        faults.add(SisError("an image leads out of its folder", fix="put the file itself there"), path)
    faults.refuse(folder)
    return {key: files[key] for key in keys}


def check_pictures(folder: Path, files: dict[Key, Path], size: tuple[int, int]) -> str:
    """Read every file without keeping a pixel; returns one hash of what all of them hold.

    Raises SisError for files that cannot be read, are no whole 8-bit RGB PNG, or not of `size` (height, width); every
    kind of fault is counted and its first five files named.
    """
    faults = _Faults(len(files))
    hashes: list[list[str | int]] = []
    for key, path in files.items():
        try:
            data = _read(path)
            _check(data, path, size)
        except SisError as error:
            faults.add(error, path)
            continue
        hashes.append([*key, hashlib.sha256(data).hexdigest()])
    faults.refuse(folder)
    return stable_hash(sorted(hashes), 64)


def require_folder(folder: Path) -> None:
    """Raise SisError unless `folder` is a folder that can be listed and holds something."""
    if folder.is_file():
        fix = "unpack it and give the folder" if folder.suffix in (".zip", ".tar", ".gz", ".tgz") else "give its folder"
        raise SisError("this is a file, not a folder of images", where=folder, fix=fix)
    if not folder.is_dir():
        raise SisError("no such folder of images", where=folder, fix="check the path")
    if next(_entries(folder), None) is None:
        fix = "it should hold the pictures of every label map"
        raise SisError("the folder of images is empty", where=folder, fix=fix)


def shown(name: str) -> str:
    """A file name for a message: what cannot be printed, and blanks at the ends, are spelt out."""
    return name if name.isprintable() and name == name.strip() else repr(name)


def walk(folder: Path, depth: int) -> Iterator[str]:
    """Paths below `folder` of all files that are not hidden, down to `depth` sub-folders, sorted a folder at a time."""
    entries = sorted(_entries(folder), key=lambda entry: entry.name)
    yield from (entry.name for entry in entries if not entry.is_dir())
    for entry in entries if depth else []:
        if entry.is_dir() and not entry.is_symlink():
            yield from (f"{entry.name}/{path}" for path in walk(folder / entry.name, depth - 1))


@dataclass
class _Faults:
    """What is wrong with which files, for one message."""

    total: int
    files: dict[str, list[Path]] = field(default_factory=dict)
    first: SisError | None = None

    def add(self, error: SisError, path: Path) -> None:
        self.first = self.first or SisError(error.what, where=shown(str(path)), fix=error.fix)
        # How many bytes a file has makes no kind of fault of its own.
        self.files.setdefault(_BYTES.sub("", error.what), []).append(path)

    def refuse(self, folder: Path) -> None:
        """Raise SisError if there is any fault: of one file as it is, of several with numbers and names."""
        kinds = Counter({what: len(paths) for what, paths in self.files.items()}).most_common()
        if self.first is None:
            return
        if sum(count for _, count in kinds) == 1:
            raise self.first
        texts = []
        for what, count in kinds[:3]:
            names = first_of(shown(str(p.relative_to(folder))) for p in self.files[what])
            texts.append(f"{count} of {self.total} images: {what} ({names})")
        rest = sum(count for _, count in kinds[3:])
        texts += [f"{rest} with other faults"] if rest else []
        raise SisError("; ".join(texts), where=folder, fix=self.first.fix if len(kinds) == 1 else "")


def _refuse_names(
    folder: Path, form: Form, keys: Sequence[Key], found: dict[Key, list[str]], strange: list[str]
) -> None:
    wanted = set(keys)
    missing = [form.name(key) for key in keys if key not in found]
    twice = [" = ".join(shown(p) for p in paths) for _, paths in sorted(found.items()) if len(paths) > 1]
    extra = [paths[0] for key, paths in sorted(found.items()) if key not in wanted]
    texts, fixes = [], []
    if missing:
        texts.append(f"{len(missing)} of {len(keys)} images are missing: {first_of(missing)}")
        lower = {unicodedata.normalize("NFC", path).casefold() for path in [*extra, *strange]}
        if lower & {name.casefold() for name in missing}:
            fixes.append("names must agree in upper and lower case")
    if extra:
        texts.append(f"{len(extra)} images belong to no label map: {first_of(map(shown, extra))}")
        ids = {image_id for image_id, _ in keys}
        if any(key[0] in ids for key in found if key not in wanted):
            fixes.append("some are further samples: ask for more samples a map")
    if twice:
        texts.append(f"{len(twice)} images have several files: {first_of(twice)}")
        fixes.append("names that differ in their Unicode form, or below different sub-folders, are one id; keep one")
    if texts:
        raise SisError("; ".join(texts), where=folder, fix="; ".join(fixes))


def _expression(pattern: str, seen: set[str]) -> str:
    """A pattern as a regular expression; fields of `seen` match without a group."""
    text = ""
    for literal, name, _, _ in string.Formatter().parse(pattern):
        text += re.escape(literal).replace(r"\*", "[^/]*")
        if name is None:
            continue
        letters = "[^/]+" if name == "image_id" else "[0-9]+"
        known, named = name in seen, f"(?P<{name}>"
        text += f"(?P={name})" if named in text else letters if known else f"{named}{letters})"
    return text


def _listed(folder: Path, form: Form) -> Iterator[str]:
    """Paths below `folder` of what lies in the folders that the pattern names, sorted."""
    places = [""]
    for part in form.parts:
        inner = [(place, entry) for place in places for entry in _entries(folder / place) if entry.is_dir()]
        fits = [(p, e.name) for p, e in inner if part.fullmatch(unicodedata.normalize("NFC", e.name))]
        places = sorted(f"{place}{name}/" for place, name in fits)
    for place in places:
        yield from sorted(f"{place}{entry.name}" for entry in _entries(folder / place))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What lies in a folder and is not hidden."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if entry.name[0] != ".")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SisError(f"cannot list this folder: {reason}", where=folder, fix="check its permissions") from error


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SisError(f"over {MAX_BYTES // 1_000_000} MB, no picture that is allowed has so many", where=path)
        return path.read_bytes()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SisError(f"cannot read this file: {reason}", where=path, fix="check its permissions") from error


def _check(data: bytes, path: Path, size: tuple[int, int]) -> None:
    header = checked_header(data, ["PNG"], path)
    with decoding(header, path), Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
        mode = picture.mode
    if mode != "RGB":
        raise SisError(f"PNG of mode {mode}, expected RGB", where=path, fix="write 8-bit RGB")
    refuse_rescaled(header, mode, path)
    if (header.height, header.width) != size:
        found, wanted = f"{header.height}x{header.width}", f"{size[0]}x{size[1]}"
        raise SisError(f"image is {found}, expected {wanted}", where=path, fix="resize it yourself (height x width)")
    refuse_missing_rows(data, path)
