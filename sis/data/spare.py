# SPDX-License-Identifier: Apache-2.0
"""A second name for the files of a finished artefact, from which it comes back when its declared files are deleted.

A workflow engine deletes the declared outputs of a rule that it did not see finish, though the job that made them went
on and finished. The second name is a hard link: it costs no space.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from sis.data.atomic import atomic_path


def keep_spare(files: Sequence[Path], folder: Path) -> None:
    """Give finished files a second name in `folder`; the earlier spares of these names go."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        spare = _spare(path, folder)
        spare.unlink(missing_ok=True)
        _link(path, spare)


def restore_spare(files: Sequence[Path], folder: Path, manifest: Path, key: str) -> bool:
    """Bring files back in their order, if all have a spare and the spare of their manifest names `key`.

    Files that are there are left as they are. Returns whether all are there now.
    """
    return spare_key(manifest, folder) == key and bring_back(files, folder)


def bring_back(files: Sequence[Path], folder: Path) -> bool:
    """Bring files that are gone back in their order, if all of them have a spare; returns whether all are there."""
    if all(_spare(path, folder).is_file() for path in files):
        for path in files:
            if not path.exists():
                _link(_spare(path, folder), path)
    return all(path.exists() for path in files)


def spare_key(manifest: Path, folder: Path) -> str:
    """The `key` among the facts of a manifest's spare; empty when there is none."""
    try:
        return str(json.loads(_spare(manifest, folder).read_text())["meta"]["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _spare(path: Path, folder: Path) -> Path:
    return folder / f"{path.name}.spare"


def _link(path: Path, new: Path) -> None:
    """A hard link, which appears whole and leaves nothing else behind, or a copy where the file system has none."""
    try:
        os.link(path, new)
    except FileExistsError:
        return  # another process that finished the same was faster
    except OSError:
        with atomic_path(new) as temporary:
            shutil.copyfile(path, temporary)
