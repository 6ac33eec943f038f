# SPDX-License-Identifier: Apache-2.0
"""IIDM's network, schedule, chains and colour transfer against the authors' (ader47/jittor-jieke-...-synthesis).

Weights follow from the upstream key names (rule in each case.json) and come in through the importers of the authors'
checkpoints, by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runners import Case, Data, Found, Near, names
from runners.conditions import ids
from runners.iidm_first_stage import vq_config
from runners.sdm_mathematics import scale_of, stored
from runners.sdm_network import generated_state
from sis.checkpoints.sdm import import_sdm
from sis.checkpoints.vqgan import to_model
from sis.data.lab8 import lab8_of_rgb
from sis.diffusion import losses, samplers, schedule
from sis.diffusion.between_rounds import truncated
from sis.diffusion.colour_transfer import lab8_statistics, reinhard_lab, reinhard_lab8
from sis.diffusion.denoiser import Denoiser, Prediction, guided, network_denoiser
from sis.diffusion.schedule import Schedule
from sis.diffusion.style_start import Start, StepRule, denoised, noised
from sis.nets.condition import condition
from sis.nets.latent.first_stage import network_input
from sis.nets.latent.vq import VQFirstStage
from sis.nets.sdm_unet import Attention, SDMUNet, UNetConfig, timestep_embedding

#: Sums of double precision in another order, relative; float32 on values of about one; through a network; a chain.
DOUBLE, SINGLE, OUTPUT, CHAIN = 1e-11, 1e-5, 1e-4, 1e-4


def chain_of(spacing: str, steps: int = 1000, name: Any = "linear") -> Schedule:
    """The respaced schedule that a case names; empty for all steps."""
    full = schedule.named(name, steps)
    return full.respaced(spacing) if spacing else full


def network(config: dict[str, Any], keys: dict[str, list[int]]) -> SDMUNet:
    """The U-Net of a case, its generated weights brought in by the importer."""
    assert config.get("use_scale_shift_norm", True) and config.get("resblock_updown", True)
    heads, shape = (
        config.get("num_head_channels", -1),
        UNetConfig(
            width=config["model_channels"],
            multipliers=list(config["channel_mult"]),
            blocks=config["num_res_blocks"],
            attention=list(config["attention_resolutions"]),
            head_channels=max(1, config.get("num_head_channels", -1)),
            learn_sigma=config["out_channels"] == 2 * config["in_channels"],
        ),
    )
    net = SDMUNet(shape, config["in_channels"], config["num_classes"])
    net.load_state_dict(import_sdm(generated_state(keys), net))
    if heads == -1:  # so many heads at every level instead, which shapes do not tell
        for attention in (module for module in net.modules() if isinstance(module, Attention)):
            attention.heads = config["num_heads"]
    return net.eval()


def unet(case: Case, data: Data) -> Found:
    config = case["config"]
    net, y = network(config, case["keys"]), condition(ids(data["label"]), config["num_classes"])
    x, t = torch.from_numpy(data["x"]), torch.from_numpy(data["t"]).long()
    with torch.inference_mode():
        found = {"out_cond": net(x, t, y), "out_uncond": net(x, t, torch.zeros_like(y))}
    found["temb"] = timestep_embedding(t, config["model_channels"])
    return {name: Near(value.numpy(), OUTPUT) for name, value in found.items()}


def schedules(case: Case, data: Data) -> Found:
    config, found = case["config"], dict[str, "NDArray | Near"]()
    for number, spacing in enumerate(config["timestep_respacing"]):
        chain = chain_of(spacing, config["steps"], config["noise_schedule"])
        of_start, of_current = chain.posterior_coefficients
        arrays = {
            "betas": chain.betas,
            "alphas_cumprod": chain.alphas_cumprod,
            "alphas_cumprod_prev": chain.alphas_cumprod_prev,
            "posterior_variance": chain.posterior_variance,
            "posterior_log_variance_clipped": chain.posterior_log_variance_clipped,
            "posterior_mean_coef1": of_start,
            "posterior_mean_coef2": of_current,
            "sqrt_recip_alphas_cumprod": 1 / np.sqrt(chain.alphas_cumprod),
            "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / chain.alphas_cumprod - 1),
        }
        found[f"s{number}_timestep_map"] = chain.timesteps
        found |= {f"s{number}_{key}": Near(array, DOUBLE, DOUBLE) for key, array in arrays.items()}
    return found


def q_sample(case: Case, data: Data) -> Found:
    x0, noise = torch.from_numpy(data["x0"]), torch.from_numpy(data["noise"])
    found: dict[str, NDArray | Near] = {}
    for number, given in enumerate(case["config"]["sets"]):
        noisy = chain_of(given["timestep_respacing"]).q_sample(x0, torch.tensor(given["t"]), noise)
        found[f"xt{number}"] = Near(noisy.numpy(), 1e-6)
    return found


@dataclass(frozen=True)
class StoredNoise:
    """Noise that the authors drew: the same at every step."""

    drawn: Tensor

    def normal(self, purpose: str, step: int, shape: tuple[int, ...]) -> Tensor:
        return self.drawn


@dataclass
class Watched:
    """A denoiser that remembers what came in."""

    denoiser: Denoiser
    inputs: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        self.inputs.append(x)
        return self.denoiser(x, t)


def sampler_step(case: Case, data: Data) -> Found:
    """One step of each kind; items of the batch may stand at different steps."""
    config = case["config"]
    given = {name: torch.from_numpy(data[name]) for name in names(case["inputs"])}
    chain, t, clip = chain_of(config["timestep_respacing"]), torch.tensor(config["t"]), config["clip_denoised"]
    branches = (stored(given[name], []) for name in ("model_cond", "model_uncond"))
    answer = guided(*branches, scale_of(config["guidance_scale"]))
    step = samplers.reverse(chain, answer(given["x"], t), given["x"], t, clip)
    found = {"pmv_mean": step.mean, "pmv_variance": step.log_variance.exp(), "pmv_log_variance": step.log_variance}
    found["pmv_pred_xstart"] = step.start
    rules = {"p_sample": StepRule("ddpm", clip=clip)}
    for name in names(case["outputs"]):
        if eta := re.fullmatch(r"ddim_sample_eta(\d)(\d*)", name):
            rules[name] = StepRule("ddim", float(f"{eta[1]}.{eta[2]}0"), clip)
    for name, rule in rules.items():
        found[name] = torch.cat([_stepped(chain, given, rule, i, t, config) for i in range(len(t))])
    return {name: Near(value.numpy(), SINGLE, SINGLE) for name, value in found.items()}


def _stepped(
    chain: Schedule, given: dict[str, Tensor], rule: StepRule, i: int, t: Tensor, config: dict[str, Any]
) -> Tensor:
    """Item i after the first step of its chain: a longer chain's second input, or a chain of one step's end."""
    one = {name: value[i : i + 1] for name, value in given.items()}
    branches = (stored(one[name], []) for name in ("model_cond", "model_uncond"))
    watched = Watched(guided(*branches, scale_of(config["guidance_scale"])))
    noise: Any = StoredNoise(one["noise"])
    last = denoised(watched, chain, one["x"], int(t[i]) + 1, noise, rule)
    return [*watched.inputs, last][1]


def training_losses(case: Case, data: Data) -> Found:
    config, given = case["config"], {name: torch.from_numpy(array) for name, array in data.items()}
    assert config["loss_type"] == "MSE"
    chain, t = chain_of(config["timestep_respacing"]), torch.tensor(config["t"])
    noisy = chain.q_sample(given["x0"], t, given["noise"])
    arguments = (chain, given["model_out"], given["x0"], noisy, t, given["noise"])
    simple, variational = losses.hybrid_terms(*arguments)
    found = {"mse": simple, "loss": losses.hybrid_loss(*arguments)} | (
        {} if variational is None else {"vb": variational}
    )
    return {name: Near(value.numpy(), SINGLE, SINGLE) for name, value in found.items()}


def guided_network(net: SDMUNet, label: NDArray, scale: float) -> Denoiser:
    """The network with and without the label maps `(b, h, w)` at its own resolution."""
    classes, learned = net.middle[0].norm1.shared.weight.shape[1], net.config.learn_sigma
    y = condition(ids(label), classes)
    branches = (network_denoiser(net, one, learned) for one in (y, torch.zeros_like(y)))
    return guided(*branches, scale_of(scale))


def ddim_i2i(case: Case, data: Data) -> Found:
    config = case["config"]
    chain, start = chain_of(config["timestep_respacing"]), Start(config["start_t"], config["start_t"])
    noise: Any = StoredNoise(torch.from_numpy(data["noise"]))
    net = network(config["unet"], case["keys"])
    watched = Watched(guided_network(net, data["label"], config["s"]))
    with torch.inference_mode():
        z = noised(chain, torch.from_numpy(data["z0"]), start, noise)
        rule = StepRule("ddim", config["eta"], config["clip_denoised"])
        last = denoised(watched, chain, z, start.calls, noise, rule)
    after = torch.stack([*watched.inputs[1:], last])
    return {"zT": Near(z.numpy(), 1e-6), "traj": Near(after.numpy(), CHAIN)}


def first_stage(params: dict[str, Any], keys: dict[str, list[int]]) -> VQFirstStage:
    """The autoencoder of a case, its generated weights brought in by the importer."""
    config = vq_config(params)
    codec = VQFirstStage(config)
    codec.load_state_dict(to_model(generated_state(keys), codec, config.model_dump(), Path("golden")))
    return codec.eval()


def pipeline(case: Case, data: Data) -> Found:
    """Every stage from the picture that the case has for it, so that differences do not add up.

    Pictures are decoded from the case's latents: where two codes are equally near, ours may fall to the other one. So
    ours are looked at as well, but a few patches may differ.
    """
    config, found = case["config"], dict[str, "NDArray | Near"]()
    net, codec = network(config["unet"], case["keys"]["unet"]), first_stage(config["vq"], case["keys"]["vq"])
    for number, stage in enumerate(config["stages"]):
        before = data["ref"]
        if number:
            pairs = zip(data[f"stage{number - 1}_out"], data["ref"], strict=True)
            before = np.stack([reinhard_lab8(*pair) for pair in pairs])
        chain, start = chain_of(stage["timestep_respacing"]), Start(stage["start_t"], stage["start_t"])
        noise: Any = StoredNoise(torch.from_numpy(data[f"stage{number}_noise"]))
        with torch.inference_mode():
            z0, _ = codec.moments(network_input(before, "cpu"))
            denoiser = guided_network(net, data["label"], stage["s"])
            z = denoised(denoiser, chain, noised(chain, z0, start, noise), start.calls, noise, StepRule())
        pixels = decoded(codec, torch.from_numpy(data[f"stage{number}_z"]))
        same = np.abs(decoded(codec, z) - data[f"stage{number}_out"].astype(np.int64)) <= 1
        assert same.mean() >= 0.9, f"stage {number}: {100 * same.mean():.1f} % of the pixels are alike"
        found |= {f"stage{number}_input": before, f"stage{number}_out": Near(pixels, 1)}
        found |= {f"stage{number}_z0": Near(z0.numpy(), CHAIN), f"stage{number}_z": Near(z.numpy(), CHAIN)}
    return found


def decoded(codec: VQFirstStage, latents: Tensor) -> NDArray:
    """Grey levels `(b, h, w, 3)`."""
    with torch.inference_mode():
        pixels = truncated(codec.decode(latents), ("golden",) * len(latents))
    return pixels.permute(0, 2, 3, 1).numpy().astype(np.int64)


def colour_transfer(case: Case, data: Data) -> Found:
    found: dict[str, NDArray | Near] = {}
    for number in (name.removeprefix("out") for name in data if re.fullmatch(r"out\d+", name)):
        source, reference = data[f"source{number}"], data[f"ref{number}"]
        labs = lab8_of_rgb(source), lab8_of_rgb(reference)
        statistics = np.stack([row for lab in labs for row in lab8_statistics(lab)])
        found |= {f"lab_source{number}": labs[0], f"lab_ref{number}": labs[1]}
        found[f"stats{number}"] = Near(statistics, 1e-9)
        found[f"out{number}"] = reinhard_lab8(source, reference)
        found[f"float_reference{number}"] = _unrounded(source, reference, data[f"float_reference{number}"], statistics)
    return found


def _unrounded(source: NDArray, reference: NDArray, expected: NDArray, statistics: NDArray) -> Near:
    """The transfer in floating point, and what it may differ by.

    The case has OpenCV's float CIELAB, which interpolates in a table of 33 nodes a side: measured on all colours, it
    is off by up to half a unit. The transfer multiplies that by the ratio of the deviations.
    """
    ours, ratio = reinhard_lab(source, reference), float((statistics[3] / np.maximum(statistics[1], 0.5)).max())
    mean = np.abs(ours.astype(np.float64) - expected).mean()
    assert mean <= 0.3 * (1 + ratio), f"float_reference: levels differ by {mean:.3g} in the mean"
    return Near(ours, 3 + 1.5 * ratio)
