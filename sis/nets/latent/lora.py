# SPDX-License-Identifier: Apache-2.0
"""Low-rank adaptation of attention (Hu et al. 2022): W becomes W + (alpha / rank) B A; A and B alone are trained.

The layers are peft's. B begins as zero, so that an adapted network begins as the network that it adapts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from pydantic import Field
from torch import nn

from sis.config.base import StrictModel
from sis.errors import SisError

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

#: The projections of an attention layer, as diffusers calls them.
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


class LoRAConfig(StrictModel):
    """Size and strength of the adaptation."""

    lora_rank: int = Field(default=16, ge=1, description="rank of B A, for every attention projection")
    lora_alpha: float = Field(default=16.0, gt=0, description="B A is multiplied by alpha / rank")


def add_lora(network: nn.Module, config: LoRAConfig) -> None:
    """Adapt every attention projection of a network in place; all its other weights are frozen.

    State-dict names: `<projection>.base_layer.weight` (what was `<projection>.weight`), `<projection>.lora_A.default.
    weight` `(rank, in)` and `<projection>.lora_B.default.weight` `(out, rank)`. The matrices A are drawn from torch's
    generator. Raises SisError for a network without such projections, or one that is adapted already.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if any(name.rpartition(".")[2] == "base_layer" for name, _ in network.named_modules()):
        raise SisError("this network has LoRA already", fix="merge it first")
    if not any(name.endswith(tuple(f".{p}" for p in PROJECTIONS)) for name, _ in network.named_modules()):
        raise SisError(f"LoRA adapts attention projections ({', '.join(PROJECTIONS)}), this network has none")
    # peft wants whole numbers of alpha; what counts is the ratio, which is set afterwards.
    wanted = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_rank, target_modules=list(PROJECTIONS))
    inject_adapter_in_model(wanted, network)
    for _, layer in _adapted(network):
        layer.set_scale("default", config.lora_alpha / config.lora_rank)


def merge_lora(network: nn.Module) -> None:
    """Fold the adaptation into the weights for good: plain layers under their old names, still frozen."""
    for name, layer in list(_adapted(network)):
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, layer.get_base_layer())


@contextmanager
def merged(network: nn.Module) -> Iterator[None]:
    """Fold the adaptation into the weights while images are sampled; afterwards they are the very same again."""
    kept = [(layer, cast("nn.Linear", layer.get_base_layer())) for _, layer in _adapted(network)]
    weights = [base.weight.data for _, base in kept]
    try:
        for layer, _ in kept:
            layer.merge(safe_merge=True)  # puts a new tensor in the old one's place, if it is finite
        yield
    finally:
        for (layer, base), weight in zip(kept, weights, strict=True):
            base.weight.data = weight
            layer.merged_adapters.clear()


def _adapted(network: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    from peft.tuners.lora import LoraLayer

    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module
