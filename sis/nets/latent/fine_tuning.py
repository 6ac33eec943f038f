# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of a ControlNet: where it starts, which weights are trained, and by which loss.

SCP-Diff (Bao et al. 2024, Sec. 3 and its released code) trains the ControlNet and the decoder of the U-Net; the
U-Net's time embedding, encoder and middle block, the autoencoder and the text encoder keep their weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from sis.diffusion.latent_chain import Eps
from sis.diffusion.schedule import Schedule
from sis.nets.latent.controlled import ControlledUNet
from sis.nets.latent.stable_diffusion import start_controlnet

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

#: The decoder of diffusers' U-Net.
_DECODER = ("up_blocks", "conv_norm_out", "conv_out")
#: What a layer that LoRA adapts is called inside its adapter, and how the adapter's own weights begin.
_ADAPTED, _ADAPTER = ".base_layer.", "lora_"


def start_from(network: ControlledUNet, base: UNet2DConditionModel) -> None:
    """Copy a base model's weights into the U-Net, and its encoder and middle block into the ControlNet.

    Layers that LoRA adapts get them too; their adapters stay as they are. Raises SisError for another shape.
    """
    start_controlnet(network.controlnet, base)
    theirs, own = base.state_dict(), network.unet.state_dict()
    network.unet.load_state_dict({k: theirs.get(k.replace(_ADAPTED, "."), v) for k, v in own.items()})


def unlock(network: ControlledUNet, locked: bool = False) -> None:
    """Let the ControlNet and the U-Net's decoder be trained and freeze the rest; adapters of LoRA are trained too.

    locked: freeze the decoder as well, as ControlNet does by default (`sd_locked`).
    """
    network.requires_grad_(False)
    network.controlnet.requires_grad_(True)
    for part in () if locked else _DECODER:
        getattr(network.unet, part).requires_grad_(True)
    for name, parameter in network.unet.named_parameters():
        if _ADAPTER in name:
            parameter.requires_grad_(True)


def noise_error(
    network: Eps, schedule: Schedule, latent: Tensor, t: Tensor, eps: Tensor, context: Tensor, hint: Tensor | None
) -> Tensor:
    """Mean squared error between the noise and what the network takes for it, `(b,)` (SCP-Diff, Eq. 2).

    Args:
        network: answers eps_hat(x_t, t, context, hint).
        schedule: the full schedule.
        latent: x_0, scaled, `(b, c, h, w)`; eps: the noise, of its shape.
        t: indices `(b,)`.
        context: text embeddings `(b, tokens, width)`; hint: hints or their embedding, or None.
    """
    noisy = schedule.q_sample(latent, t, eps)
    return ((eps - network(noisy, t, context, hint)) ** 2).flatten(1).mean(1)
