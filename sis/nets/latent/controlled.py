# SPDX-License-Identifier: Apache-2.0
"""A U-Net with its ControlNet (Zhang et al. 2023, Eq. 2); the hint's embedding may be computed once for many steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from sis.errors import SisError

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel


class ControlledUNet(nn.Module):
    """`unet` and `controlnet`; the ControlNet's residuals are added to the U-Net's skip connections and middle."""

    def __init__(self, unet: UNet2DConditionModel, controlnet: ControlNetModel) -> None:
        super().__init__()
        self.unet, self.controlnet = unet, controlnet
        self._checkpointing = False

    @property
    def checkpointing(self) -> bool:
        """Whether block inputs alone are kept for gradients, and the rest is computed again."""
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, wanted: bool) -> None:
        for network in (self.unet, self.controlnet):
            (network.enable_gradient_checkpointing if wanted else network.disable_gradient_checkpointing)()
        self._checkpointing = wanted

    def embed_hint(self, hint: Tensor) -> Tensor:
        """The embedding `(b, c0, h, w)` of a hint `(b, k, f h, f w)` in [0, 1]; the same at every step."""
        return self.controlnet.controlnet_cond_embedding(hint)

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, hint: Tensor | None = None, strength: float = 1.0
    ) -> Tensor:
        """The predicted noise `(b, c, h, w)`.

        Args:
            x: noisy latents `(b, c, h, w)`.
            t: steps `(b,)`.
            context: text embeddings `(b, tokens, width)`.
            hint: what `embed_hint` returned, or the hint itself; None: the U-Net alone.
            strength: what the residuals are multiplied by.

        Raises SisError for a hint that is neither.
        """
        if hint is None:
            return self.unet(x, t, context, return_dict=False)[0]
        *skips, middle = (strength * residual for residual in self.residuals(x, t, context, hint))
        return self.unet(
            x,
            t,
            context,
            down_block_additional_residuals=tuple(skips),
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]

    def residuals(self, x: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> list[Tensor]:
        """The ControlNet's answers: one for each skip connection, in the encoder's order, and the middle's last."""
        net = self.controlnet
        embedding = net.time_embedding(net.time_proj(t.expand(x.shape[0])).to(x.dtype))
        h = net.conv_in(x) + self._embedded(hint, x)
        skips = [h]
        for block in net.down_blocks:
            text = {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}
            h, states = block(hidden_states=h, temb=embedding, **text)
            skips += states
        h = net.mid_block(h, embedding, encoder_hidden_states=context)
        outlets = [*net.controlnet_down_blocks, net.controlnet_mid_block]
        return [outlet(state) for outlet, state in zip(outlets, [*skips, h], strict=True)]

    def _embedded(self, hint: Tensor, x: Tensor) -> Tensor:
        """The hint's embedding, computed unless it is one already."""
        layer = self.controlnet.controlnet_cond_embedding
        first, last, factor = layer.conv_in, layer.conv_out, 2 ** (len(layer.blocks) // 2)
        (h, w), channels = x.shape[-2:], hint.shape[1]
        if (channels, *hint.shape[-2:]) == (last.out_channels, h, w):
            return hint
        if (channels, *hint.shape[-2:]) != (first.in_channels, factor * h, factor * w):
            what = f"a hint of {channels} channels and {hint.shape[-1]}x{hint.shape[-2]} pixels"
            needed = f"{first.in_channels} channels and {factor * w}x{factor * h} pixels"
            raise SisError(f"{what}; latents of {w}x{h} need {needed}")
        return self.embed_hint(hint)
