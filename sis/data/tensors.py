# SPDX-License-Identifier: Apache-2.0
"""Named tensors as artefacts: safetensors with a manifest, never a pickle."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sis.data.atomic import atomic_path
from sis.data.manifest import publish_file, read_manifest
from sis.data.provenance import RunRecord
from sis.errors import SisError


def save_tensors(
    tensors: dict[str, Tensor],
    path: Path,
    artefact: str,
    meta: dict,
    run: RunRecord | dict,
    inside: dict | None = None,
) -> None:
    """Write named tensors with their manifest, whole or not at all.

    inside: plain JSON facts that the file itself carries, in its header under the key `sis`; equal facts, equal bytes.
    """
    packed = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with atomic_path(path) as temporary:
        write_tensors(packed, temporary, inside)
        publish_file(temporary, path, artefact, meta, run)


def load_tensors(path: Path, artefact: str) -> tuple[dict[str, Tensor], dict]:
    """Read named tensors and the facts of their manifest after checking every byte."""
    manifest = read_manifest(path, artefact)
    try:
        return load_file(path), manifest.meta
    except (SafetensorError, OSError) as error:
        raise SisError("damaged weight file", where=path, fix="delete it and run its stage again") from error


def write_tensors(tensors: dict[str, Tensor], path: Path, inside: dict | None = None) -> None:
    """Write named tensors to exactly this path, as in `save_tensors`. Raises OSError, which `atomic_path` explains."""
    try:
        save_file(tensors, path, None if inside is None else {"sis": json.dumps(inside, sort_keys=True)})
    except SafetensorError as error:
        # The library reports the system's error as text: "I/O error: No space left on device (os error 28)".
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
