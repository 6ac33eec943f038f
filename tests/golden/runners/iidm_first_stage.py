# SPDX-License-Identifier: Apache-2.0
"""IIDM's first stage, checkpoint files and model ensemble against the authors' (ader47/jittor-jieke-...).

Weights of the autoencoder follow from the upstream key names and come in through the importer of the authors' files.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from runners import Case, Data, Found, Near, names
from runners.sdm_network import config_of, generated_state, label_channels
from sis.checkpoints.sdm import export_sdm, import_sdm
from sis.checkpoints.vqgan import from_model, to_model
from sis.data.weight_files import read_weights, write_weights
from sis.nets.latent.first_stage import network_input
from sis.nets.latent.vq import VQConfig, VQFirstStage
from sis.nets.sdm_unet import SDMUNet
from sis.training.average import average_weights

#: Float32 sums in another order, through encoder and decoder (seen: 2e-5; the research note suggests 1e-4).
NETWORK = 1e-4
#: The authors' codes are z + (e - z), for gradients.
STRAIGHT = 1e-6
#: Double precision in another order.
ROUNDING = 1e-12


def vq_config(params: dict[str, Any]) -> VQConfig:
    """The first stage that the authors' options name."""
    shape = params["ddconfig"]
    known = {"double_z": False, "in_channels": 3, "out_ch": 3}
    assert all(shape.get(name, value) == value for name, value in known.items()), "no autoencoder of photographs"
    levels = range(len(shape["ch_mult"]))
    return VQConfig(
        block_out_channels=[shape["ch"] * multiplier for multiplier in shape["ch_mult"]],
        layers_per_block=shape["num_res_blocks"],
        attention=[2**level for level in levels if shape["resolution"] // 2**level in shape["attn_resolutions"]],
        latent_channels=params["embed_dim"],
        hidden_channels=shape["z_channels"],
        codes=params["n_embed"],
    )


def vq_autoencoder(case: Case, data: Data) -> Found:
    config = vq_config(case["config"])
    network = VQFirstStage(config)
    network.load_state_dict(to_model(generated_state(case["keys"]), network, config.model_dump(), Path("golden")))
    network.eval()
    images = network_input(data["image"], "cpu")
    with torch.inference_mode():
        latents, deviation = network.moments(images)
        assert not deviation.any()
        codes, indices = network.quantise(latents)
        decoded, plain = network.decode(latents), network.decode_codes(latents)
    return {
        "h": Near(latents.numpy(), NETWORK),
        "indices": indices.flatten().numpy(),
        "quant": Near(codes.numpy(), STRAIGHT),
        "dec": Near(decoded.numpy(), NETWORK),
        "dec_no_quant": Near(plain.numpy(), NETWORK),
    }


def jittor_checkpoint(case: Case, data: Data) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pkl"
        path.write_bytes(data["file_bytes"].tobytes())
        found = read_weights(path).tensors
    shapes = {name: list(value.shape) for name, value in found.items()}
    assert shapes == case["keys"]
    return {f"w__{name}": value.numpy() for name, value in found.items()}


def weight_average(case: Case, data: Data) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for checkpoint in dict.fromkeys(name.partition("__")[0] for name in names(case["inputs"])):
            weights = {k: torch.from_numpy(v) for k, v in _under(f"{checkpoint}__", data).items()}
            files.append(Path(folder) / f"{len(files)}.pt")
            write_weights(weights, files[-1])
        mean = average_weights(files)
    assert all(value.dtype == torch.float64 for value in mean.values())
    return {f"out__{name}": Near(value.numpy(), 0.0, ROUNDING) for name, value in mean.items()}


def _under(prefix: str, data: Data) -> dict[str, NDArray]:
    """The arrays whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in data.items() if name.startswith(prefix)}


def full_model_keys(case: Case, data: Data) -> Found:
    """Names and shapes of the full-size networks, in both directions of the importers, without any values."""
    flags = case["config"]["unet"]
    width = flags["image_size"][0] if isinstance(flags["image_size"], list) else flags["image_size"]
    config = vq_config(case["config"]["vq"]["params"])
    with torch.device("meta"):
        unet = SDMUNet(config_of(flags | {"image_size": width}), 3, label_channels(flags))
        stage = VQFirstStage(config)
        theirs = {part: {k: torch.empty(s) for k, s in keys.items()} for part, keys in case["keys"].items()}
    unet.load_state_dict(import_sdm(theirs["unet"], unet))
    assert _shapes(export_sdm(unet.state_dict())) == case["keys"]["unet"]
    fit, where = config.model_dump(), Path("golden")
    stage.load_state_dict(to_model(theirs["vq"], stage, fit, where))
    assert _shapes(from_model(stage.state_dict(), fit, where)) == case["keys"]["vq"]
    return {"unet_params": _count(unet), "vq_params": _count(stage)}


def _shapes(state: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in state.items()}


def _count(network: nn.Module) -> NDArray:
    return np.array(sum(value.numel() for value in network.parameters()))
