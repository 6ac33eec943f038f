# SPDX-License-Identifier: Apache-2.0
"""Mixed precision: convolutions and matrix products in a narrow type; norms, softmax and losses in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

_TYPES = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._NormBase)

Name = Literal["float32", "bf16", "fp16"]


class Precision:
    """One choice of type on one device. `scaler` keeps small gradients from vanishing in fp16; else it is None.

    Attention's softmax is float32 inside torch's own kernels, whatever their inputs are.
    """

    def __init__(self, name: Name, device: str) -> None:
        self.name: Name = name
        self.dtype, self.kind = _TYPES[name], torch.device(device).type
        self.scaler = torch.amp.GradScaler(self.kind) if name == "fp16" else None

    def narrow(self) -> AbstractContextManager[object]:
        """Where convolutions and matrix products take the narrow type."""
        return nullcontext() if self.dtype is None else torch.autocast(self.kind, self.dtype)

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Let the network's norms read float32 and its answer be float32, so that losses are; undone at the end.

        In float32 nothing is touched.
        """
        hooks = []
        if self.dtype is not None:
            norms = [m for m in network.modules() if isinstance(m, _NORMS)]
            hooks += [m.register_forward_pre_hook(_widened) for m in norms]
            hooks.append(network.register_forward_hook(_answered))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _widened(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_wide(value) for value in given)


def _answered(module: nn.Module, given: tuple[Any, ...], answer: Any) -> Any:
    return _wide(answer)


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    return type(value)(_wide(v) for v in value) if type(value) in (tuple, list) else value
