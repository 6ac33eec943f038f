# SPDX-License-Identifier: Apache-2.0
"""Archives of a few members, written as a test says, and what lies in a folder after they were unpacked."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

FILES = {"a/train/1.png": b"one", "a/train/2.png": b"two" * 1000, "a/empty.txt": b"", "b.json": b"{}"}
#: name, content; None is a folder, a text is where a link leads, b"" upwards a file.
Members = list[tuple[str, bytes | str | None]]


def archive_of(path: Path, members: Members, hard: bool = False) -> Path:
    """Write a zip or tar by the path's ending."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                info = zipfile.ZipInfo(name)
                if content is None:
                    info = zipfile.ZipInfo(name.rstrip("/") + "/")
                info.external_attr = (stat.S_IFLNK if isinstance(content, str) else 0) << 16
                archive.writestr(info, content or b"")
        return path
    mode = {".tar": "w", ".gz": "w:gz", ".xz": "w:xz"}[path.suffix]
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = (tarfile.LNKTYPE if hard else tarfile.SYMTYPE), content
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def tree(root: Path) -> dict[str, bytes]:
    assert not [p for p in root.rglob("*") if p.is_symlink()]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
