# SPDX-License-Identifier: Apache-2.0
"""IIDM with a first stage that averages: recipes, starts from a photograph, rounds, loss and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from sis.checkpoints import iidm as format_of_iidm
from sis.checkpoints.artefact import Target, import_model, inspect
from sis.config.files import dataset_card, label_space
from sis.data.resize import nearest
from sis.data.weight_files import write_weights
from sis.diffusion.between_rounds import through_jpeg, truncated
from sis.diffusion.colour_transfer import transferred
from sis.diffusion.denoiser import Prediction
from sis.diffusion.losses import hybrid_terms
from sis.diffusion.noise import Noise
from sis.diffusion.refinement import RECIPES, planned
from sis.diffusion.schedule import linear
from sis.diffusion.style_start import Start, StepRule, denoised, noised, of_round, start_at
from sis.errors import SisError
from sis.methods.contract import Context, MapBatch
from sis.methods.iidm import IIDM, FitParams, SampleParams
from sis.nets.condition import condition
from sis.nets.sdm_unet import SDMUNet, UNetConfig
from sis.training.batches import TrainBatch

NET = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [2], "head_channels": 8, "spade_hidden": 8,
       "groups": 4, "diffusion_steps": 100}  # fmt: skip
QUICK = {"steps": ["ddim10", "ddim10", "ddim5"]}
CARD = dataset_card("scenes_tiny")


class Pooling(nn.Module):
    """A first stage of factor 4 that averages and repeats; `seen` keeps what it encoded."""

    factor, channels = 4, 3

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(((images + 1) * 127.5).round().to(torch.uint8))
        latents = F.avg_pool2d(images, 4)
        return latents, torch.zeros_like(latents)

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents, scale_factor=4, mode="nearest")


def context(size: tuple[int, int] = (32, 32), latents: Any = None) -> Context:
    uses: Any = {"autoencoder": SimpleNamespace(network=Pooling())}
    return Context(CARD, label_space(CARD.labels), size, "cpu", uses=uses, latents=latents)


def method(place: Context | None = None, fit: dict[str, Any] | None = None, **sample: Any) -> IIDM:
    """A method with the same random weights always, none of them zero."""
    made = IIDM(
        place or context(),
        FitParams.model_validate(NET | (fit or {})),
        SampleParams.model_validate((QUICK if sample.get("recipe", "release") == "release" else {}) | sample),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in made.network.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            centre = float(weight.ndim == 1 and name.endswith("weight"))
            weight.copy_(centre + drawn * (weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1))
    made.network.eval()
    return made


def maps(count: int = 2, first: int = 0, references: bool = True) -> MapBatch:
    """Label maps of blocks, and photographs of two colours each."""
    drawn = Noise(3, tuple((f"map-{i}", 0) for i in range(first, first + count)))
    labels = drawn.integers("label", 0, (4, 4), 10).repeat_interleave(8, 1).repeat_interleave(8, 2)
    colours = drawn.integers("colour", 0, (3, 2, 1), 256).repeat_interleave(16, 2).repeat(1, 1, 1, 32)
    photographs = (colours + drawn.integers("grain", 0, (3, 32, 32), 20) - 10).clamp(0, 255).to(torch.uint8)
    ids = tuple(i for i, _ in drawn.keys)
    return MapBatch(ids, (0,) * count, labels, torch.zeros_like(labels), photographs if references else None)


def drawn(made: IIDM, batch: MapBatch, seed: int = 0) -> Tensor:
    with torch.inference_mode():
        images = made.sample(batch, Noise(seed, tuple(zip(batch.image_ids, batch.sample_indices, strict=True))))
    assert images.dtype == torch.uint8 and images.shape == (len(batch.image_ids), 3, 32, 32)
    return images


# Recipes


def test_the_release_is_the_authors_three_stages() -> None:
    """The bare indices of their script, 300, 320 and 20, are what shares of the schedule come to."""
    full, found = linear(), []
    for part in planned("release"):
        chain = full.respaced(part.steps)
        start = start_at(chain, part.start, 1000, RECIPES["release"].late)
        found.append((start.noised, start.calls, int(chain.timesteps[start.noised]), part.guidance))
        assert chain.alphas_cumprod[start.noised] == pytest.approx(full.alphas_cumprod[int(1000 * part.start)])
    assert found == [(300, 300, 600, 3.5), (320, 320, 640, 3.7), (20, 20, 400, 3.7)]
    levels = [full.alphas_cumprod[t] for t in (320, 400, 600, 640)]
    assert [f"{level:.3g}" for level in levels] == ["0.347", "0.194", "0.0256", "0.0155"]


def test_the_paper_has_one_start_all_steps_and_no_guidance() -> None:
    parts = planned("paper")
    assert parts == [(0.32, "", 1.0)] * 3
    assert start_at(linear(), 0.32, 1000, RECIPES["paper"].late) == Start(319, 320)  # T = 320, t = 320, ..., 1
    assert start_at(linear(), 1.0, 1000, late=False) == Start(999, 1000)


def test_values_are_for_all_rounds_or_for_each() -> None:
    release = planned("release")
    assert planned("release", 1) == release[:1] and planned("release", 5)[3:] == [release[2]] * 2
    assert [p.guidance for p in planned("release", guidance=[2.0])] == [2.0] * 3
    two = planned("release", start=[0.5, 0.3], steps=["ddim50", 20])
    assert [(p.start, p.steps, p.guidance) for p in two] == [(0.5, "ddim50", 3.5), (0.3, 20, 3.7)]
    assert [p.start for p in planned("paper", 2, start=[0.64])] == [0.64, 0.64]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "release", "count": 3, "start": [0.5, 0.4]}, "start has 2 values for 3 rounds.*one for each"),
        ({"name": "release", "start": [0.5, 0.4], "guidance": [1.0, 2.0, 3.0]}, "start has 2 values for 3 rounds"),
        ({"name": "paper", "steps": [20, 30]}, "Algorithm 2 has the same steps in every round, found 2 values"),
        ({"name": "dm", "start": [0.6]}, "the recipe dm draws from pure noise, once"),
        ({"name": "dm", "count": 2}, "the recipe dm draws from pure noise, once"),
    ],
)
def test_values_that_do_not_fit_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SisError, match=words):
        planned(**given)


def test_a_start_outside_the_chain_is_refused() -> None:
    chain = linear().respaced("ddim50")
    with pytest.raises(SisError, match=r"1 of 1000 steps lies above a chain of 50 steps from 0 to 980"):
        start_at(chain, 1.0, 1000, late=True)
    with pytest.raises(SisError, match="lies below a chain of 2 steps from 500 to 999"):
        start_at(replace(chain, betas=chain.betas[:2], timesteps=np.array([500, 999])), 0.4, 1000, late=True)


@pytest.mark.parametrize("wrong", [{"start": 0.0}, {"start": [0.5, 1.2]}, {"guidance": 0.5}, {"steps": "ddim"}])
def test_parameters_outside_their_ranges_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SampleParams.model_validate(wrong)


@pytest.mark.parametrize(
    ("size", "fit", "sample", "words"),
    [
        ((32, 36), {}, {}, "cannot halve the latents of 32x36 images.*divisible by 8"),
        ((32, 32), {"learn_sigma": False}, {"sampler": "ddpm"}, "no variance to sample with"),
        ((32, 32), {}, {"final_transfer": True, "colour_transfer": "none"}, "needs a way to transfer colours"),
    ],
)
def test_what_cannot_be_is_refused_at_once(size: Any, fit: Any, sample: Any, words: str) -> None:
    with pytest.raises(SisError, match=words):
        method(context(size), fit, **sample)


# One round


def nothing(x: Tensor, t: Tensor) -> Prediction:
    """A network that sees no noise anywhere."""
    return Prediction(torch.zeros_like(x), None)


def test_the_first_evaluation_is_one_index_below_the_noise_of_a_late_start() -> None:
    """With eps = 0, DDIM divides by the signal's amplitude at its first index: noised at 6, first called at 5."""
    chain, noise = linear().respaced("ddim50"), Noise(0, (("a", 0),))
    z, eps, steps = torch.full((1, 3, 2, 2), 0.5), noise.normal("style start", 0, (3, 2, 2)), list[int]()

    def watched(x: Tensor, t: Tensor) -> Prediction:
        steps.append(int(t[0]))
        return nothing(x, t)

    for late in (True, False):
        steps.clear()
        start = start_at(chain, 0.12, 1000, late)
        assert start == Start(6 if late else 5, 6)
        found = denoised(watched, chain, noised(chain, z, start, noise), start.calls, noise, StepRule())
        assert steps == [100, 80, 60, 40, 20, 0]
        level, first = (chain.alphas_cumprod[i] for i in (start.noised, 5))
        expected = (level**0.5 * z + (1 - level) ** 0.5 * eps) / first**0.5
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_ancestral_steps_and_eta_draw_noise_of_their_round() -> None:
    chain, noise = linear().respaced("ddim10"), Noise(0, (("a", 0), ("b", 0)))
    z = torch.zeros(2, 3, 4, 4)
    for rule in (StepRule("ddpm"), StepRule("ddim", eta=1.0)):
        rounds = [denoised(nothing, chain, z, 5, of_round(noise, number), rule) for number in (0, 0, 1)]
        assert torch.equal(rounds[0], rounds[1]) and not torch.allclose(rounds[0], rounds[2])
        assert not torch.allclose(rounds[0][0], rounds[0][1])
    alone = of_round(Noise(0, (("b", 0),)), 1).normal("x", 3, (2,))
    assert torch.equal(alone[0], of_round(noise, 1).normal("x", 3, (2,))[1])


# Sampling


def test_images_follow_from_keys_and_seed_alone() -> None:
    made, batch = method(), maps(3)
    images = drawn(made, batch)
    assert torch.equal(images, drawn(made, batch))
    alone = drawn(made, maps(1, first=1))
    assert (images[1:2].int() - alone.int()).abs().max() <= 1  # sums of a batch may end in other digits
    assert (images.int() - drawn(made, batch, seed=1).int()).abs().float().mean() > 2
    plain = drawn(method(fast=False), batch)
    assert torch.equal(images, plain)


def test_the_style_is_what_the_chain_starts_from() -> None:
    """A start at the lowest step keeps the photograph; a start near the top forgets most of it."""
    batch = maps()
    assert batch.references is not None
    pooled = Pooling().decode(F.avg_pool2d(batch.references.float(), 4))
    near, far = (
        (drawn(method(rounds=1, start=share, steps="ddim50", guidance=1.0), batch).float() - pooled).abs().mean()
        for share in (0.01, 0.9)
    )
    assert near < 12 and far > 3 * near


def test_each_round_starts_from_the_last_ones_picture_in_the_styles_colours() -> None:
    made, batch = method(), maps()
    images = drawn(made, batch)
    seen = made.first_stage.seen
    assert len(seen) == 3 and torch.equal(seen[0], batch.references)
    first = drawn(method(rounds=1, steps="ddim10"), batch)
    assert torch.equal(seen[1], transferred("reinhard_lab8", first, batch.references))
    final = drawn(method(final_transfer=True), batch)
    assert torch.equal(final, transferred("reinhard_lab8", images, batch.references))


def test_pictures_pass_through_jpeg_twice_between_rounds_and_once_at_the_end() -> None:
    batch = maps()
    assert batch.references is not None
    first = drawn(method(rounds=1, steps="ddim10"), batch)
    written = method(between="jpeg").handed_on(first, batch.references)
    coloured = transferred("reinhard_lab8", through_jpeg(first), batch.references)
    assert torch.equal(written, through_jpeg(coloured)) and not torch.equal(written, coloured)
    none = method(between="jpeg", colour_transfer="none").handed_on(first, batch.references)
    assert torch.equal(none, through_jpeg(first))
    assert torch.equal(method(colour_transfer="none").handed_on(first, batch.references), first)
    assert torch.equal(drawn(method(rounds=1, steps="ddim10", final_jpeg=True), batch), through_jpeg(first))


def test_the_baseline_needs_no_photograph_unless_its_colours_are_transferred() -> None:
    plain, bare = method(recipe="dm", steps=4), maps(references=False)
    images = drawn(plain, bare)
    assert torch.equal(images, drawn(plain, maps())) and not plain.first_stage.seen
    controlled = method(recipe="dm", steps=4, final_transfer=True)
    assert torch.equal(drawn(controlled, maps()), transferred("reinhard_lab8", images, maps().references))
    for made in (controlled, method(), method(recipe="paper", steps=10)):
        with pytest.raises(SisError, match=r"these label maps come without style photographs.*recipe: dm"):
            drawn(made, bare)


def test_the_paper_is_ancestral_and_rounded_levels_are_an_option() -> None:
    made = method(recipe="paper", steps=10, rounds=2)
    assert made.rule.sampler == "ddpm" and len(made.rounds) == 2
    assert not torch.equal(
        drawn(made, maps()), drawn(method(recipe="paper", steps=10, rounds=2, sampler="ddim"), maps())
    )
    values = torch.tensor([-1.2, -1.0, -0.004, 0.0, 0.999, 1.1]).reshape(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert truncated(values, ("a",))[0, 0, 0].tolist() == [0, 0, 126, 127, 254, 255]
    rounded = method(levels="rounded").decoded(values, ("a",))
    assert rounded[0, 0, 0, ::4].tolist() == [0, 0, 127, 128, 255, 255]
    with pytest.raises(SisError, match="decoded images are not finite: b"):
        truncated(torch.tensor([0.0, float("nan")]).reshape(2, 1, 1, 1).expand(2, 3, 1, 1), ("a", "b"))


# Training


class Latents:
    """Latents that follow from the ids; the mirrored ones are mirrored."""

    def of(self, image_ids: Sequence[str], mirrored: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean = Noise(7, tuple((i, 0) for i in image_ids)).normal("image", 0, (3, 8, 8))
        mean = mean if mirrored is None else torch.where(mirrored[:, None, None, None], mean.flip(-1), mean)
        return mean, torch.zeros_like(mean)


def test_the_loss_is_sdms_on_latents_that_are_mirrored_with_their_label_maps() -> None:
    made, batch = method(context(latents=Latents())), maps(4)
    noise = Noise(5, tuple((i, 2) for i in batch.image_ids))
    found = made.loss(TrainBatch(batch.image_ids, torch.zeros(4, 3, 32, 32), batch.labels, None, noise))
    mirrored = noise.uniform("flip", 0, ()) < 0.5
    kept = noise.uniform("drop", 0, ()) > 0.2
    assert 0 < mirrored.sum() < 4
    latents, _ = Latents().of(batch.image_ids, mirrored)
    t, eps = noise.integers("t", 0, (), 100), noise.normal("eps", 0, (3, 8, 8))
    noisy = made.schedule.q_sample(latents, t, eps)
    small = np.stack([nearest(label.numpy().astype(np.uint8), (8, 8)) for label in batch.labels])
    y = condition(torch.from_numpy(small).long(), label_space(CARD.labels).width, None, kept)
    terms = hybrid_terms(made.schedule, made.network(noisy, t, y), latents, noisy, t, eps)
    assert terms.variational is not None
    torch.testing.assert_close(found, {"simple": terms.simple, "vlb": terms.variational})
    unflipped = method(context(latents=Latents()), {"flip": False, "learn_sigma": False})
    other = unflipped.loss(TrainBatch(batch.image_ids, torch.zeros(4, 3, 32, 32), batch.labels, None, noise))
    assert set(other) == {"simple"}


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_label_maps_shrink_as_pillows_nearest_filter_does(factor: int) -> None:
    made = method()
    made.first_stage.factor = factor
    labels = torch.arange(32 * 48).reshape(1, 32, 48) % 10
    small = nearest(labels[0].numpy().astype(np.uint8), (32 // factor, 48 // factor))
    np.testing.assert_array_equal(made.condition(labels).argmax(1)[0].numpy(), small)


def test_a_training_shows_no_pictures_without_photographs() -> None:
    data: Any = None
    with pytest.raises(SisError, match=r"no style photographs to start from.*preview_every: 0"):
        method(fit={"preview_every": 5}).fit(data, data)


# Checkpoints


def test_a_released_checkpoint_comes_in_and_goes_out_under_its_own_names() -> None:
    shape = UNetConfig(width=32, multipliers=[1, 2], blocks=1, attention=[2])
    fit = shape.model_dump() | {"schedule": "linear"}
    net, where = SDMUNet(shape, 3, 11), Path("average.pkl")
    theirs = format_of_iidm.from_model(net.state_dict(), fit, where)
    assert "input_blocks.0.0.weight" in theirs and format_of_iidm.recognises(theirs)
    back = format_of_iidm.to_model(theirs, net, fit, where)
    assert back.keys() == net.state_dict().keys()
    assert all(torch.equal(back[k], v) for k, v in net.state_dict().items())
    assert format_of_iidm.describe(theirs)["label channels"] == 11
    with pytest.raises(SisError, match="latents of 3 channels, the run's autoencoder has 4"):
        format_of_iidm.to_model(theirs, SDMUNet(shape, 4, 11), fit, where)
    with pytest.raises(SisError, match="the authors' code has no network with groups: 8"):
        format_of_iidm.to_model(theirs, net, fit | {"groups": 8}, where)


def test_the_run_decides_whether_weights_are_iidms_or_sdms(tmp_path: Path) -> None:
    net = SDMUNet(UNetConfig(width=32, multipliers=[1, 2], blocks=1, attention=[2]), 3, 11)
    fit, file = net.config.model_dump(), tmp_path / "average.pt"
    write_weights(format_of_iidm.from_model(net.state_dict(), fit, file), file)
    assert inspect(file)["format"] == "iidm, sdm"
    target, model = Target("iidm", "id", "scenes_tiny", fit, 11), tmp_path / "model.safetensors"
    manifest = import_model(file, "not stated", net, target, model)
    assert manifest.meta["source"]["format"] == "iidm" and manifest.meta["method"] == "iidm"
