# SPDX-License-Identifier: Apache-2.0
"""SPADE modulation of a U-Net that knows no label maps: its decoder's group norms get a scale and shift a pixel.

Our design of SDM-LoRA (the paper says no more than that the group normalisation is modified; docs/sdm-lora.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from sis.nets.spade import SPADE, Modulations

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel


class ModulatedNorm(nn.Module):
    """A trained group norm, then (1 + gamma) * h + beta of the label map; as it was, until gamma and beta are trained.

    SDM's norm has no affine part, here the trained one stays: gamma and beta begin as zero and change what it gives.
    """

    def __init__(self, norm: nn.GroupNorm, label_channels: int, hidden: int) -> None:
        super().__init__()
        self.spade = SPADE(norm.num_channels, label_channels, hidden, norm.num_groups)
        self.spade.norm = norm
        for layer in (self.spade.gamma, self.spade.beta):
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        #: What the next call modulates by; a U-Net of diffusers passes nothing but features to its norms.
        self.layout: Tensor | Modulations | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and modulate features `(b, c, h, w)`."""
        assert self.layout is not None
        return self.spade(x, self.layout)


class SpadeUNet(nn.Module):
    """A U-Net whose decoder reads a label map: both norms of every residual block of the decoder are modulated.

    As in SDM, norms of attention layers and the last norm are not, and the encoder never sees the label map.
    """

    def __init__(
        self, unet: UNet2DConditionModel, label_channels: int, hidden: int = 128, middle: bool = False
    ) -> None:
        """Take over a U-Net.

        Args:
            unet: is changed.
            label_channels: of the label map.
            hidden: channels between the label map and gamma and beta.
            middle: modulate the middle block's norms too, as SDM's code does.
        """
        super().__init__()
        self.unet = unet
        self._checkpointing = False
        for block in _blocks(unet, middle):
            for resnet in cast("nn.ModuleList", block.resnets):
                for name in ("norm1", "norm2"):
                    norm = cast("nn.GroupNorm", getattr(resnet, name))
                    setattr(resnet, name, ModulatedNorm(norm, label_channels, hidden))

    @property
    def checkpointing(self) -> bool:
        """Whether block inputs alone are kept for gradients, and the rest is computed again."""
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, wanted: bool) -> None:
        (self.unet.enable_gradient_checkpointing if wanted else self.unet.disable_gradient_checkpointing)()
        self._checkpointing = wanted

    def new_parameters(self) -> list[nn.Parameter]:
        """What computes gamma and beta; nothing of it comes from the base model."""
        layers = [layer for norm in self._norms() for layer in (norm.spade.shared, norm.spade.gamma, norm.spade.beta)]
        return [parameter for layer in layers for parameter in layer.parameters()]

    def spade_norms(self, size: tuple[int, int]) -> list[tuple[SPADE, tuple[int, int]]]:
        """The modulated norms and the size (height, width) of what they read, for latents of a size.

        `sis.nets.modulation.LabelMaps` takes them, so that a whole chain computes scales and shifts once.
        """
        sizes, deepest = [size], len(self.unet.up_blocks) - 1
        for _ in range(deepest):
            h, w = sizes[-1]
            sizes.append(((h + 1) // 2, (w + 1) // 2))
        levels = [(self.unet.mid_block, deepest)]
        levels += [(block, deepest - place) for place, block in enumerate(self.unet.up_blocks)]
        return [
            (module.spade, sizes[level])
            for block, level in levels
            for module in (block.modules() if block is not None else ())
            if isinstance(module, ModulatedNorm)
        ]

    def forward(self, x: Tensor, t: Tensor, text: Tensor, layout: Tensor | Modulations) -> Tensor:
        """The network's answer `(b, c, h, w)`.

        Args:
            x: noisy latents `(b, c, h, w)`.
            t: steps `(b,)`.
            text: embeddings `(b, tokens, width)`.
            layout: one-hot map `(b, k, H, W)` of any size, zero throughout for the null condition; or known scales and
                shifts.
        """
        for norm in self._norms():  # stays until the next call: gradient checkpointing reads it once more
            norm.layout = layout
        return self.unet(x, t, text, return_dict=False)[0]

    def _norms(self) -> list[ModulatedNorm]:
        return [module for module in self.unet.modules() if isinstance(module, ModulatedNorm)]


def _blocks(unet: UNet2DConditionModel, middle: bool) -> list[nn.Module]:
    return [*([unet.mid_block] if middle and unet.mid_block is not None else []), *unet.up_blocks]
