# SPDX-License-Identifier: Apache-2.0
"""Networks that work on latents: autoencoders, and the Stable Diffusion family, thin over diffusers."""
