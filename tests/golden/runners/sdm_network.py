# SPDX-License-Identifier: Apache-2.0
"""SDM's network and chains against the authors' (WeilunWang/semantic-diffusion-model).

Weights follow from the upstream key names (rule in each case.json) and come in through the importer of the authors'
checkpoints, by name.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from runners import Case, Data, Found, Near
from runners.conditions import ids
from runners.sdm_mathematics import scale_of, schedule_of
from sis.checkpoints.sdm import export_sdm, import_sdm, upstream_names
from sis.diffusion import samplers
from sis.diffusion.denoiser import Denoiser, Prediction, guided, network_denoiser
from sis.diffusion.gaussians import Variance
from sis.diffusion.pixels import to_uint8
from sis.diffusion.schedule import Schedule
from sis.nets.condition import condition
from sis.nets.sdm_unet import Attention, ResBlock, SDMUNet, UNetConfig, timestep_embedding
from sis.nets.spade import SPADE

#: Float32 sums in another order, through the whole network; and through a chain of it (the cases suggest 5e-4).
OUTPUT, CHAIN = 2e-5, 5e-4
#: The x_0 of a noisy step holds the network's error times sqrt(1 / alpha-bar - 1): with 158 of it, more than CHAIN.
START = 5e-6
#: Of the authors' code, by `image_size`, where a case leaves `channel_mult` empty.
MULTIPLIERS = {64: [1, 2, 3, 4], 128: [1, 1, 2, 3, 4], 256: [1, 1, 2, 2, 4, 4]}


def generated(key: str, shape: list[int]) -> Tensor:
    """The weight of an upstream key, by the rule of the golden cases."""
    drawn = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        return torch.from_numpy((drawn / np.sqrt(np.prod(shape[1:]))).astype(np.float32))
    return torch.from_numpy(((1 if key.endswith("weight") else 0) + 0.1 * drawn).astype(np.float32))


def generated_state(keys: dict[str, list[int]]) -> dict[str, Tensor]:
    """A whole checkpoint under the authors' names."""
    return {key: generated(key, shape) for key, shape in keys.items()}


def numbers(value: str | list[int]) -> list[int]:
    """A list that a case writes as one or as text."""
    return [int(n) for n in value.split(",") if n] if isinstance(value, str) else value


def config_of(flags: dict[str, Any]) -> UNetConfig:
    """The network that the authors' flags name."""
    known = {"resblock_updown": True, "use_scale_shift_norm": True, "use_new_attention_order": False}
    assert all(flags.get(flag, value) == value for flag, value in known.items()), "flags that no released model uses"
    return UNetConfig(
        width=flags["num_channels"],
        multipliers=numbers(flags["channel_mult"]) or MULTIPLIERS[flags["image_size"]],
        blocks=flags["num_res_blocks"],
        attention=[flags["image_size"] // a for a in numbers(flags["attention_resolutions"])],
        head_channels=max(1, flags["num_head_channels"]),
        learn_sigma=flags["learn_sigma"],
    )


def label_channels(flags: dict[str, Any]) -> int:
    return flags["num_classes"] + (0 if flags["no_instance"] else 1)


def network(flags: dict[str, Any], keys: dict[str, list[int]]) -> SDMUNet:
    """The network of a case, its generated weights brought in by the importer."""
    net = SDMUNet(config_of(flags), 3, label_channels(flags))
    net.load_state_dict(import_sdm(generated_state(keys), net))
    if flags["num_head_channels"] == -1:  # so many heads at every level instead, which shapes do not tell
        for attention in (module for module in net.modules() if isinstance(module, Attention)):
            attention.heads = flags["num_heads"]
    return net.eval()


def model_keys(case: Case, data: Data) -> Found:
    """Both directions of the importer on the keys and shapes of a full-size checkpoint, without any values."""
    flags = case["config"]
    with torch.device("meta"):
        net = SDMUNet(config_of(flags), 3, label_channels(flags))
        theirs = {key: torch.empty(shape) for key, shape in case["keys"].items()}
    assert flags.get("label_nc", label_channels(flags)) == label_channels(flags)
    net.load_state_dict(import_sdm(theirs, net))
    back = {key: list(value.shape) for key, value in export_sdm(net.state_dict()).items()}
    assert list(back.items()) == list(case["keys"].items()), "names, shapes and order of the authors' file"
    return {
        "n_keys": np.array(len(net.state_dict())),
        "n_params": np.array(sum(value.numel() for value in net.parameters())),
    }


def blocks(case: Case, data: Data) -> Found:
    """Single modules, as they stand in the network's middle, encoder and decoder."""
    config = case["config"]
    c, wide, time, labels = (config[f"{n}channels"] for n in ("", "out_", "emb_", "cond_"))
    hidden = UNetConfig().spade_hidden
    modules = {
        "spade": SPADE(c, labels, hidden),
        "spade_same": SPADE(c, labels, hidden),
        "enc": ResBlock(c, wide, time, 32),
        "enc_down": ResBlock(c, c, time, 32, "down"),
        "dec": ResBlock(c, wide, time, 32, spade=(labels, hidden)),
        "dec_up": ResBlock(c, c, time, 32, "up", (labels, hidden)),
        "attn": Attention(c, config["attn_head_channels"], 32),
    }
    x, emb = torch.from_numpy(data["x"]), torch.from_numpy(data["emb"])
    label = torch.from_numpy(data["seg"]).float()
    used: set[str] = set()
    found: dict[str, NDArray | Near] = {}
    for name, module in modules.items():
        used |= fill(module, name, case["keys"])
        with torch.inference_mode():
            if isinstance(module, SPADE):
                same = label[..., : x.shape[-2], : x.shape[-1]]
                out = module(x, same if name == "spade_same" else label)
            else:
                out = module(x, F.silu(emb), label)
        found[name] = Near(out.numpy(), OUTPUT)
    assert used == set(case["keys"])
    return found


def fill(module: nn.Module, name: str, keys: dict[str, list[int]]) -> set[str]:
    """Fill a module with the weights of the keys that begin with its name; returns those keys."""
    norm = isinstance(module, SPADE)
    place, within = ("middle.0.norm1.", "middle_block.0.in_norm.") if norm else ("middle.0.", "middle_block.0.")
    theirs = upstream_names([place + own for own in module.state_dict()])
    weights, used = {}, set()
    for own, value in module.state_dict().items():
        key = f"{name}.{theirs[place + own].removeprefix(within)}"
        weights[own] = generated(key, keys[key]).reshape(value.shape)
        used.add(key)
    module.load_state_dict(weights)
    return used


def condition_of(flags: dict[str, Any], data: Data) -> Tensor:
    """The condition tensor of a case, built from its label map and checked against its own."""
    instance = None if flags["no_instance"] else ids(data["instance"])
    y = condition(ids(data["label"]), flags["num_classes"], instance)
    np.testing.assert_array_equal(y.numpy(), data["y"])
    return y


def unet(case: Case, data: Data) -> Found:
    flags = case["config"]
    net, x, y = network(flags, case["keys"]), torch.from_numpy(data["x"]), condition_of(flags, data)
    inputs = {"cond": y, "null": torch.zeros_like(y)}
    found: dict[str, NDArray | Near] = {}
    with torch.inference_mode():
        for name in (n for n in data if n[0] == "t" and n[1:].isdigit()):
            t = torch.from_numpy(data[name])
            found |= {f"{k}{name[1:]}": Near(net(x, t, label).numpy(), OUTPUT) for k, label in inputs.items()}
        without = torch.cat([y[:, :-1], torch.zeros_like(y[:, -1:])], dim=1)
        t = torch.from_numpy(data["t0"])
        found["cond0_noedge_channel"] = Near(net(x, t, without).numpy(), OUTPUT)
        found |= {f"tap_{name}": Near(tap.numpy(), OUTPUT) for name, tap in taps(net, x, t, y).items()}
    return found


def taps(net: SDMUNet, x: Tensor, t: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Inner activations by the names that the cases give them."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: seen.update({name: output})

    places = {
        "time_embed": net.time,
        "enc_last": net.encoder[-1],
        "mid0_innorm": net.middle[0].norm1,
        "middle": net.middle,
        "dec_first": net.decoder[0],
    }
    hooks = [module.register_forward_hook(keep(name)) for name, module in places.items()]
    net(x, t, y)
    for hook in hooks:
        hook.remove()
    return seen


@dataclass(frozen=True)
class StoredNoise:
    """Replays the noise that the authors' chain drew, noisiest step first."""

    draws: NDArray
    order: dict[int, int]

    def normal(self, purpose: str, step: int, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(self.draws[self.order[step]])


@dataclass
class Watched:
    """A denoiser that remembers what came in and what x_0 its answer implies, step by step."""

    denoiser: Denoiser
    chain: Schedule
    clip: bool
    inputs: list[Tensor] = field(default_factory=list)
    starts: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        answer = self.denoiser(x, t)
        index = torch.full_like(t, len(self.chain) - 1 - len(self.inputs))
        self.inputs.append(x)
        self.starts.append(samplers.predict_start(self.chain, x, index, answer.eps, self.clip))
        return answer


def chain_ddpm(case: Case, data: Data) -> Found:
    fixed: Variance = "small" if case["config"].get("sigma_small") else "large"
    variance = "learned" if case["config"]["model"]["learn_sigma"] else fixed

    def sampler(watched: Watched, x: Tensor, noise: Any) -> Tensor:
        return samplers.ddpm(watched, watched.chain, x, noise, watched.clip, variance)

    return sampled(case, data, sampler)


def chain_ddim(case: Case, data: Data) -> Found:
    def sampler(watched: Watched, x: Tensor, noise: Any) -> Tensor:
        return samplers.ddim(watched, watched.chain, x, noise, case["config"]["eta"], watched.clip)

    return sampled(case, data, sampler)


def sampled(case: Case, data: Data, sampler: Callable[[Watched, Tensor, Any], Tensor]) -> Found:
    """Run a guided chain with the authors' noise; the steps that the case keeps, and the image."""
    config, flags = case["config"], case["config"]["model"]
    net, y = network(flags, case["keys"]), condition_of(flags, data)
    chain = schedule_of(config)
    noise = StoredNoise(data["noise"], {int(t): i for i, t in enumerate(chain.timesteps[::-1])})
    learned = flags["learn_sigma"]
    branches = (network_denoiser(net, y, learned), network_denoiser(net, torch.zeros_like(y), learned))
    denoiser = guided(*branches, scale_of(config["s"]))
    watched = Watched(denoiser, chain, config["clip_denoised"])
    with torch.inference_mode():
        final = sampler(watched, torch.from_numpy(data["xT"]), noise)
        after = torch.stack([*watched.inputs[1:], final])
        starts = torch.stack(watched.starts)
    kept = config["kept_steps"]
    amplified = np.sqrt(1 / chain.alphas_cumprod[::-1][kept] - 1).reshape(-1, 1, 1, 1, 1)
    png = to_uint8(final, ("golden",) * len(final)).permute(0, 2, 3, 1)
    # Without clipping, values reach hundreds and more; their last digits are then as uncertain.
    whole = CHAIN if watched.clip else CHAIN * max(1.0, float(starts.abs().max()))
    return {
        "samples": Near(after[kept].numpy(), whole),
        "pred_xstart": Near(starts[kept].numpy(), np.maximum(whole, START * amplified)),
        "final": Near(final.numpy(), whole),
        "final_uint8_png": Near(png.numpy(), 1),
    }


def embedding(case: Case, data: Data) -> Found:
    t, period = torch.from_numpy(data["t"]), case["config"]["max_period"]
    return {f"emb{n}": Near(timestep_embedding(t, n, period).numpy(), OUTPUT) for n in case["config"]["dims"]}
