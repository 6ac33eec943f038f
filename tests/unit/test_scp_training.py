# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of SCP-Diff's ControlNet: which weights are trained, where they start, and by which loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_scp import FIT, SHAPE, SIZE, Latents, data, method
from torch import Tensor

from sis.methods.scp_diff import FitParams, SCPDiff
from sis.nets.latent.controlled import ControlledUNet
from sis.nets.latent.fine_tuning import start_from, unlock
from sis.nets.latent.stable_diffusion import SDConfig, controlnet, unet
from sis.training.loop import TrainingRun


def trained(made: SCPDiff, folder: Path) -> set[str]:
    """Names of the weights that a training changed, relative to where it began."""
    before: dict[str, Tensor] = {}

    def noted(batch: Any) -> Tensor:
        if not before:
            before.update({k: v.clone() for k, v in made.network.state_dict().items()})
        return SCPDiff.loss(made, batch)

    made.loss = noted  # type: ignore[method-assign]
    run = TrainingRun(folder, "k", 0, "cpu", "title")
    made.fit(data(), run)
    after = made.network.state_dict()
    assert all(torch.equal(run.average[k], after[k]) for k in after), "without an average the last weights are kept"
    return {k for k in after if not torch.equal(after[k], before[k])}


def test_fine_tuning_changes_the_controlnet_and_the_decoder_alone(tmp_path: Path) -> None:
    made = method()
    changed = trained(made, tmp_path)
    assert changed and not {k for k in changed if not k.startswith(
        ("controlnet.", "unet.up_blocks.", "unet.conv_norm_out.", "unet.conv_out.")
    )}  # fmt: skip
    assert {"controlnet.controlnet_mid_block.weight", "unet.conv_out.weight"} <= changed
    base = made.context.uses["base"].network.state_dict()
    own = made.network.unet.state_dict()
    kept = [k for k in own if not k.startswith(("up_blocks.", "conv_norm_out.", "conv_out."))]
    assert kept and all(torch.equal(own[k], base[k]) for k in kept), "what is not trained is the base model's"


def test_a_locked_decoder_stays_as_it_is(tmp_path: Path) -> None:
    made = method(FIT.model_copy(update={"locked": True}))
    assert all(k.startswith("controlnet.") for k in trained(made, tmp_path))
    own, base = (m.state_dict() for m in (made.network.unet, made.context.uses["base"].network))
    assert all(torch.equal(own[k], base[k]) for k in own)


def test_a_fresh_controlnet_changes_nothing() -> None:
    made = method()
    start_from(made.network, made.context.uses["base"].network)
    x, context, t = torch.randn(2, *SHAPE), torch.randn(2, 5, 8), torch.tensor([3, 700])
    with torch.no_grad():
        found = made.network(x, t, context, torch.rand(2, 3, *SIZE))
        alone = made.context.uses["base"].network(x, t, context, return_dict=False)[0]
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)


def test_lora_adapters_are_trained_on_the_base_models_weights(tmp_path: Path) -> None:
    made = method(FIT.model_copy(update={"locked": True, "lora_rank": 2}))
    changed = {k for k in trained(made, tmp_path) if k.startswith("unet.")}
    assert changed and all("lora_" in k for k in changed)
    own, base = made.network.unet.state_dict(), made.context.uses["base"].network.state_dict()
    plain = {k.replace(".base_layer.", "."): v for k, v in own.items() if "lora_" not in k}
    assert plain.keys() == base.keys() and all(torch.equal(plain[k], base[k]) for k in base)


def test_the_loss_is_the_error_of_the_noise_on_drawn_latents() -> None:
    made, seen = method(), []
    recipe = FIT.model_copy(update={"flip": True})
    made.fit_params = recipe
    batch = TrainingRun(Path(), "k", 1, "cpu", "title").batch(0, data(), recipe)

    def watched(x: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> Tensor:
        seen.append((x, t, context, hint))
        return torch.zeros_like(x)

    made.network = watched
    loss = made.loss(batch)
    [(x, t, context, hint)], noise = seen, batch.noise
    eps = noise.normal("eps", 0, SHAPE)
    torch.testing.assert_close(loss, (eps**2).flatten(1).mean(1))
    mirrored = noise.uniform("flip", 0, ()) < 0.5
    assert mirrored.any() and not mirrored.all()
    mean, std = Latents().of(batch.image_ids, mirrored)
    expected = made.schedule.q_sample(mean + std * noise.normal("latent", 0, SHAPE), t, eps)
    torch.testing.assert_close(x, expected)
    text = made.context.uses["text"].network
    assert torch.equal(context, text.of("train", 4))
    assert hint.shape == (4, 3, *SIZE) and torch.equal(hint, torch.from_numpy(made.palette / np.float32(255))[
        batch.labels
    ].permute(0, 3, 1, 2))  # fmt: skip


def test_dropped_prompts_are_the_negative_one() -> None:
    made, seen = method(FIT.model_copy(update={"drop_text": 0.6})), []

    def watched(x: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> Tensor:
        seen.append(context)
        return x

    made.network = watched
    made.loss(TrainingRun(Path(), "k", 0, "cpu", "title").batch(0, data(), FIT))
    text = made.context.uses["text"].network
    [context] = seen
    dropped = [torch.equal(c, text.of("negative", 1)[0]) for c in context]
    kept = [torch.equal(c, text.of("train", 1)[0]) for c in context]
    assert any(dropped) and any(kept) and [not k for k in kept] == dropped


def weights_after(recipe: FitParams, folder: Path) -> dict[str, Tensor]:
    made = method(recipe)
    made.fit(data(), TrainingRun(folder, "k", 0, "cpu", "title"))
    return made.network.state_dict()


def test_checkpointing_and_small_parts_train_the_same_and_bf16_nearly(tmp_path: Path) -> None:
    plain = weights_after(FIT, tmp_path / "plain")
    saving = {"checkpointing": True, "micro_batch": 2}
    spared = weights_after(FIT.model_copy(update=saving), tmp_path / "spared")
    narrow = weights_after(FIT.model_copy(update={"precision": "bf16"}), tmp_path / "narrow")
    name = "controlnet.controlnet_cond_embedding.conv_out.weight"
    assert plain[name].abs().max() > 0.01, "it began as zero"
    for key, value in plain.items():
        torch.testing.assert_close(spared[key], value, rtol=1e-3, atol=2e-3, msg=key)
    assert 0 < float((narrow[name] - plain[name]).abs().mean()) < 0.02


@pytest.mark.slow
def test_at_stable_diffusions_size_as_many_weights_are_trained_as_in_the_authors_code() -> None:
    with torch.device("meta"):
        network = ControlledUNet(unet(SDConfig()), controlnet(SDConfig()))
    unlock(network)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    alone = sum(p.numel() for p in network.controlnet.parameters())
    # Counted in the authors' networks: 364.2 million and 514.2 million.
    assert (round(alone / 1e6, 1), round((trained - alone) / 1e6, 1)) == (364.2, 514.2)
