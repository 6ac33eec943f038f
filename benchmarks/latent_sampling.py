# SPDX-License-Identifier: Apache-2.0
"""SCP-Diff's guided chain, plain diffusers against ours: equal weights, starts and steps, equality asserted in the run.

The plain way is the library's own modules and scheduler as the released code calls them: two calls of ControlNet and
U-Net a step, one for each branch, the hint embedded in each. Ours makes one call for both branches, embeds the hint
once a chain and keeps the scheduler in float64 tables. Part one measures a narrow network on one CPU thread; part two,
the shape of Stable Diffusion 2.1 with random weights in bfloat16 and float16, compiled and not, needs a GPU.

Run: python benchmarks/latent_sampling.py [ROUNDS]     (5 rounds by default; the two take turns in every round)
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sis.diffusion import samplers
from sis.diffusion.latent_chain import batched_guided
from sis.diffusion.noise import Noise
from sis.diffusion.schedule import scaled_linear
from sis.diffusion.truncation import truncated
from sis.nets.latent.controlled import ControlledUNet
from sis.nets.latent.stable_diffusion import SDConfig, controlnet, unet

STEPS, MU, SCALE, TOKENS = 20, 0.8, 4.0, 77
NARROW = SDConfig(block_out_channels=[32, 64, 128, 128], heads=[1, 2, 4, 4], layers_per_block=2, cross_attention_dim=64,
                  norm_groups=8)  # fmt: skip
#: How far chains may be apart in float32, in units of the largest value.
LIMIT = 1e-4


@dataclass(frozen=True)
class Inputs:
    """A batch: x_muT `(b, c, h, w)`, embeddings of both prompts `(b, tokens, width)`, hints `(b, 3, 8h, 8w)`."""

    x: Tensor
    positive: Tensor
    negative: Tensor
    hint: Tensor

    def to(self, device: str, dtype: torch.dtype) -> Inputs:
        return Inputs(*(value.to(device, dtype) for value in (self.x, self.positive, self.negative, self.hint)))


def drawn(config: SDConfig, batch: int, side: int) -> tuple[ControlledUNet, Inputs]:
    """Random weights, none of them zero, so that the ControlNet shows in the output."""
    torch.manual_seed(0)
    network = ControlledUNet(unet(config), controlnet(config)).eval().requires_grad_(False)
    for layer in [*network.controlnet.controlnet_down_blocks, network.controlnet.controlnet_mid_block]:
        nn.init.normal_(layer.weight, std=0.02)
    nn.init.normal_(network.controlnet.controlnet_cond_embedding.conv_out.weight, std=0.1)
    text = torch.randn(2, TOKENS, config.cross_attention_dim).expand(batch, 2, -1, -1)
    hint = torch.rand(batch, 3, 8 * side, 8 * side)
    x = torch.randn(batch, config.in_channels, side, side)
    return network, Inputs(x, text[:, 0].contiguous(), text[:, 1].contiguous(), hint)


def plain(network: ControlledUNet, given: Inputs) -> Tensor:
    """Two calls a step through diffusers' own classes."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, timestep_spacing="leading", prediction_type="epsilon",
    )  # fmt: skip
    scheduler.set_timesteps(STEPS)
    x, dtype = given.x.float(), given.x.dtype
    for t in (t for t in scheduler.timesteps.tolist() if t <= 1000 * MU + 1):
        answers = []
        for text in (given.positive, given.negative):
            skips, middle = network.controlnet(x.to(dtype), t, text, given.hint, return_dict=False)
            answers.append(
                network.unet(
                    x.to(dtype), t, text, down_block_additional_residuals=skips, mid_block_additional_residual=middle,
                    return_dict=False,
                )[0].float()
            )  # fmt: skip
        eps = answers[1] + SCALE * (answers[0] - answers[1])
        x = scheduler.step(eps, t, x, return_dict=False)[0]
    return x


def ours(network: ControlledUNet, given: Inputs, call: Callable[..., Tensor] | None = None) -> Tensor:
    """One call a step for both branches, the hint embedded once."""
    hint = network.embed_hint(given.hint)
    denoiser = batched_guided(call or network, given.positive, given.negative, hint, SCALE, given.x.dtype)
    chain, _ = truncated(scaled_linear().leading(STEPS, exact=False), MU, 1000, "fixed")
    noise = Noise(0, tuple((str(i), 0) for i in range(len(given.x))), given.x.device)
    return samplers.ddim(denoiser, chain, given.x.float(), noise, clip=False)


def on_cpu(rounds: int) -> None:
    torch.set_num_threads(1)
    network, given = drawn(NARROW, batch=2, side=16)
    seconds: dict[str, list[float]] = {"plain diffusers": [], "ours": []}
    for _ in range(rounds):
        found = {}
        for name, way in (("plain diffusers", plain), ("ours", ours)):
            began = time.process_time()
            found[name] = way(network, given)
            seconds[name].append(time.process_time() - began)
        apart = float((found["ours"] - found["plain diffusers"]).abs().max() / found["ours"].abs().max())
        assert apart < LIMIT, f"chains are {apart:.1e} apart"
    ratio = statistics.median(p / o for p, o in zip(*seconds.values(), strict=True))
    medians = ", ".join(f"{name} {statistics.median(s):.2f} s" for name, s in seconds.items())
    print(f"CPU, one thread, widths {NARROW.block_out_channels}, latents 16x16, batch 2, 17 of {STEPS} steps:")
    print(f"  processor time: {medians}, ratio {ratio:.2f}, largest difference {apart:.1e}")


def on_gpu(rounds: int) -> None:
    """Images a second at the shape of Stable Diffusion 2.1 for 512x512 pixels, decoding not included."""
    print(f"{torch.cuda.get_device_name()}, Stable Diffusion 2.1 with ControlNet, random weights, 512x512, mu {MU}:")
    for dtype in (torch.bfloat16, torch.float16):
        for batch in (1, 8, 16):
            network, given = drawn(SDConfig(), batch, 64)
            network, given = network.to("cuda", dtype), given.to("cuda", dtype)
            compiled = torch.compile(network)
            ways = {
                "plain diffusers": lambda n=network, g=given: plain(n, g),
                "ours": lambda n=network, g=given: ours(n, g),
                "ours, compiled": lambda n=network, g=given, c=compiled: ours(n, g, c),
            }
            speeds: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(rounds + 1):
                for name, way in ways.items():
                    torch.cuda.synchronize()
                    began = time.perf_counter()
                    way()
                    torch.cuda.synchronize()
                    if turn:  # the first one compiles and warms up
                        speeds[name].append(batch / (time.perf_counter() - began))
            shown = ", ".join(f"{name} {statistics.median(s):.2f}" for name, s in speeds.items())
            print(f"  {str(dtype).removeprefix('torch.')}, batch {batch}: images/s: {shown}")


@torch.inference_mode()
def main(rounds: int) -> None:
    on_cpu(rounds)
    if torch.cuda.is_available():
        on_gpu(rounds)
    else:
        print("no GPU here: the part at full size was not run")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
