# SPDX-License-Identifier: Apache-2.0
"""SCP-Diff on tiny networks: what priors are made of, where chains start, what they call, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_scp import BASE, COUNT, IDS, SHAPE, SIZE, SPACE, Latents, awake, data, method, parts, photograph
from torch import Tensor

from sis.diffusion.noise import Noise
from sis.errors import SisError
from sis.methods.contract import MapBatch
from sis.methods.discovery import method_info
from sis.methods.scp_diff import FitParams, SampleParams, SCPDiff
from sis.priors.files import prior_tensors, read_prior
from sis.priors.labels import latent_labels


@pytest.fixture(scope="module")
def statistics() -> dict[str, Tensor]:
    return method().prior(data())


MAPS = MapBatch(("a", "b"), (0, 0), torch.zeros(2, *SIZE, dtype=torch.int64), torch.zeros(2, *SIZE, dtype=torch.int64))
MAPS.labels[:, 8:] = 2
MAPS.labels[1, :, 4:] = 3
NOISE = Noise(0, (("a", 0), ("b", 0)))


@torch.inference_mode()
def painted(made: SCPDiff, maps: MapBatch = MAPS, noise: Noise = NOISE) -> Tensor:
    return made.sample(maps, noise)


def test_the_workflow_reads_what_the_class_says() -> None:
    info = method_info("scp_diff")
    assert info.trains and info.has_prior and info.role == "contestant" and info.latents == "autoencoder"
    assert info.uses == SCPDiff.USES and not info.mirrored and info.prior_of_latents
    assert info.shows_photographs({"prior": "x0"}) and not info.shows_photographs({"prior": "joint"})


def test_the_defaults_are_the_papers() -> None:
    fit, how = FitParams(), SampleParams()
    assert (fit.learning_rate, fit.batch_size, fit.weight_decay, fit.steps) == (1e-5, 16, 0.01, 100_000)
    assert (fit.ema, fit.flip, fit.locked, fit.drop_text, fit.lora_rank) == (0, False, False, 0, 0)
    assert (how.prior, how.mu, how.truncation, how.steps, how.eta) == ("joint", 0.8, "fixed", 20, 0)
    assert (how.fallback, how.min_count, how.shrinkage, how.temperature) == ("class", 1, 0, 1)


def test_the_prior_holds_the_moments_of_the_training_latents(statistics: dict[str, Tensor]) -> None:
    prior, facts = read_prior(statistics)
    mean, _ = Latents().of(IDS)
    labels = latent_labels(data().batch(range(COUNT)).labels, SHAPE[1:])
    assert prior.shape == SHAPE and facts.count == COUNT and facts.autoencoder == Latents.autoencoder
    torch.testing.assert_close(prior.spatial.mean[0], mean.mean(0))
    of_0 = torch.from_numpy(labels) == 0
    tokens = mean.movedim(1, -1)[of_0]
    torch.testing.assert_close(prior.categorical.mean[0, :, 0, 0], tokens.mean(0))
    torch.testing.assert_close(prior.categorical.std[0, :, 0, 0], tokens.std(0, correction=0))
    assert prior.joint.count[2, 5, 5] == 1 and prior.joint.count[2, 1, 1] == 0


PRIORS = ["normal", "spatial", "categorical", "joint", "x0"]


def photographs() -> Any:
    by_id = {"a": SimpleNamespace(image=photograph(11)), "b": SimpleNamespace(image=photograph(12))}
    return SimpleNamespace(by_id=by_id.__getitem__)


def test_each_prior_draws_other_images_and_the_same_ones_again(statistics: dict[str, Tensor]) -> None:
    made = {k: awake({"prior": k}, prior=statistics, pairs=photographs()) for k in PRIORS}
    images = {k: painted(m) for k, m in made.items()}
    assert all(i.shape == (2, 3, *SIZE) and i.dtype == torch.uint8 for i in images.values())
    assert len({i.numpy().tobytes() for i in images.values()}) == len(PRIORS)
    assert torch.equal(painted(made["joint"]), images["joint"])
    other = MapBatch(("b", "a"), (0, 0), MAPS.labels.flip(0), MAPS.instances)
    turned = painted(made["joint"], other, Noise(0, (("b", 0), ("a", 0)))).flip(0)
    assert (turned.int() - images["joint"].int()).abs().max() <= 1, "an image does not depend on its place in the batch"


def test_chains_start_from_the_noised_prior(statistics: dict[str, Tensor]) -> None:
    made = awake({"steps": 20}, prior=statistics)
    chain, x = made.start(MAPS, NOISE)
    assert chain.timesteps.tolist() == list(range(1, 802, 50))
    prior, _ = read_prior(statistics)
    mean, std = prior.maps(torch.from_numpy(latent_labels(MAPS.labels, SHAPE[1:])), "joint")
    bar = float(made.schedule.alphas_cumprod[801])
    x_prior = mean + std * NOISE.normal("prior", 0, SHAPE)
    torch.testing.assert_close(x, bar**0.5 * x_prior + (1 - bar) ** 0.5 * NOISE.normal("start", 0, SHAPE))


def test_normal_noise_starts_at_the_beginning_whatever_mu_is() -> None:
    made = awake({"prior": "normal", "steps": 20, "mu": 0.3})
    chain, x = made.start(MAPS, NOISE)
    assert chain.timesteps[-1] == 951 and torch.equal(x, NOISE.normal("start", 0, SHAPE))
    off_by_one = awake({"prior": "normal", "steps": 20, "truncation": "release"}).start(MAPS, NOISE)
    assert off_by_one[0].timesteps[-1] == 901 and torch.equal(off_by_one[1], x)


def test_x0_starts_from_the_photographs_latents() -> None:
    made = awake({"prior": "x0", "mu": 0.4, "steps": 20}, pairs=photographs())
    chain, x = made.start(MAPS, NOISE)
    images = torch.from_numpy(np.stack([photograph(11), photograph(12)])).permute(0, 3, 1, 2) / 127.5 - 1
    mean, _ = made.context.uses["autoencoder"].network.moments(images)
    expected = made.schedule.q_sample(mean, torch.tensor([401, 401]), NOISE.normal("start", 0, SHAPE))
    torch.testing.assert_close(x, expected)
    assert chain.timesteps[-1] == 401


class Counted:
    """Calls of a network: batch sizes, hints and prompts."""

    def __init__(self, made: SCPDiff, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Tensor, ...]] = []
        self.embedded = 0
        forward, embed = made.network.forward, made.network.embed_hint

        def counted(x: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> Tensor:
            self.calls.append((x, t, context, hint))
            return forward(x, t, context, hint)

        def counting(hint: Tensor) -> Tensor:
            self.embedded += 1
            return embed(hint)

        monkeypatch.setattr(made.network, "forward", counted)
        monkeypatch.setattr(made.network, "embed_hint", counting)


def test_guidance_is_one_call_a_step_and_the_hint_is_embedded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = awake({"prior": "normal", "guidance": 3.0})
    counted = Counted(made, monkeypatch)
    painted(made)
    assert len(counted.calls) == 5 and counted.embedded == 1
    text = made.context.uses["text"].network
    for x, t, context, hint in counted.calls:
        assert x.shape[0] == t.shape[0] == 4 and torch.equal(x[:2], x[2:])
        assert torch.equal(context, torch.cat([text.of("positive", 2), text.of("negative", 2)]))
        assert torch.equal(hint[:2], hint[2:]) and hint.shape[1:] == (8, 8, 8), "the same embedding in both branches"


def test_batched_guidance_equals_two_calls() -> None:
    made = awake({"prior": "normal", "guidance": 3.0})
    text, x, t = made.context.uses["text"].network, torch.randn(2, *SHAPE), torch.tensor([801, 801])
    with torch.inference_mode():
        found = made.denoiser(MAPS.labels)(x, t).eps
        hint = torch.from_numpy(made.palette / np.float32(255))[MAPS.labels].permute(0, 3, 1, 2)
        conditional, null = (made.network(x, t, text.of(p, 2), hint) for p in ("positive", "negative"))
        alone = awake({"guidance": 1.0}).denoiser(MAPS.labels)(x, t).eps
    assert (conditional - null).abs().max() > 1e-3
    torch.testing.assert_close(found, null + 3 * (conditional - null), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone, conditional, rtol=1e-5, atol=1e-6)


def test_a_narrow_type_is_close_and_leaves_the_weights_alone(statistics: dict[str, Tensor]) -> None:
    made = awake({"dtype": "bfloat16"}, prior=statistics)
    near = (painted(made).float() - painted(awake(prior=statistics)).float()).abs()
    assert near.max() > 0 and near.mean() < 4, "grey levels"
    assert {p.dtype for p in made.network.parameters()} == {torch.float32}
    assert made.working(torch.device("cpu")).dtype == torch.bfloat16


@pytest.mark.slow
@torch.inference_mode()
def test_the_traced_network_gives_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []

    def kept(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        traced.append(graph)
        return graph.forward

    # The graph that torch traces, run as it is: writing machine code for it takes minutes.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=kept))
    x, t = torch.randn(2, *SHAPE), torch.tensor([801, 801])
    plain, fused = (awake({"compiled": c}).denoiser(MAPS.labels)(x, t).eps for c in (False, True))
    assert traced
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)


def test_the_release_drops_the_decimals_of_pixels(statistics: dict[str, Tensor]) -> None:
    rounded = painted(awake({"prior": "spatial"}, prior=statistics)).int()
    cut = painted(awake({"prior": "spatial", "fidelity": "release"}, prior=statistics)).int()
    assert set((rounded - cut).unique().tolist()) == {0, 1}


def test_the_release_lets_void_stand_for_classes_never_seen(statistics: dict[str, Tensor]) -> None:
    prior, facts = read_prior({name: value.clone() for name, value in statistics.items()})
    seen = prior.categorical.count.flatten() > 0
    assert not seen[SPACE.width - 1] and SPACE.void is not None
    prior.categorical.count[-1], prior.categorical.mean[-1] = 9, 5.0
    made = awake({"prior": "categorical", "fidelity": "release"}, prior=prior_tensors(prior, facts))
    maps = MapBatch(MAPS.image_ids, (0, 0), torch.full_like(MAPS.labels, SPACE.count - 1), MAPS.instances)
    _, x = made.start(maps, NOISE)
    bar = float(made.schedule.alphas_cumprod[801])
    torch.testing.assert_close(x, bar**0.5 * 5 + (1 - bar) ** 0.5 * NOISE.normal("start", 0, SHAPE))


def refused(message: str, build: Callable[[], object]) -> None:
    with pytest.raises(SisError, match=message):
        build()


def test_what_does_not_fit_is_refused_by_name(statistics: dict[str, Tensor]) -> None:
    refused("halve a hint 3 times", lambda: method(FitParams()))
    velocity = BASE.model_copy(update={"prediction_type": "v_prediction"})
    refused("predicts v_prediction", lambda: method(uses=parts(velocity)))
    refused("embeddings are 6 wide, the base model reads 8", lambda: method(uses=parts(width=6)))
    refused("needs statistics of the training set", lambda: painted(awake()))
    refused("real photographs, which are not here", lambda: painted(awake({"prior": "x0"})))
    refused("lacks 'facts'", lambda: painted(awake(prior={"colours": torch.zeros(3)})))
    prior, facts = read_prior(statistics)
    other = prior_tensors(prior, facts.model_copy(update={"dataset": "elsewhere"}))
    refused("prior of another dataset", lambda: painted(awake(prior=other)))
    larger = prior_tensors(prior, facts.model_copy(update={"size": [32, 32]}))
    refused("prior of another resolution: 32x32", lambda: painted(awake(prior=larger)))


def test_an_answer_that_is_not_finite_is_refused(statistics: dict[str, Tensor]) -> None:
    made = awake(prior=statistics)
    with torch.no_grad():
        made.network.unet.conv_out.bias.fill_(float("inf"))
    refused("not finite at step t = 801", lambda: painted(made))
