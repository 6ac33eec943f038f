# SPDX-License-Identifier: Apache-2.0
"""The KL autoencoder (Rombach et al. 2022): latents are Gaussian, close to a standard normal by a small penalty."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from sis.nets.latent.first_stage import AutoencoderConfig, Channels, FirstStage, Scale, module_options

#: Bounds of the posterior's log variance, as in the authors' code.
_LOG_VARIANCE = (-30.0, 20.0)


class KLConfig(AutoencoderConfig):
    """Shape of the network and scale. The defaults are Stable Diffusion's (factor 8)."""

    block_out_channels: Channels = Field(default=[128, 256, 512, 512], description="channels of each level")
    latent_channels: int = Field(default=4, ge=1, description="channels of the latent")
    scale: Scale = Field(default=0.18215, description="what latents are multiplied by; auto: measured after training")


class KLFirstStage(FirstStage):
    """diffusers' AutoencoderKL as a first stage, in `autoencoder`."""

    def __init__(self, config: KLConfig) -> None:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        super().__init__(config)
        self.autoencoder = AutoencoderKL(latent_channels=config.latent_channels, **module_options(config))

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance `(b, c, h/f, w/f)` of the unscaled latents of images in [-1, 1]."""
        mean, log_variance = self.autoencoder._encode(self.folded(images)).chunk(2, dim=1)
        return mean, log_variance.clamp(*_LOG_VARIANCE)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.posterior(images)
        return mean, torch.exp(0.5 * log_variance)

    def decode_unscaled(self, latents: Tensor) -> Tensor:
        return self.unfolded(self.autoencoder._decode(latents, return_dict=False)[0])

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstructions from latents drawn with standard normal noise `(b, c, h/f, w/f)`; mean and log variance."""
        mean, log_variance = self.posterior(images)
        return self.decode_unscaled(mean + torch.exp(0.5 * log_variance) * noise), mean, log_variance


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) of each image `(b,)`, in nats, summed over its latent."""
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
