# SPDX-License-Identifier: Apache-2.0
"""The VQ autoencoder (van den Oord et al. 2017, Esser et al. 2021): the decoder sees the nearest codes."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from sis.nets.latent.first_stage import AutoencoderConfig, Channels, FirstStage, Scale, module_options


class VQConfig(AutoencoderConfig):
    """Shape of the network and scale. The defaults are IIDM's (factor 4)."""

    block_out_channels: Channels = Field(default=[128, 256, 512], description="channels of each level")
    latent_channels: int = Field(default=3, ge=1, description="channels of the latent, the length of a code")
    hidden_channels: int = Field(default=3, ge=1, description="channels between encoder or decoder and the latent")
    codes: int = Field(default=8192, ge=1, description="vectors of the codebook")
    codebook_range: float = Field(
        default=0.0, ge=0, description="codes start uniformly in plus and minus this; 0: one over their number"
    )
    scale: Scale = Field(default=1.0, description="what latents are multiplied by; auto: measured after training")


class VQFirstStage(FirstStage):
    """diffusers' VQModel as a first stage, in `autoencoder`: latents are not quantised until they are decoded."""

    def __init__(self, config: VQConfig) -> None:
        from diffusers.models.autoencoders.vq_model import VQModel

        super().__init__(config)
        self.autoencoder = VQModel(
            latent_channels=config.hidden_channels,
            vq_embed_dim=config.latent_channels,
            num_vq_embeddings=config.codes,
            scaling_factor=1.0,
            **module_options(config),
        )
        if config.codebook_range:
            nn.init.uniform_(self.codebook, -config.codebook_range, config.codebook_range)

    @property
    def codebook(self) -> Tensor:
        """All codes, `(n, c)`."""
        return self.autoencoder.quantize.embedding.weight

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Latents before quantisation, with deviations of 0."""
        latents = self.autoencoder.encode(self.folded(images), return_dict=False)[0]
        return latents, torch.zeros_like(latents)

    def quantise(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest code (Euclidean distance) of every unscaled latent vector `(b, c, h, w)`.

        Returns:
            The codes `(b, c, h, w)`, with gradients to the codebook, and their indices int64 `(b, h, w)`.
        """
        indices = self.autoencoder.quantize(latents.detach())[2][2].reshape(len(latents), *latents.shape[2:])
        return self.codebook[indices].permute(0, 3, 1, 2), indices

    def decode_unscaled(self, latents: Tensor) -> Tensor:
        return self.decode_codes(self.quantise(latents)[0])

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Images of latents that are codes already: nothing is quantised."""
        return self.unfolded(self.autoencoder.decode(codes, force_not_quantize=True, return_dict=False)[0])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstructions, latents before quantisation, their codes.

        The encoder gets the decoder's gradient as if nothing were quantised (straight through).
        """
        latents, _ = self.encode(images)
        codes, _ = self.quantise(latents)
        return self.decode_codes(latents + (codes - latents).detach()), latents, codes


def codebook_error(latents: Tensor, codes: Tensor, commitment: float) -> Tensor:
    """What draws codes to latents, and latents to codes by `commitment`: of each image `(b,)`, a mean over values.

    The second and third term of van den Oord et al. 2017, Eq. 3.
    """
    towards_latents = ((latents.detach() - codes) ** 2).flatten(1).mean(1)
    towards_codes = ((latents - codes.detach()) ** 2).flatten(1).mean(1)
    return towards_latents + commitment * towards_codes
