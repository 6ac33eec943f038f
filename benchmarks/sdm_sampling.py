# SPDX-License-Identifier: Apache-2.0
"""SDM's guided step, two plain passes against ours: equal weights and noise, equality asserted in the same run.

The plain formulation is the published code's: one pass of the whole network with the label map, one with zeros, every
scale and shift of SPADE computed in each. Ours is `sis.diffusion.reuse`. Part one counts operations at the published
sizes without computing anything; part two measures on one CPU thread; part three needs a GPU.

Run: python benchmarks/sdm_sampling.py [ROUNDS]     (15 rounds by default; formulations take turns in every round)
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sis.diffusion import samplers, schedule
from sis.diffusion.denoiser import Denoiser, Prediction, guided, network_denoiser
from sis.diffusion.noise import Noise
from sis.diffusion.reuse import Reuse, reused_guided
from sis.nets.sdm_unet import SDMUNet, UNetConfig

#: dataset: channels of the condition, height, width
PUBLISHED = {"ADE20K": (151, 256, 256), "CelebA": (20, 256, 256), "Cityscapes": (36, 256, 512), "COCO": (184, 256, 256)}
WAYS: dict[str, Reuse | None] = {
    "plain": None,
    "reuse, bitwise": Reuse(bitwise=True),
    "reuse, fast": Reuse(),
    "reuse, fast, bfloat16": Reuse(dtype=torch.bfloat16),
}
LABELS, SCALE, CHAIN = 151, 1.5, 6
#: how far a guided step and sampled images may be from the plain ones, in units of the largest value
LIMITS = {"reuse, bitwise": (0.0, 0.0), "reuse, fast": (1e-5, 1e-4), "reuse, fast, bfloat16": (0.1, 0.2)}


def denoiser(network: SDMUNet, label: Tensor, how: Reuse | None) -> Denoiser:
    if how is not None:
        return reused_guided(network, label, SCALE, True, how=how)
    null = network_denoiser(network, torch.zeros_like(label), True)
    return guided(network_denoiser(network, label, True), null, SCALE)


def drawn_network(width: int) -> SDMUNet:
    """SDM's network with random weights; none is zero, so that every layer shows in the output."""
    network, generator = SDMUNet(UNetConfig(width=width), 3, LABELS), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            spread = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.copy_(spread * torch.randn(weight.shape, generator=generator))
    return network.eval().requires_grad_(False)


def drawn_label(batch: int, size: int, regions: int = 20) -> Tensor:
    """One-hot maps of regions around random points, `(batch, LABELS, size, size)`."""
    generator = torch.Generator().manual_seed(1)
    points = size * torch.rand(batch, regions, 2, generator=generator)
    grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"), -1).float()
    region = torch.cdist(grid.reshape(1, -1, 2), points).argmin(-1)
    names = torch.randint(0, LABELS, (batch, regions), generator=generator)
    ids = names.gather(1, region).reshape(batch, size, size)
    return F.one_hot(ids, LABELS).permute(0, 3, 1, 2).float().contiguous()


def count() -> None:
    print("\nTFLOP a guided step at the published sizes, counted (width 256, one image)\n")
    print("| dataset | plain | bitwise | fast | plain / bitwise | plain / fast |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for dataset, (channels, height, width) in PUBLISHED.items():
        found = []
        with torch.device("meta"), torch.no_grad():
            network = SDMUNet(UNetConfig(), 3, channels).eval()
            label = torch.zeros(1, channels, height, width)
            for how in (None, Reuse(bitwise=True), Reuse()):
                step = denoiser(network, label, how)
                with FlopCounterMode(display=False) as counter:
                    step(torch.zeros(1, 3, height, width), torch.zeros(1))
                found.append(counter.get_total_flops() / 1e12)
        ratios = [found[0] / each for each in found[1:]]
        print(f"| {dataset} |" + "".join(f" {v:.2f} |" for v in (*found, *ratios)))


def processor_seconds(step: Callable[[], object]) -> float:
    """Time on the processor: what else runs on the machine counts little."""
    began = time.process_time()
    step()
    return time.process_time() - began


def wall_seconds(step: Callable[[], object]) -> float:
    """Time on the clock until the GPU is done."""
    began = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def check(chosen: dict[str, Denoiser], x: Tensor, t: Tensor) -> None:
    """One step and a short chain by every way; how far they are from the plain ones, refused beyond the limits."""
    chain, noise = schedule.linear().respaced(CHAIN), Noise(0, (("drawn", 0),))
    found = {
        name: (each(x, t).eps, samplers.ddpm(each, chain, samplers.start_noise(noise, tuple(x.shape[1:])), noise))
        for name, each in chosen.items()
    }
    for name in [n for n in chosen if n != "plain"]:
        pairs = zip(found[name], found["plain"], strict=True)
        errors = [float((ours - plain).abs().max() / plain.abs().max()) for ours, plain in pairs]
        size = f"{x.shape[2]} x {x.shape[3]}"
        print(f"{size}, {name}: a step {errors[0]:.1e}, images after {CHAIN} steps {errors[1]:.1e} off the plain ones")
        assert all(error <= limit for error, limit in zip(errors, LIMITS[name], strict=True)), name


def taken(width: int, size: int, rounds: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Seconds that each way needs to begin, and those of its steps; the ways take turns."""
    network, label = drawn_network(width), drawn_label(1, size)
    x, t = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2)), torch.tensor([500])
    chosen: dict[str, Denoiser] = {}
    fills: dict[str, float] = {}
    for name, how in WAYS.items():
        began = time.process_time()
        chosen[name] = denoiser(network, label, how)
        fills[name] = time.process_time() - began
    check(chosen, x, t)
    steps: dict[str, list[float]] = {name: [] for name in chosen}
    for turn in range(rounds + 1):
        for name in list(chosen) if turn % 2 else list(chosen)[::-1]:
            steps[name].append(processor_seconds(lambda step=chosen[name]: step(x, t)))
    return fills, {name: each[1:] for name, each in steps.items()}  # the first round warms up


def measure(width: int, size: int, rounds: int) -> None:
    fills, steps = taken(width, size, rounds)
    print(f"\n{size} x {size}, width {width}, one thread, processor seconds a guided step (median of {rounds})\n")
    print("| way | a step | plain / way | lowest, highest ratio | filling the stores, once | peak memory, MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in WAYS:
        pairs = [a / b for a, b in zip(steps["plain"], steps[name], strict=True)]
        command = [sys.executable, __file__, "peak", name, str(width), str(size)]
        memory = subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
        print(
            f"| {name} | {statistics.median(steps[name]):.3f} | {statistics.median(pairs):.2f} |"
            f" {min(pairs):.2f}, {max(pairs):.2f} | {fills[name]:.2f} | {memory} |",
            flush=True,
        )


def peak(name: str, width: int, size: int) -> None:
    """Two guided steps in a process of their own; what its memory rose to above the network and the label map."""
    network, label = drawn_network(width), drawn_label(1, size)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = resident("VmRSS")
    step = denoiser(network, label, WAYS[name])
    for t in (500, 499):
        step(torch.zeros(1, 3, size, size), torch.tensor([t]))
    print(f"{(resident('VmHWM') - before) / 1024:.0f}")


def resident(mark: str) -> int:
    """KiB of this process in memory, now or at most (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(mark))


def on_gpu(rounds: int) -> None:
    """The published network at 256 x 256 in 16 bits: the authors' batch of 2, then larger ones."""
    network = drawn_network(256).cuda()

    def plain(batch: int) -> Denoiser:
        step = denoiser(network, drawn_label(batch, 256).cuda(), None)

        def half(x: Tensor, t: Tensor) -> Prediction:
            with torch.autocast("cuda", torch.float16):
                return step(x, t)

        return half

    print(f"\n{torch.cuda.get_device_name()}, 256 x 256, width 256, float16, seconds a guided step and image\n")
    print("| way | batch | a step | plain at batch 2 / way |\n| --- | ---: | ---: | ---: |")
    reference, authors = plain(2), 0.0
    for compiled in (False, True):
        for batch in (2, 4, 8, 16):
            ours = denoiser(network, drawn_label(batch, 256).cuda(), Reuse(dtype=torch.float16, compiled=compiled))
            both: list[list[float]] = [[], []]
            for _ in range(rounds + 2):
                for step, size, kept in ((reference, 2, both[0]), (ours, batch, both[1])):
                    x, t = torch.randn(size, 3, 256, 256, device="cuda"), torch.full((size,), 500, device="cuda")
                    kept.append(wall_seconds(lambda step=step, x=x, t=t: step(x, t)) / size)
            medians = [statistics.median(each[2:]) for each in both]
            if not authors:
                authors = medians[0]
                print(f"| plain | 2 | {authors:.4f} | 1.00 |")
            print(f"| fast{', compiled' * compiled} | {batch} | {medians[1]:.4f} | {medians[0] / medians[1]:.2f} |")


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    count()
    measure(64, 64, rounds)
    measure(64, 128, rounds)
    measure(256, 128, max(1, rounds // 5))
    if torch.cuda.is_available():
        on_gpu(rounds)
    else:
        print("\nno GPU")


if __name__ == "__main__":
    with torch.inference_mode():
        if sys.argv[1:2] == ["peak"]:
            torch.set_num_threads(1)
            peak(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        else:
            main(int((sys.argv[1:] or ["15"])[0]))
