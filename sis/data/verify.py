# SPDX-License-Identifier: Apache-2.0
"""Checks artefacts from the outside: `sis verify`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sis.data.image_set import ImageSet
from sis.data.manifest import Manifest, manifest_path, read_manifest
from sis.data.pairs import PairSet
from sis.errors import SisError

_BATCH = 64


def verify_all(paths: list[Path]) -> Iterator[tuple[Path, Manifest]]:
    """Check every artefact at or below `paths`: all bytes, and every picture's pixels.

    Yields each artefact that is whole; raises SisError at the first that is not, and when there is none.
    """
    for path in paths:
        manifests = _manifests_at(path)
        if not manifests:
            raise SisError("no artefact here (no manifest)", where=path)
        for found in manifests:
            manifest = read_manifest(found)
            if manifest.artefact == "images":
                for _ in ImageSet(manifest).iter_batches(_BATCH):
                    pass
            elif manifest.artefact == "pairs":
                for _ in PairSet(manifest):
                    pass
            yield found, manifest


def _manifests_at(path: Path) -> list[Path]:
    if not path.exists():
        raise SisError("no such file or folder", where=path)
    own = manifest_path(path)
    if own.is_file():
        return [own]
    if path.is_file():
        return []
    return sorted([*path.rglob("manifest.json"), *path.rglob("*.manifest.json")])
