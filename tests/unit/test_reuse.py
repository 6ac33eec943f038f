# SPDX-License-Identifier: Apache-2.0
"""Exact reuse in guided sampling: the same images as two plain passes, from less work."""

from __future__ import annotations

import importlib.util
import json
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from plain_unet import DEMO, LABELS, label_maps, network, noisy, plain, two_passes
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sis.diffusion import samplers, schedule
from sis.diffusion.denoiser import Denoiser, guided, network_denoiser
from sis.diffusion.noise import Noise
from sis.diffusion.pixels import to_uint8
from sis.diffusion.reuse import Reuse, reused_guided
from sis.diffusion.schedule import Schedule
from sis.errors import SisError
from sis.nets.patches import PatchedUNet
from sis.nets.sampling_unet import channels_last_group_norm
from sis.nets.sdm_unet import SDMUNet, UNetConfig

CASES = Path(__file__).parents[1] / "golden" / "cases" / "sdm"
WAYS = ["spade", "spade_encoder", "spade_both", "concat"]
FAST, BITWISE = Reuse(), Reuse(bitwise=True)
#: One step; and a chain, whose first predictions of x_0 hold the network's error 158 times.
STEP, CHAIN = 1e-5, 5e-4


def reused(net: PatchedUNet, label: Tensor, scale: float, how: Reuse, velocity: Schedule | None = None) -> Denoiser:
    return reused_guided(net, label, scale, True, velocity, how)


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest error in units of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("scale", [1.0, 1.5])
@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("conditioning", WAYS)
@torch.inference_mode()
def test_one_step_equals_two_plain_passes(conditioning: str, patch: int, scale: float) -> None:
    net = network(patch, conditioning=conditioning)
    for batch, height, width in ((1, 32, 32), (2, 24, 40), (3, 8 * patch, 4 * patch)):
        x, label, t = noisy(batch, height, width), label_maps(batch, height, width), torch.full((batch,), 421)
        expected = two_passes(net, label, scale)(x, t)
        ours, quick = (reused(net, label, scale, how)(x, t) for how in (BITWISE, FAST))
        assert ours.variance is not None and quick.variance is not None and expected.variance is not None
        assert torch.equal(ours.eps, expected.eps) and torch.equal(ours.variance, expected.variance)
        assert distance(quick.eps, expected.eps) <= STEP and distance(quick.variance, expected.variance) <= STEP
        assert expected.eps.std() > 0.1, "an answer near zero would hide mistakes"


@pytest.mark.parametrize("size", [(4, 4), (4, 8), (8, 8), (12, 4)])
@torch.inference_mode()
def test_levels_of_one_two_and_three_pixels_are_exact_too(size: tuple[int, int]) -> None:
    net, label, x, t = network(), label_maps(2, *size), noisy(2, *size), torch.tensor([7, 7])
    expected = two_passes(net, label, 2.0)(x, t).eps
    assert torch.equal(reused(net, label, 2.0, BITWISE)(x, t).eps, expected)
    assert distance(reused(net, label, 2.0, FAST)(x, t).eps, expected) <= STEP


@pytest.mark.parametrize("steps", [5, "ddim10", "6,0,0"])
@pytest.mark.parametrize("patch", [1, 2])
@torch.inference_mode()
def test_chains_give_the_images_of_two_plain_passes(steps: int | str, patch: int) -> None:
    net, label = network(patch), label_maps(2, 24, 32)
    chain, noise = schedule.linear().respaced(steps), Noise(3, (("a", 0), ("b", 1)))
    start = samplers.start_noise(noise, (3, 24, 32))
    for sampler in (samplers.ddpm, samplers.ddim):
        images = [
            sampler(each, chain, start, noise)
            for each in (
                two_passes(net, label, 1.5),
                reused(net, label, 1.5, BITWISE),
                reused(net, label, 1.5, FAST),
            )
        ]
        assert torch.equal(images[1], images[0])
        assert distance(images[2], images[0]) <= CHAIN
        assert images[0].std() > 0.1


def demo(how: Reuse | None) -> tuple[Tensor, Tensor]:
    """Images of the demo's model and sampler, as numbers and as pixels; None for plain formulas."""
    net, full = network(2, **DEMO), schedule.linear()
    label, noise = label_maps(4, 64, 64), Noise(0, tuple((f"i{i}", 0) for i in range(4)))
    if how is not None:
        denoiser = reused(net, label, 1.5, how, full)
    else:
        branches = [
            network_denoiser(lambda x, t, y: plain(net, x, t, y), y, True, full)  # type: ignore[arg-type]
            for y in (label, torch.zeros_like(label))
        ]
        denoiser = guided(branches[0], branches[1], 1.5)
    images = samplers.ddim(denoiser, full.respaced(15), samplers.start_noise(noise, (3, 64, 64)), noise)
    return images, to_uint8(images, tuple("abcd"))


@torch.inference_mode()
def test_the_demos_images_keep_their_bits_or_at_most_one_grey_level() -> None:
    plain_images, plain_pixels = demo(None)
    images, _ = demo(BITWISE)
    assert torch.equal(images, plain_images)
    images, pixels = demo(FAST)
    assert distance(images, plain_images) <= CHAIN
    assert (pixels.int() - plain_pixels.int()).abs().max() <= 1
    assert plain_pixels.float().std() > 20


@pytest.mark.parametrize("how", [FAST, BITWISE], ids=["fast", "bitwise"])
@torch.inference_mode()
def test_no_bit_depends_on_the_memory_budget(how: Reuse) -> None:
    net, label, x, t = network(), label_maps(2, 64, 64), noisy(2, 64, 64), torch.tensor([99, 99])
    unlimited = reused(net, label, 1.5, how)(x, t).eps
    for budget in (0, 50_000, 300_000, 1_000_000):
        limited = Reuse(bitwise=how.bitwise, budget=budget)
        assert torch.equal(reused(net, label, 1.5, limited)(x, t).eps, unlimited)


@pytest.mark.parametrize("how", [FAST, Reuse(budget=300_000)], ids=["stored", "short of memory"])
@torch.inference_mode()
def test_an_image_does_not_depend_on_its_place_or_its_neighbours(how: Reuse) -> None:
    net, t = network(), torch.full((3,), 500)
    label, x = label_maps(3, 64, 64), noisy(3, 64, 64)
    whole = reused(net, label, 1.5, how)(x, t).eps
    turned = reused(net, label.roll(1, 0), 1.5, how)(x.roll(1, 0), t).eps
    assert torch.equal(turned, whole.roll(1, 0))
    other_label, other = label_maps(3, 64, 64, seed=7), noisy(3, 64, 64, seed=7)
    other_label[2], other[2] = label[0], x[0]
    assert torch.equal(reused(net, other_label, 1.5, how)(other, t).eps[2], whole[0])


@torch.inference_mode()
def test_the_encoder_runs_once_a_step_and_no_label_convolution_runs_at_all() -> None:
    net, label = network(), label_maps(1, 32, 32)
    calls: list[str] = []
    step = reused(net, label, 1.5, BITWISE)
    for name, module in net.named_modules():
        if name.endswith(("conv1", "shared", "gamma", "beta")):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    for t in (9, 8):
        step(noisy(1, 32, 32), torch.tensor([t]))
    assert calls.count("unet.encoder.0.0.conv1") == 2 and calls.count("unet.decoder.0.0.conv1") == 4
    assert not [name for name in calls if name.endswith(("shared", "gamma", "beta"))]


def flops(net: SDMUNet | PatchedUNet, label: Tensor, scale: float, how: Reuse | None) -> int:
    """Operations of one guided step, counted without computing."""
    label, x = label.to("meta"), torch.zeros(len(label), 3, *label.shape[-2:], device="meta")
    denoiser = two_passes(net, label, scale) if how is None else reused_guided(net, label, scale, True, None, how)
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        denoiser(x, torch.zeros(len(label)))
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("label_channels", "size", "bitwise", "fast"),
    [
        (151, (256, 256), 1.86, 1.97),
        (20, (256, 256), 1.75, 1.86),
        (36, (256, 512), 1.77, 1.87),
        (184, (256, 256), 1.88, 1.99),
    ],
    ids=["ADE20K", "CelebA", "Cityscapes", "COCO"],
)
@torch.no_grad()
def test_a_guided_step_at_the_published_sizes_needs_about_half_the_operations(
    label_channels: int, size: tuple[int, int], bitwise: float, fast: float
) -> None:
    with torch.device("meta"):
        net = SDMUNet(UNetConfig(), 3, label_channels)
    label = torch.zeros(1, label_channels, *size, device="meta")
    full = flops(net, label, 1.5, None)
    assert full / flops(net, label, 1.5, BITWISE) >= bitwise
    assert full / flops(net, label, 1.5, FAST) >= fast


@torch.no_grad()
def test_without_guidance_there_is_no_null_branch() -> None:
    net, label = network().to("meta"), label_maps(1, 32, 32)
    for how in (FAST, BITWISE):
        assert flops(net, label, 1.0, how) < 0.7 * flops(net, label, 1.5, how)


@torch.inference_mode()
def test_half_precision_stays_near_and_keeps_float32_outputs() -> None:
    net, label, x, t = network(), label_maps(2, 32, 32), noisy(2, 32, 32), torch.tensor([300, 300])
    exact = two_passes(net, label, 1.5)(x, t)
    for budget in (None, 0, 100_000):
        found = reused(net, label, 1.5, Reuse(dtype=torch.bfloat16, budget=budget))(x, t)
        assert found.eps.dtype == torch.float32
        assert 1e-4 < distance(found.eps, exact.eps) < 0.05


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@torch.inference_mode()
def test_the_compiled_pass_gives_the_same_answer() -> None:
    net, label, x, t = network(multipliers=[1], attention=[1]), label_maps(1, 8, 8), noisy(1, 8, 8), torch.tensor([5])
    expected = two_passes(net, label, 1.5)(x, t).eps
    assert distance(reused(net, label, 1.5, Reuse(compiled=True))(x, t).eps, expected) <= STEP


@torch.inference_mode()
def test_the_group_norm_for_cuda_is_the_ordinary_one() -> None:
    norm = torch.nn.GroupNorm(4, 24)
    x = (5 + noisy(2 * 8, 6, 7)).reshape(2, 24, 6, 7).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.linspace(0.5, 2, 24), torch.linspace(-1, 1, 24)
    for affine in ((None, None), (weight, bias)):
        found = channels_last_group_norm(x, norm, *affine)
        torch.testing.assert_close(found, torch.nn.functional.group_norm(x, 4, *affine))
        assert found.is_contiguous(memory_format=torch.channels_last)


def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "sdm_sampling.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_sdm_sampling", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@torch.inference_mode()
def test_the_benchmark_compares_and_reports(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark().measure(32, 32, 1)
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0].strip() for row in rows[1:]] == ["---", *benchmark().WAYS]
    assert all(float(row[1]) > 0 and float(row[5]) >= 0 for row in rows[2:])


@torch.inference_mode()
def test_the_benchmark_notices_images_that_differ() -> None:
    sampling, x = benchmark(), noisy(1, 16, 16)
    net, label = network(), label_maps(1, 16, 16)
    plain_step = two_passes(net, label, 1.5)
    for name in ("reuse, bitwise", "reuse, fast"):
        other = reused(net, label, 1.502, FAST)
        with pytest.raises(AssertionError, match=name):
            sampling.check({"plain": plain_step, name: other}, x, torch.tensor([500]))


def test_no_gradients_are_kept() -> None:
    net, label = network(), label_maps(1, 16, 16)
    for how in (FAST, BITWISE):
        assert not reused(net, label, 1.5, how)(noisy(1, 16, 16), torch.tensor([5])).eps.requires_grad


def test_what_cannot_be_reused_is_refused() -> None:
    net, label, x = network(), label_maps(2, 16, 16), noisy(2, 16, 16)
    with pytest.raises(SisError, match="different time steps"):
        reused(net, label, 1.5, FAST)(x, torch.tensor([5, 6]))
    with pytest.raises(SisError, match="do not fit"):
        reused(net, label, 1.5, FAST)(x[:1], torch.tensor([5]))
    with pytest.raises(SisError, match="do not fit"):
        reused(net, label, 1.5, BITWISE)(x[..., :8], torch.tensor([5, 5]))
    with pytest.raises(SisError, match="budget is -1"):
        reused(net, label, 1.5, Reuse(budget=-1))
    for both in ({"compiled": True}, {"dtype": torch.float16}):
        with pytest.raises(SisError, match="bitwise"):
            Reuse(bitwise=True, **both)  # type: ignore[arg-type]


class StoredNoise:
    """Replays the noise that the authors' chain drew, noisiest step first."""

    def __init__(self, draws: np.ndarray, chain: Schedule) -> None:
        self.draws, self.order = draws, {int(t): i for i, t in enumerate(chain.timesteps[::-1])}

    def normal(self, purpose: str, step: int, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(self.draws[self.order[step]])


def golden(name: str) -> tuple[dict[str, Any], dict[str, Any], SDMUNet]:
    """A case, its arrays and its network; weights by the rule in case.json, whose keys stand in our order."""
    case = json.loads((CASES / name / "case.json").read_text())
    with np.load(CASES / name / "data.npz", allow_pickle=False) as arrays:
        data = dict(arrays)
    flags = case["config"].get("model", case["config"])
    net = SDMUNet(
        UNetConfig(
            width=flags["num_channels"],
            multipliers=[int(m) for m in flags["channel_mult"].split(",")],
            blocks=flags["num_res_blocks"],
            attention=[flags["image_size"] // int(a) for a in flags["attention_resolutions"].split(",")],
            head_channels=flags["num_head_channels"],
            learn_sigma=flags["learn_sigma"],
        ),
        3,
        data["y"].shape[1],
    )
    weights = {}
    for (own, value), (key, shape) in zip(net.state_dict().items(), case["keys"].items(), strict=True):
        drawn = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
        scaled = drawn / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else key.endswith("weight") + 0.1 * drawn
        weights[own] = torch.from_numpy(scaled.astype(np.float32)).reshape(value.shape)
    net.load_state_dict(weights)
    return case["config"], data, net.eval()


@pytest.mark.parametrize("how", [FAST, BITWISE, Reuse(budget=100_000)], ids=["fast", "bitwise", "short of memory"])
@pytest.mark.parametrize(
    "name", ["ddpm5_s1.5", "ddpm25_s2", "ddpm5_noguide", "ddpm6_lowt_s1.5", "ddim10_s1.5", "ddim10_eta0.7"]
)
@torch.inference_mode()
def test_the_authors_chains_come_out(name: str, how: Reuse) -> None:
    config, data, net = golden(name)
    chain = schedule.linear(config["diffusion_steps"]).respaced(config["timestep_respacing"])
    denoiser = reused_guided(net, torch.from_numpy(data["y"]).float(), config["s"], True, None, how)
    noise: Any = StoredNoise(data["noise"], chain)
    x = torch.from_numpy(data["xT"])
    if config["sampler"] == "ddim":
        final = samplers.ddim(denoiser, chain, x, noise, config["eta"])
    else:
        final = samplers.ddpm(denoiser, chain, x, noise)
    np.testing.assert_allclose(final.numpy(), data["final"], rtol=0, atol=5e-4)


@pytest.mark.parametrize("name", ["unet_full_edge", "unet_rect"])
@torch.inference_mode()
def test_the_authors_outputs_come_out_of_both_branches(name: str) -> None:
    _, data, net = golden(name)
    y, x = torch.from_numpy(data["y"]).float(), torch.from_numpy(data["x"])
    for k in (k[1:] for k in data if k[0] == "t" and k[1:].isdigit()):
        t = torch.from_numpy(data[f"t{k}"])
        if len(set(t.tolist())) > 1 or f"null{k}" not in data:
            continue
        null, cond = (torch.from_numpy(data[f"{branch}{k}"])[:, :3] for branch in ("null", "cond"))
        found = reused_guided(net, y, 3.0, True)(x, t)
        np.testing.assert_allclose(found.eps, null + 3 * (cond - null), rtol=0, atol=1e-4)
        np.testing.assert_allclose(found.variance, torch.from_numpy(data[f"cond{k}"])[:, 3:], rtol=0, atol=2e-5)
    assert y.shape[1] == LABELS
