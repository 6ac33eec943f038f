# SPDX-License-Identifier: Apache-2.0
"""Convolutions in whole float32, so that a judge says the same on a GPU as on the CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def whole_float32() -> AbstractContextManager[None]:
    """A context without the 10-bit mantissas (TF32) that GPUs use for convolutions unless told otherwise.

    Nor does the choice of algorithm depend on timing. Matrix products are whole by torch's own default.
    """
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
