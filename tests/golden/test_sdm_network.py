# SPDX-License-Identifier: Apache-2.0
"""SDM's network and ancestral sampler against outputs of the authors' own code (WeilunWang/semantic-diffusion-model).

Weights follow from the upstream key names (rule in each case.json); our modules stand in the same order as upstream's,
so the n-th tensor here is the n-th there. The importer of real checkpoints comes with the SDM issue.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from sis.diffusion import samplers, schedule
from sis.diffusion.denoiser import guided, network_denoiser
from sis.nets.sdm_unet import SDMUNet, UNetConfig

CASES = Path(__file__).parent / "cases" / "sdm"


def load(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    folder = CASES / name
    with np.load(folder / "data.npz", allow_pickle=False) as arrays:
        return json.loads((folder / "case.json").read_text()), dict(arrays)


def generated(key: str, shape: list[int]) -> torch.Tensor:
    """The weight of an upstream key, by the rule of the golden cases."""
    drawn = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        return torch.from_numpy((drawn / np.sqrt(np.prod(shape[1:]))).astype(np.float32))
    return torch.from_numpy(((1 if key.endswith("weight") else 0) + 0.1 * drawn).astype(np.float32))


def network(case: dict) -> SDMUNet:
    flags = case["config"].get("model", case["config"])
    config = UNetConfig(
        width=flags["num_channels"],
        multipliers=[int(m) for m in flags["channel_mult"].split(",")],
        blocks=flags["num_res_blocks"],
        attention=[flags["image_size"] // int(a) for a in flags["attention_resolutions"].split(",")],
        head_channels=flags["num_head_channels"],
        learn_sigma=flags["learn_sigma"],
    )
    net = SDMUNet(config, 3, flags["num_classes"] + (0 if flags["no_instance"] else 1))
    own = net.state_dict()
    assert len(own) == len(case["keys"])
    upstream = [generated(key, shape) for key, shape in case["keys"].items()]
    net.load_state_dict({k: w.reshape(v.shape) for (k, v), w in zip(own.items(), upstream, strict=True)})
    return net.eval()


@pytest.mark.parametrize("name", ["unet_full_edge", "unet_rect"])
def test_the_network_gives_the_authors_outputs(name: str) -> None:
    case, data = load(name)
    net, x, y = network(case), torch.from_numpy(data["x"]), torch.from_numpy(data["y"]).float()
    compared = 0
    with torch.inference_mode():
        for key in sorted(k for k in data if k.startswith(("cond", "null")) and k[4:].isdigit()):
            label = y if key.startswith("cond") else torch.zeros_like(y)
            found = net(x, torch.from_numpy(data[f"t{key[4:]}"]), label)
            np.testing.assert_allclose(found.numpy(), data[key], rtol=0, atol=2e-5)
            compared += 1
    assert compared >= 4


@dataclass(frozen=True)
class StoredNoise:
    """Replays the noise that the authors' chain drew, noisiest step first."""

    draws: np.ndarray
    order: dict[int, int]

    def normal(self, purpose: str, step: int, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.from_numpy(self.draws[self.order[step]])


@pytest.mark.parametrize("name", ["ddpm5_s1.5", "ddpm25_s2"])
def test_guided_ancestral_sampling_gives_the_authors_images(name: str) -> None:
    case, data = load(name)
    net, y = network(case), torch.from_numpy(data["y"]).float()
    chain = schedule.linear(case["config"]["diffusion_steps"]).respaced(int(case["config"]["timestep_respacing"]))
    noise = StoredNoise(data["noise"], {int(t): i for i, t in enumerate(chain.timesteps[::-1])})
    denoiser = guided(
        network_denoiser(net, y, True), network_denoiser(net, torch.zeros_like(y), True), case["config"]["s"]
    )
    with torch.inference_mode():
        final = samplers.ddpm(denoiser, chain, torch.from_numpy(data["xT"]), noise)  # type: ignore[arg-type]
    np.testing.assert_allclose(final.numpy(), data["final"], rtol=0, atol=5e-4)
