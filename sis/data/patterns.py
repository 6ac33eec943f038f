# SPDX-License-Identifier: Apache-2.0
"""Raw files by patterns such as `images/train/*/{id}.png`, none of them outside the dataset's root.

`*` stands for any letters inside one name, `{id}` for the image id (as long as possible), and a final `.*` for .png,
.jpg or .jpeg in any case. Hidden files, folders and names that do not match are passed over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from sis.errors import SisError

_PICTURES = r"\.(?i:png|jpe?g)"


def matches(root: Path, patterns: str | list[str]) -> dict[str, Path]:
    """The files that fit any of the patterns (relative to `root`), by image id, sorted.

    Raises SisError: a folder is missing, a pattern fits no file, two files have one id, a link leaves `root` (which
    may be a link itself) or leads to nothing, something that fits is not a plain file.
    """
    inside = _Fence(root)
    found: dict[str, str] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        *folders, name = [part for part in pattern.split("/") if part]
        fits, any_file = _form(name).fullmatch, False
        for folder in _folders(inside, folders, pattern):
            for entry in _listed(folder):
                match = fits(entry.name)
                if match is None or entry.name[0] == "." or not _is_plain(entry, inside):
                    continue
                any_file, path = True, entry.path
                other = found.setdefault(match[1], path)
                if other is not path and other != path:
                    both = f"{Path(other).relative_to(root)} and {Path(path).relative_to(root)}"
                    raise SisError(f"id {match[1]!r} twice: {both}", where=root, fix="give each pair its own name")
        if not any_file:
            raise SisError(f"no file fits the pattern {pattern!r}", where=root, fix="check the pattern in the card")
    return {image_id: Path(found[image_id]) for image_id in sorted(found)}


def file_below(root: Path, name: str) -> Path:
    """The plain file `name`, relative to `root`. Raises SisError when it is missing or leaves `root`."""
    inside, path = _Fence(root), root / name
    if not path.is_file():
        raise SisError("no such file", where=path, fix="check the data root and the card")
    inside.check(path)
    return path


class _Fence:
    """The real root of a dataset, which no link may leave."""

    def __init__(self, root: Path) -> None:
        real = _real(root)
        if real is None or not real.is_dir():
            raise SisError("no such folder", where=root, fix="say where the data lie: `roots:` in config/config.yaml")
        self.root, self.real = root, real

    def check(self, path: Path) -> None:
        """Raise SisError when a file or folder lies nowhere or outside the root."""
        real = _real(path)
        if real is None:
            raise SisError("this link leads to nothing", where=path)
        if not real.is_relative_to(self.real):
            fix = "put the files below the root; the root itself may be a link"
            raise SisError(f"a link leaves the dataset's root, to {real}", where=path, fix=fix)


def _real(path: Path) -> Path | None:
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError):  # a circle of links is one or the other, by Python's version
        return None


def _form(name: str) -> re.Pattern[str]:
    """A file name's pattern as a regular expression."""
    stem, end = (name.removesuffix(".*"), _PICTURES) if name.endswith(".*") else (name, "")
    parts = [re.escape(p).replace(r"\*", ".*") for p in stem.split("{id}")]
    return re.compile("(.+)".join(parts) + end, re.DOTALL)


def _folders(inside: _Fence, parts: list[str], pattern: str) -> list[Path]:
    """The folders that the leading parts of a pattern name, sorted."""
    folders, sure = [inside.root], True
    for part in parts:
        if "*" in part:
            form, sure = re.compile(re.escape(part).replace(r"\*", ".*"), re.DOTALL), False
            names = [(f, e) for f in folders for e in _listed(f) if form.fullmatch(e.name) and e.name[0] != "."]
            folders = sorted(f / e.name for f, e in names if e.is_dir())
        else:
            if sure and not (folders[0] / part).is_dir():
                fix = "check the data root and the card"
                raise SisError(f"missing folder of the pattern {pattern!r}", where=folders[0] / part, fix=fix)
            folders = [f / part for f in folders if (f / part).is_dir()]
        for folder in folders:
            inside.check(folder)
    return folders


def _listed(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SisError(f"cannot list this folder: {reason}", where=folder, fix="check its permissions") from error


def _is_plain(entry: os.DirEntry[str], inside: _Fence) -> bool:
    """Whether an entry is a file; folders are passed over. Raises SisError for bad links and strange files."""
    if entry.is_symlink():
        inside.check(Path(entry.path))
    if entry.is_file():
        return True
    if not entry.is_dir():
        raise SisError("neither a file nor a folder", where=entry.path)
    return False
