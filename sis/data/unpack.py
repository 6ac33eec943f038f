# SPDX-License-Identifier: Apache-2.0
"""Official archives, unpacked so that nothing leaves the dataset's folder and nothing that lies there is changed."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Literal

from sis.data.atomic import atomic_path, write_bytes_atomic
from sis.data.parallel import threaded_map
from sis.errors import SisError
from sis.progress import Progress

#: More than any archive of the datasets holds; what promises more is taken for a bomb.
MAX_BYTES = 1_000_000_000_000

_UNREADABLE = (
    OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError, NotImplementedError, RuntimeError, ValueError,
)  # fmt: skip
_PIECE, _BLOCK = 1 << 20, 4096
#: Most of the time goes by until a file is safe on the disk, and a disk serves several writers at a time.
_WRITERS, _SMALL = 8, 8 << 20
#: A temporary name adds some letters to a file's own.
_LONGEST_NAME = 220
_LONGEST_CHAIN = 8
_ENCRYPTED = 0x1
_TAR_END = 512
_PLAIN_ZIP_TYPES = (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


@dataclass(frozen=True)
class _Member:
    """One entry of an archive: a link leads to `target`, seen from the folder `base`; `open` gives a file's content."""

    name: str
    size: int
    kind: Literal["file", "folder", "link", "other"]
    open: Callable[[], IO[bytes] | None]
    target: str = ""
    base: str = ""


def unpack(archive: Path, root: Path) -> int:
    """Unpack a zip or tar (plain or compressed) below `root`; returns how many files were written.

    Files that lie there already with the same content are kept, so an interrupted run goes on where it was; each
    file appears whole or not at all. A link to a file of the archive becomes a copy of that file.

    Raises SisError before anything is written: members that are absolute, lead outside `root`, are devices or links
    out of the archive, names that stand twice or differ in case only, files that lie there with other content, and
    more bytes than the disk has left. Also for an archive that turns out damaged; what was finished by then is good.
    """
    with _opened(archive) as members:
        files = _checked(members, archive)
        _refuse_blocked(files, root)
        missing = {name: member for name, member in files.items() if not _lies_there(root / name, member, archive)}
        _check_room(missing, root)
        with Progress(f"unpack {archive.name}", len(files), "files", done=len(files) - len(missing)) as progress:
            large = {name: member for name, member in missing.items() if member.size > _SMALL}
            small = ((root / n, b"".join(_content(m, archive))) for n, m in missing.items() if n not in large)
            for _ in threaded_map(lambda task: write_bytes_atomic(*task), small, _WRITERS, ahead=2 * _WRITERS):
                progress.update(1)
            for name, member in large.items():
                with atomic_path(root / name) as temporary, temporary.open("wb") as copy:
                    copy.writelines(_content(member, archive))
                progress.update(1)
    return len(missing)


@contextmanager
def _opened(archive: Path) -> Iterator[list[_Member]]:
    """The members of an archive in its own order; their contents can be read while it is open."""
    with ExitStack() as stack:
        try:
            with archive.open("rb") as file:
                begin = file.read(4)
            if begin in (b"PK\x03\x04", b"PK\x05\x06"):
                listed = _zip_members(stack.enter_context(zipfile.ZipFile(archive)))
            else:
                listed = _tar_members(stack.enter_context(tarfile.open(archive, "r:*")))
            members, total = [], 0
            for member in listed:
                members.append(member)
                total += member.size
                if total > MAX_BYTES:  # before a compressed tar is read on
                    raise SisError(f"the archive promises more than {MAX_BYTES:,} bytes", where=archive)
        except _UNREADABLE as error:
            fault = f"damaged or unreadable archive, or neither zip nor tar ({_reason(error)})"
            raise SisError(fault, where=archive, fix="fetch it again") from error
        yield members


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        if info.flag_bits & _ENCRYPTED:
            raise SisError("encrypted archive", where=archive.filename, fix="unpack it by hand")
        mode = info.external_attr >> 16
        kind = "folder" if info.is_dir() else "link" if stat.S_ISLNK(mode) else "file"
        if stat.S_IFMT(mode) not in _PLAIN_ZIP_TYPES:
            kind = "other"
        target = archive.read(info).decode("utf-8", "replace") if kind == "link" and info.file_size < _BLOCK else ""
        # The library cuts a name at its first NUL; the name as it was stored tells.
        name = info.orig_filename
        yield _Member(name, info.file_size, kind, partial(archive.open, info), target, _folder_of(name))


def _tar_members(archive: tarfile.TarFile) -> Iterator[_Member]:
    for info in archive:
        kind = (
            "folder"
            if info.isdir()
            else "file"
            if info.isreg()
            else "link"
            if info.issym() or info.islnk()
            else "other"
        )
        # Symbolic links are seen from their own folder, hard links from the archive's top.
        base = _folder_of(info.name) if info.issym() else ""
        yield _Member(info.name, info.size, kind, partial(archive.extractfile, info), info.linkname, base)
    # The library takes a cut file and a torn header for the end; the true end is a block of zeros, and reading on to
    # the end of a compressed file compares its checksum.
    file = archive.fileobj
    if file is None or file.seek(archive.offset) != archive.offset or file.read(_TAR_END) != bytes(_TAR_END):
        raise EOFError("it ends too early")
    file.read(_PIECE)


def _folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def _checked(members: list[_Member], archive: Path) -> dict[str, _Member]:
    """The files of an archive by their path below the root; a link stands with the content of its file."""
    files: dict[str, _Member] = {}
    links: dict[str, _Member] = {}
    folders: set[str] = {""}
    spelled: dict[str, str] = {}
    for member in members:
        name = _safe_name(member.name, archive)
        if member.kind == "other":
            raise SisError(f"{name!r} is neither a file, a folder nor a link", where=archive)
        if member.kind == "folder":
            folders.add(name)
        elif name in files or name in links:
            raise SisError(f"{name!r} stands twice in the archive", where=archive)
        else:
            (links if member.kind == "link" else files)[name] = member
        path = name
        while path and spelled.get(key := unicodedata.normalize("NFC", path).casefold()) != path:
            if key in spelled:
                raise SisError(f"names that differ in case only: {spelled[key]!r} and {path!r}", where=archive)
            spelled[key], path = path, _folder_of(path)
            folders.add(path)
    both = sorted(folders & (files.keys() | links.keys()))
    if both:
        raise SisError(f"{both[0] or '.'!r} is both a file and a folder", where=archive)
    if not files:
        raise SisError("no files in this archive", where=archive)
    return dict(sorted({**files, **{name: _linked(name, links, files, archive) for name in links}}.items()))


def _safe_name(name: str, archive: Path) -> str:
    """A member's path below the root, without `.`; empty for the root itself."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    drive = bool(parts) and parts[0][1:2] == ":"
    if name.startswith("/") or ".." in parts or "\\" in name or drive:
        raise SisError(f"{name!r} leads outside the folder", where=archive, fix="do not trust this archive")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        raise SisError(f"{name!r} has control characters in its name", where=archive)
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in parts):
        raise SisError(f"{name[:60]!r}... is too long a name", where=archive)
    return "/".join(parts)


def _linked(name: str, links: dict[str, _Member], files: dict[str, _Member], archive: Path) -> _Member:
    """The file that a link leads to, over other links if need be."""
    target = name
    for _ in range(_LONGEST_CHAIN):
        if target in links:
            target = _link_target(links[target], archive)
    if target not in files:
        fault = f"the link {name!r} leads to no file of the archive ({links[name].target!r})"
        raise SisError(fault, where=archive, fix="unpack it by hand")
    return files[target]


def _link_target(link: _Member, archive: Path) -> str:
    """The path below the root that a link leads to."""
    path: list[str] = []
    for part in f"{link.base}/{link.target}".split("/"):
        if link.target.startswith("/") or (part == ".." and not path):
            fault = f"the link {link.name!r} leads outside the folder, to {link.target!r}"
            raise SisError(fault, where=archive, fix="do not trust this archive")
        if part == "..":
            path.pop()
        elif part not in ("", "."):
            path.append(part)
    return "/".join(path)


def _refuse_blocked(files: dict[str, _Member], root: Path) -> None:
    """Raise SisError when a link or a file lies where the archive needs a folder; the root itself may be a link."""
    if root.exists() and not root.is_dir():
        raise SisError("not a folder", where=root)
    waiting, seen = {_folder_of(name) for name in files}, {""}
    while waiting := waiting - seen:
        seen |= waiting
        for path in (root / folder for folder in sorted(waiting)):
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise SisError("a link or a file lies where the archive has a folder", where=path, fix="move it away")
        waiting = {_folder_of(folder) for folder in waiting}


def _lies_there(path: Path, member: _Member, archive: Path) -> bool:
    """Whether a file is there with this very content. Raises SisError for anything else in its place."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise SisError("a link or a folder lies where the archive has a file", where=path, fix="move it away")
    if not path.exists():
        return False
    try:
        with path.open("rb") as file:
            pieces = all(file.read(len(piece)) == piece for piece in _content(member, archive))
            if pieces and not file.read(1):
                return True
    except OSError as error:
        raise SisError(f"cannot read this file: {_reason(error)}", where=path, fix="check its permissions") from error
    raise SisError(f"a file with other content than in {archive.name} lies here", where=path, fix="move it away")


def _content(member: _Member, archive: Path) -> Iterator[bytes]:
    """A file's content in pieces. Raises SisError when it is damaged or shorter than the archive says."""
    done = 0
    try:
        source = member.open()
        if source is not None:
            with source:
                while piece := source.read(_PIECE):
                    done += len(piece)
                    yield piece
    except _UNREADABLE as error:
        raise SisError(f"{member.name!r} is damaged ({_reason(error)})", where=archive, fix="fetch it again") from error
    if done != member.size:
        raise SisError(f"{member.name!r} has {done:,} of {member.size:,} bytes", where=archive, fix="fetch it again")


def _check_room(missing: dict[str, _Member], root: Path) -> None:
    """Raise SisError unless the disk has room, counted in whole blocks."""
    there = next(p for p in (root, *root.absolute().parents) if p.exists())
    need = sum(-(-member.size // _BLOCK) * _BLOCK for member in missing.values())
    free = shutil.disk_usage(there).free
    if need > free:
        fix = "free disk space or choose another root in config/config.yaml"
        raise SisError(f"{need:,} bytes to unpack, {free:,} bytes free", where=root, fix=fix)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
