# SPDX-License-Identifier: Apache-2.0
"""Chooses the device and fixes everything about it that would change the bits."""

from __future__ import annotations

import torch

from sis.errors import SisError


def prepare_device(name: str, threads: int) -> str:
    """Resolve `auto`, set the number of CPU threads and switch off algorithms that vary from call to call."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not name.startswith("cuda"):
        raise SisError(f"unknown device {name!r}", fix="auto, cpu, cuda or cuda:N")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise SisError(f"device {name} was asked for, but torch sees no GPU", fix="use --device cpu")
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return name
