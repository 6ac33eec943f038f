# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion's networks against ControlNet's code and against diffusers: residuals, noise, moments, a chain.

Weights follow from the names in the file (rule in each case.json) and come in through the importers of checkpoints.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runners import Case, Data, Found, named, names
from runners.scp_chains import CHAIN, denoiser, near, run
from runners.sdm_network import generated_state
from sis.checkpoints import control_ldm, ldm_vae
from sis.diffusion.noise import Noise
from sis.diffusion.schedule import Schedule, scaled_linear
from sis.nets.latent.controlled import ControlledUNet
from sis.nets.latent.kl import KLConfig, KLFirstStage
from sis.nets.latent.stable_diffusion import HINT_CHANNELS, SDConfig, config_of, controlnet, unet

#: Float32 sums in another order, through one network (absolute, relative); through the autoencoder.
FORWARD, AUTOENCODER = (1e-5, 1e-5), (2e-5, 1e-5)
#: What diffusers' scheduler must say for its chain to be latent diffusion's.
_SCHEDULER = {"beta_schedule": "scaled_linear", "timestep_spacing": "leading", "steps_offset": 1, "clip_sample": False,
              "set_alpha_to_one": False, "prediction_type": "epsilon", "rescale_betas_zero_snr": False,
              "thresholding": False, "trained_betas": None}  # fmt: skip


@torch.no_grad()
def cldm_controlnet(case: Case, data: Data) -> Found:
    flags, tensors = case["config"], inputs(case, data)
    config = authors_config(flags)
    network = filled(ControlledUNet(unet(config), controlnet(config, HINT_CHANNELS, flags["hint_channels"])), case)
    x, t, context, hint = (tensors[name] for name in ("x", "t", "context", "hint"))
    embedded = network.embed_hint(hint)
    found = {
        "hint_embedding": embedded,
        "eps": network(x, t, context, embedded),
        "eps_no_control": network(x, t, context),
        **controls(network, tensors),
    }
    for name in outputs(case, data):
        if name.startswith("eps_control_scale_"):
            found[name] = network(x, t, context, embedded, strength=scale_of(name))
    return {name: near(value, FORWARD) for name, value in found.items()}


def authors_config(flags: dict[str, Any]) -> SDConfig:
    """The shape that the options of ControlNet's configuration files name; the ones left out have its defaults."""
    known = {"use_spatial_transformer": True, "dims": 2, "conv_resample": True}
    assert all(flags.get(name, value) == value for name, value in known.items()), "no network of Stable Diffusion"
    channels = [flags["model_channels"] * multiplier for multiplier in flags.get("channel_mult", [1, 2, 4, 8])]
    width, blocks = flags.get("num_head_channels", -1), flags["num_res_blocks"]
    heads = [flags["num_heads"] if width == -1 else c // width for c in channels]
    return SDConfig(
        in_channels=flags["in_channels"],
        out_channels=flags["out_channels"],
        block_out_channels=channels,
        layers_per_block=blocks if isinstance(blocks, int) else blocks[0],
        attention=sorted(f for f in flags["attention_resolutions"] if f < 2 ** len(channels)),
        heads=heads,
        transformer_layers=flags.get("transformer_depth", 1),
        cross_attention_dim=flags["context_dim"],
        linear_projection=flags.get("use_linear_in_transformer", False),
    )


@torch.no_grad()
def diffusers_controlnet(case: Case, data: Data) -> Found:
    options, tensors = case["config"], inputs(case, data)
    config, branch = config_of(options["unet"]), options["controlnet"]
    hints = branch.get("conditioning_embedding_out_channels", HINT_CHANNELS)
    network = filled(
        ControlledUNet(unet(config), controlnet(config, hints, branch.get("conditioning_channels", 3))), case
    )
    x, t, context, hint = (tensors[name] for name in ("x", "t", "context", "hint"))
    found = {"eps": network(x, t, context, hint), "eps_no_control": network(x, t, context)}
    found |= controls(network, tensors)
    for name in outputs(case, data):
        if name.startswith("control_mid_scale_"):
            found[name] = scale_of(name) * network.residuals(x, t, context, hint)[-1]
    full, chain = schedules(options["scheduler"], data["timesteps"])
    prior = tensors["prior_mean"] + tensors["prior_std"] * tensors["noise_prior"]
    level = torch.full((len(x),), level_of(case, chain))
    start = full.q_sample(prior, level, tensors["noise_forward"])
    keys = Noise(0, tuple((str(i), 0) for i in range(len(x))))
    steps = run(denoiser(network, data, options["guidance_scale"]), chain, start, keys, eta=0.0)
    return {
        **{name: near(value, FORWARD) for name, value in found.items()},
        "x_start": near(start, FORWARD),
        "timesteps": chain.timesteps[::-1].copy(),
        "trajectory": near(torch.stack(steps), CHAIN),
    }


def schedules(options: dict[str, Any], timesteps: np.ndarray) -> tuple[Schedule, Schedule]:
    """The whole schedule that diffusers' options name, and the chain on its grid that begins at the first timestep."""
    assert all(options.get(name, value) == value for name, value in _SCHEDULER.items()), "another chain"
    full = scaled_linear(options["num_train_timesteps"], options["beta_start"], options["beta_end"])
    stride = int(timesteps[0] - timesteps[1]) if len(timesteps) > 1 else len(full)
    grid = full.leading(len(full) // stride)
    return full, grid.up_to(int(np.sum(grid.timesteps <= timesteps[0])))


def level_of(case: Case, chain: Schedule) -> int:
    """The level that a case's start is noised to: a note says it; upstream's is two below the first step."""
    said = re.search(r"abar_(\d+)", " ".join(case["notes"]))
    return int(said[1]) if said else int(chain.timesteps[-1]) - 2


@torch.no_grad()
def vae(case: Case, data: Data) -> Found:
    options, tensors = case["config"], inputs(case, data)
    config = KLConfig(
        block_out_channels=[options["vae_ch"] * multiplier for multiplier in options["vae_ch_mult"]],
        layers_per_block=options["vae_res_blocks"],
        latent_channels=options["embed_dim"],
        scale=options["scale_factor"],
    )
    network = KLFirstStage(config).eval()
    weights = generated_state(case["keys"])
    network.load_state_dict(ldm_vae.to_model(weights, network, config.model_dump(), Path("golden")))
    mean, log_variance = network.posterior(tensors["image"])
    scaled, deviation = network.moments(tensors["image"])
    latent = scaled + deviation * tensors["noise"]
    found = {
        "mean": mean,
        "logvar": log_variance,
        "latent": latent,
        "latent_mode": scaled,
        "decoded": network.decode(latent),
    }
    return {name: near(value, AUTOENCODER) for name, value in found.items()}


def filled(network: ControlledUNet, case: Case) -> ControlledUNet:
    """The network with the weights that the case's names generate, through the importer."""
    weights = generated_state(case["keys"])
    network.load_state_dict(control_ldm.to_model(weights, network, {}, Path("golden")))
    return network.eval()


def controls(network: ControlledUNet, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The ControlNet's residuals by their names in a case."""
    residuals = network.residuals(tensors["x"], tensors["t"], tensors["context"], tensors["hint"])
    return {f"control_{place:02d}": value for place, value in enumerate(residuals)}


def scale_of(name: str) -> float:
    """The factor that ends an output's name: `_05` is 0.5, `_07` is 0.7, `_15` is 1.5."""
    digits = name.rsplit("_", 1)[1]
    return float(f"{digits[0]}.{digits[1:] or '0'}")


def inputs(case: Case, data: Data) -> dict[str, Tensor]:
    return {name: torch.from_numpy(data[name]) for name in names(case["inputs"])}


def outputs(case: Case, data: Data) -> list[str]:
    return [name for entry in names(case["outputs"]) for name in named(entry, data)]
