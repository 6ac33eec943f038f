# SPDX-License-Identifier: Apache-2.0
"""SCP-Diff's truncation, chains and fine-tuning step against the authors' (AIR-DISCOVER/SCP-Diff-Toolkit)."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runners import Case, Data, Found, Near, names
from runners.sdm_network import generated_state
from runners.sdm_training import NoRecords, relative
from sis.checkpoints.ldm_names import unet_names
from sis.checkpoints.ldm_pieces import filled, pieces
from sis.config.files import label_space
from sis.config.recipe import Recipe
from sis.data.training_data import TrainingData
from sis.diffusion import samplers
from sis.diffusion.denoiser import Denoiser, Prediction
from sis.diffusion.latent_chain import batched_guided, noised_prior
from sis.diffusion.noise import Noise
from sis.diffusion.schedule import Schedule, scaled_linear
from sis.diffusion.truncation import released_count, truncated
from sis.errors import SisError
from sis.nets.latent.controlled import ControlledUNet
from sis.nets.latent.fine_tuning import noise_error, unlock
from sis.nets.latent.kl import KLConfig, KLFirstStage
from sis.nets.latent.stable_diffusion import config_of, controlnet, unet
from sis.training.loop import TrainBatch, TrainingRun

#: Float32 through a whole chain, and through one network (both suggested with the cases).
CHAIN, FORWARD = (1e-4, 1e-3), 1e-5
#: Steps and levels of float32 tables; grey levels of a picture that is truncated there and rounded here.
TABLE, GREY = 1e-6, 1
#: A weight after AdamW's first step moves by about the learning rate, whatever its gradient is.
WEIGHT = 0.05


def ddim_truncation(case: Case, data: Data) -> Found:
    total = case["config"].get("timesteps", 1000)
    rows = [(steps, level, *_run(steps, level, total)) for steps, level in data["query"].tolist()]
    return {"table": np.array(rows)}


def _run(steps: int, level: int, total: int) -> tuple[int, int]:
    """How many steps the release runs and the first of them; -1 where it fails."""
    try:
        grid = scaled_linear(total).leading(steps, exact=False)
        count = released_count(grid.timesteps, level, total)
    except SisError:
        return -1, -1
    return count, int(grid.timesteps[count - 1]) if count else -1


def ddim_joint(case: Case, data: Data) -> Found:
    """Chains are called by the number of their grid's steps; the one with a trajectory runs all of them."""
    config = case["config"]
    state = generated_state(case["keys"])
    network, first_stage = controlled(config, state), autoencoder(config["diffusers_vae"], state)
    full, level, outputs = schedule_of(config), config["diffusion_steps"], names(case["outputs"])
    mean, std = (torch.from_numpy(data[name]) for name in ("map_mean", "map_std"))
    count = len(data["noise_prior"])
    stored = Stored({"prior": data["noise_prior"], "start": data["noise_forward"]}, count)
    start = noised_prior(full, level, mean.expand(count, -1, -1, -1), std.expand(count, -1, -1, -1), stored)
    found: dict[str, NDArray | Near] = {"x_start": near(start, (1e-5, 1e-5))}
    guided, alone = (denoiser(network, data, scale) for scale in (config["guidance_scale"], 1.0))
    for steps in sorted({int(n) for name in outputs for n in re.findall(r"^timesteps_(\d+)$", name)}):
        grid, mu = full.leading(steps, exact=False), (level + 1) / len(full)
        whole = f"trajectory_{steps}" in outputs
        chain = grid if whole else truncated(grid, mu, len(full), "release").chain
        latents = run(guided, chain, start, stored, config["eta"])
        found |= chain_facts(str(steps), chain, latents)
        found[f"ddim_alphas_{steps}"] = Near(grid.alphas_cumprod, TABLE)
        found[f"ddim_alphas_prev_{steps}"] = Near(grid.alphas_cumprod_prev, TABLE)
        if whole:
            found[f"trajectory_{steps}"] = near(torch.stack(latents), CHAIN)
            found[f"image_{steps}"] = Near(pictures(first_stage, latents[-1]), GREY)
            unguided = run(alone, chain, start, stored, config["eta"])
            found[f"latent_{steps}_noguidance"] = near(unguided[-1], CHAIN)
        else:
            chain = truncated(grid, 1.0, len(full), "release").chain
            latents = run(guided, chain, torch.from_numpy(data["noise_normal"]), stored, config["eta"])
            found |= chain_facts("normal_upstream", chain, latents)
    return found


def chain_facts(name: str, chain: Schedule, latents: list[Tensor]) -> dict[str, NDArray | Near]:
    return {f"timesteps_{name}": chain.timesteps[::-1], f"latent_{name}": near(latents[-1], CHAIN)}


class Stored(Noise):
    """The noise that a case stores, by purpose."""

    def __init__(self, arrays: dict[str, NDArray], count: int) -> None:
        super().__init__(0, tuple((str(i), 0) for i in range(count)))
        object.__setattr__(self, "arrays", arrays)

    def normal(self, purpose: str, step: int, shape: Any) -> Tensor:
        return torch.from_numpy(self.arrays[purpose])  # type: ignore[attr-defined]


def schedule_of(config: dict[str, Any]) -> Schedule:
    """The full schedule that a case names."""
    return scaled_linear(
        config.get("timesteps", 1000), config.get("linear_start", 0.00085), config.get("linear_end", 0.012)
    )


def controlled(config: dict[str, Any], state: dict[str, Tensor]) -> ControlledUNet:
    """The networks that a case describes, with the authors' weights."""
    found = pieces(state)
    shape = config_of(config["diffusers_unet"])
    hints = config["diffusers_controlnet"]["conditioning_embedding_out_channels"]
    network = ControlledUNet(unet(shape), controlnet(shape, hints))
    network.unet.load_state_dict(filled(found["unet"], network.unet.state_dict(), None))
    network.controlnet.load_state_dict(filled(found["controlnet"], network.controlnet.state_dict(), None))
    return network.eval()


def autoencoder(options: dict[str, Any], state: dict[str, Tensor]) -> KLFirstStage:
    attends = [kind.startswith("Attn") for kind in options["down_block_types"]]
    config = KLConfig(
        attention=[2**level for level, yes in enumerate(attends) if yes],
        block_out_channels=options["block_out_channels"],
        latent_channels=options["latent_channels"],
        layers_per_block=options["layers_per_block"],
        norm_groups=options["norm_num_groups"],
        scale=options["scaling_factor"],
    )
    found = KLFirstStage(config).eval()
    found.autoencoder.load_state_dict(filled(pieces(state)["vae"], found.autoencoder.state_dict(), None))
    return found


def denoiser(network: ControlledUNet, data: Data, scale: float) -> Denoiser:
    with torch.no_grad():
        hint = network.embed_hint(torch.from_numpy(data["hint"]))
    context, negative = (torch.from_numpy(data[name]) for name in ("context", "context_negative"))
    return batched_guided(network, context, negative, hint, scale)


@torch.no_grad()
def run(denoise: Denoiser, chain: Schedule, x: Tensor, noise: Noise, eta: float) -> list[Tensor]:
    """The latent after each step of a chain."""
    seen: list[Tensor] = []

    def watched(x: Tensor, t: Tensor) -> Prediction:
        seen.append(x)
        return denoise(x, t)

    last = samplers.ddim(watched, chain, x, noise, eta, clip=False)
    return [*seen[1:], last]


@torch.no_grad()
def pictures(first_stage: KLFirstStage, latents: Tensor) -> NDArray:
    """Decoded images `(b, h, w, 3)`, truncated to bytes as in the release."""
    images = (first_stage.decode(latents) * 127.5 + 127.5).clamp(0, 255)
    return images.to(torch.uint8).permute(0, 2, 3, 1).numpy()


def near(values: Tensor, tolerance: tuple[float, float]) -> Near:
    return Near(values.numpy(), *tolerance)


def train_step(case: Case, data: Data) -> Found:
    config = case["config"]
    network = controlled(config, generated_state(case["keys"]))
    unlock(network, locked=config["sd_locked"])
    theirs = upstream_names(network)
    ours = {theirs[name]: name for name in theirs}
    trainable = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert {theirs[name] for name in trainable} == set(case["trainable"]), "other weights are trained there"
    tensors = {name: torch.from_numpy(data[name]) for name in names(case["inputs"])}
    losses: list[Tensor] = []

    def loss(batch: TrainBatch) -> Tensor:
        latent, t, eps = (tensors[name] for name in ("latent", "t", "noise"))
        full = schedule_of(config)
        losses.append(noise_error(network, full, latent, t, eps, tensors["context"], tensors["hint"]))
        return losses[0]

    [decay] = re.findall(r"weight_decay ([0-9.]+)", config["optimizer"])
    recipe = Recipe(
        steps=1, batch_size=len(data["t"]), learning_rate=config["lr"], weight_decay=float(decay), ema=0, flip=False
    )
    ids = [str(i) for i in range(recipe.batch_size)]
    images = TrainingData(ids, (8, 8), label_space("scenes"), NoRecords(), instances=False, augmented=False)
    with TemporaryDirectory() as folder:
        TrainingRun(Path(folder), "golden", 0, "cpu", "golden").optimise(network, loss, images, recipe)
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    norms = np.array([float(gradients[ours[name]].norm()) for name in case["trainable"]])
    found: dict[str, NDArray | Near] = {
        "loss": Near(losses[0].detach().mean().numpy(), FORWARD),
        # A bias that a norm cancels has no gradient but rounding.
        "grad_norms": Near(norms, 1e-6 * float(norms.max()), 1e-3),
    }
    weights = network.state_dict()
    for number, name in enumerate(chosen(case)):
        found[f"grad_{number}"] = relative(gradients[ours[name]])
        found[f"param_after_{number}"] = Near(weights[ours[name]].numpy(), WEIGHT * config["lr"], 2.4e-7)
    return found


def upstream_names(network: ControlledUNet) -> dict[str, str]:
    """The authors' name of each of our parameters."""
    prefixes = {"unet": "model.diffusion_model.", "controlnet": "control_model."}
    return {
        f"{part}.{name}": prefix + theirs
        for part, prefix in prefixes.items()
        for name, theirs in unet_names(getattr(network, part).state_dict()).items()
    }


def chosen(case: Case) -> list[str]:
    """The tensors whose gradients and new weights a case stores: a note of it names them."""
    for note in case["notes"]:
        head, colon, tail = note.partition(" are for: ")
        if colon and head.startswith("grad_i"):
            return [name.strip() for name in tail.split(";")[0].split(",")]
    raise AssertionError("no note says which tensors grad_i are of")
