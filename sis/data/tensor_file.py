# SPDX-License-Identifier: Apache-2.0
"""Writes safetensors files; a full or read-only disk is the same OSError as for any other file."""

from __future__ import annotations

import os
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write named tensors to exactly this path. Raises OSError, which `atomic_path` explains."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        # The library reports the system's error as text: "I/O error: No space left on device (os error 28)".
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
