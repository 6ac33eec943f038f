# SPDX-License-Identifier: Apache-2.0
"""The base model: what it learns on, what it samples, and what does not fit together."""

from __future__ import annotations

from typing import Any

import pytest
import small_latents
import torch
from small_latents import BASE, Latents, base, context, map_batch, noise, of, parts, train_batch
from torch import Tensor, nn

from sis.diffusion.pixels import to_uint8
from sis.errors import SisError
from sis.methods.latent_diffusion import LatentDiffusion
from sis.nets.latent.base import latent_size


class Recorder(nn.Module):
    """A network that answers x itself and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, context: Tensor, return_dict: bool) -> tuple[Tensor]:
        self.calls.append((x, t, context))
        return (x,)


def recorded(batch: int, latents: Latents, **fit: Any) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Any]:
    method = base(latents=latents, **fit)
    method.network = Recorder()
    loss = method.loss(train_batch(batch))
    return loss, method.network.calls[0], method


def test_the_loss_is_the_error_of_the_noise_on_drawn_latents() -> None:
    latents = Latents(deviation=0.5)
    loss, (x, t, _), _ = recorded(6, latents, drop_rate=0.0, flip=False)
    drawn = noise(6)
    mean, _ = Latents().of([i for i, _ in drawn.keys])
    latent = mean + 0.5 * drawn.normal("latent", 0, (4, 8, 8))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    bar = torch.cumprod(1 - betas, 0)[drawn.integers("t", 0, (), 1000)].float().reshape(-1, 1, 1, 1)
    eps = drawn.normal("eps", 0, (4, 8, 8))
    noisy = bar.sqrt() * latent + (1 - bar).sqrt() * eps
    assert latents.asked == [None] and torch.equal(t, drawn.integers("t", 0, (), 1000))
    assert torch.allclose(x, noisy, atol=1e-5) and len(t.unique()) > 3
    assert torch.allclose(loss, ((eps - noisy) ** 2).mean(dim=(1, 2, 3)), atol=1e-4)


def test_mirrored_latents_are_those_of_the_harness_toss() -> None:
    latents = Latents()
    recorded(32, latents)
    toss = noise(32).uniform("flip", 0, ()) < 0.5
    assert latents.asked[0] is not None and torch.equal(latents.asked[0], toss)
    assert 0 < int(toss.sum()) < 32


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_some_images_are_learnt_under_the_negative_prompt(rate: float) -> None:
    _, (_, _, told), method = recorded(64, Latents(), drop_rate=rate)
    text = method.context.uses["text"].network
    dropped = (told == text.of("negative", 64)).flatten(1).all(1)
    assert bool(((told == text.of("train", 64)).flatten(1).all(1) ^ dropped).all())
    assert 16 < int(dropped.sum()) < 48 if rate else not dropped.any()


def test_it_learns() -> None:
    method = base(latents=Latents())
    optimiser = torch.optim.Adam(method.network.parameters(), lr=0.005)
    losses = []
    for step in range(50):
        loss = method.loss(train_batch(4, seed=step)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


def test_images_are_ddims_on_latent_diffusions_grid_and_the_label_maps_do_not_matter() -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    method = base({"steps": 5})
    small_latents.stirred(method.network)
    method.network.eval()
    with torch.inference_mode():
        images = method.sample(map_batch(2), noise(2))
        assert torch.equal(images, method.sample(map_batch(2, seed=9), noise(2)))
        scheduler = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        )  # fmt: skip
        scheduler.set_timesteps(5)
        x = noise(2).normal("start", 0, (4, 8, 8))
        text = method.context.uses["text"].network.of("positive", 2)
        for t in scheduler.timesteps:
            x = scheduler.step(method.network(x, t, text).sample, int(t), x).prev_sample
        wanted = to_uint8(method.context.uses["autoencoder"].network.decode(x), ("a", "b"))
    assert images.dtype == torch.uint8 and images.shape == (2, 3, 32, 32) and images.float().std() > 1
    assert int((images.int() - wanted.int()).abs().max()) <= 1


def test_half_precision_is_close_and_answers_float32() -> None:
    exact, half = base({"steps": 5}), base({"steps": 5, "dtype": "bfloat16"})
    x, t = noise(2).normal("x", 0, (4, 8, 8)), torch.full((2,), 400)
    with torch.inference_mode():
        wanted, found = (m.denoiser(2)(x, t).eps for m in (exact, half))
    assert found.dtype == torch.float32 and not torch.equal(found, wanted)
    assert torch.allclose(found, wanted, atol=0.05)


def test_parts_that_do_not_fit_one_another_are_refused_before_anything_is_computed() -> None:
    def refusal(fit: dict[str, Any], **of_parts: Any) -> str:
        with pytest.raises(SisError) as caught:
            of(LatentDiffusion, context(parts(**of_parts)), BASE | fit)
        return str(caught.value)

    told = refusal({"prediction_type": "v_prediction"})
    assert "predicts v_prediction" in told and "use SD 2.1-base (512 pixels) or SD 1.5" in told
    told = refusal({}, text_width=12)
    assert "text embeddings are 12 wide, the base model reads 8" in told and "sis embed-prompts" in told
    assert "latents have 4 channels, the base model reads 3 and answers 4" in refusal({"in_channels": 3})
    deep = {"block_out_channels": [8] * 5, "heads": [1] * 5}
    assert "cannot halve latents of 8x8" in refusal(deep)
    method = base()
    with pytest.raises(SisError, match="factor 4 cannot encode images of 30x32"):
        latent_size(
            method.fit_params, method.context.uses["autoencoder"].network, method.context.uses["text"].network, (32, 30)
        )
