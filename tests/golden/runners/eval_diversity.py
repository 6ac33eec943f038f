# SPDX-License-Identifier: Apache-2.0
"""LPIPS, SDM's LPIPS and MS-SSIM of all pairs, against their authors' code."""

from __future__ import annotations

from itertools import combinations

import lpips as package
import numpy as np
import torch
from numpy.typing import NDArray

from evaluators.lpips_backbone import EPS, LpipsBackbone, seeded_network
from evaluators.lpips_sdm import SdmLpips
from evaluators.structural import Ssim, ms_ssim, ssim
from runners import Case, Data, Found, Near, names
from runners.eval_deeplab import generated

#: Float32 sums in another order, on values of about 0.1 to 1.
ROUNDING = 1e-6
#: Normalised pixels, of up to about 3.
INPUT = 1e-6


def lpips(case: Case, data: Data) -> Found:
    assert case["config"]["eps"] == EPS
    backbone = LpipsBackbone(_network(case))
    images = data["images_u8"]
    pairs = backbone.pairwise(images)
    return {
        "matrix": Near(_matrix(pairs, len(images), 0.0), ROUNDING),
        "per_layer_0_1": Near(backbone.terms(images[:2])[0], ROUNDING),
        "spatial_0_1": Near(backbone.difference_map(images[0], images[1]), ROUNDING),
        "mean_pairwise": Near(pairs.mean(), ROUNDING),
        # The same images in [0, 1], which the package brings to [-1, 1] itself.
        "with_normalize_flag_0_1": Near(backbone.pairwise(images[:2])[0], ROUNDING),
    }


def _network(case: Case) -> package.LPIPS:
    """The package's network with the case's constants, and weights by the rule but for heads that it comes with."""
    config = case["config"]
    net = seeded_network(config["net"], config["version"])
    own = net.state_dict()
    bundled = "bundled" in config.get("linear_weights", "")
    for key, shape in case["keys"].items():
        assert list(own[key].shape) == list(shape), key
        if not key.startswith("scaling_layer.") and not (bundled and key.startswith("lin")):
            own[key].copy_(generated(key, shape))
    return _standardising(net, config["shift"], config["scale"])


def _standardising(net: package.LPIPS, shift: list[float], scale: list[float]) -> package.LPIPS:
    net.scaling_layer.get_buffer("shift").copy_(torch.tensor(shift).view(1, 3, 1, 1))
    net.scaling_layer.get_buffer("scale").copy_(torch.tensor(scale).view(1, 3, 1, 1))
    return net


def _matrix(pairs: NDArray[np.float64], k: int, diagonal: float) -> NDArray[np.float64]:
    """The symmetric matrix of values of the pairs i < j."""
    matrix = np.full((k, k), diagonal)
    for value, (i, j) in zip(pairs, combinations(range(k), 2), strict=True):
        matrix[i, j] = matrix[j, i] = value
    return matrix


def sdm_lpips_protocol(case: Case, data: Data) -> Found:
    judge, images = _sdm(case), data["images_u8"]
    samples, labels = images.shape[:2]
    x = torch.stack([judge.loaded(images[:, label]) for label in range(labels)], 1)
    loaded = np.stack([judge.pairwise(images[:, label]) for label in range(labels)])
    plain = torch.from_numpy(images).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    unloaded = np.stack([judge.compare(plain[:, label]) for label in range(labels)])
    upper = [np.triu(_matrix(pairs, samples, 0.0)) for pairs in loaded]
    batch = case["config"]["labels_per_batch"]
    found: dict[str, NDArray | Near] = {
        "lpips": Near(_mean_of_batches(loaded, batch), ROUNDING),
        "per_pair": Near(np.concatenate(upper), ROUNDING),
        "lpips_on_plain_pm1": Near(_mean_of_batches(unloaded, batch), ROUNDING),
    }
    if "first_input_sub" in names(case["outputs"]):
        step = -(-x.shape[-1] // data["first_input_sub"].shape[-1])
        found["first_input_sub"] = Near(x[0, 0, :, ::step, ::step].numpy(), INPUT)
    return found


def _mean_of_batches(pairs: NDArray[np.float64], batch: int) -> NDArray[np.float64]:
    """Mean over label maps of a batch, then over pairs, then over batches, as SDM's evaluation takes it."""
    means = [pairs[start : start + batch].mean(0).mean() for start in range(0, len(pairs), batch)]
    return np.asarray(np.mean(means), np.float64)


def _sdm(case: Case) -> SdmLpips:
    """SDM's LPIPS with weights under SDM's names, all by the rule."""
    config = case["config"]
    net = seeded_network("alex")
    own = net.state_dict()
    backbone = {key.split(".", 2)[2]: key for key in own if key.startswith("net.")}
    for key, shape in case["keys"].items():
        family, _, rest = key.partition(".")
        index = rest.split(".")[0]
        target = backbone[rest.removeprefix("layers.")] if family == "alexnet" else f"lins.{index}.model.1.weight"
        assert list(own[target].shape) == list(shape), key
        own[target].copy_(generated(key, shape))
    return SdmLpips(
        _standardising(net, config["lpips_mu"], config["lpips_sigma"]),
        sizes=tuple(config["resize"]),
        mean=tuple(config["loader_mean"]),
        std=tuple(config["loader_std"]),
        eps=config["eps"],
    )


def structural(case: Case, data: Data) -> Found:
    """All outputs by what their names say: value range, all pairs or the first, the case's or its custom options."""
    config, images, found = case["config"], data["images_u8"], {}
    custom = any("custom" in name for name in names(case["outputs"]))
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    ranges = {"255": (x, 255.0), "01": (x / 255, 1.0), "pm1_range1": (x / 127.5 - 1, 1.0), "custom": (x, 255.0)}
    for name in names(case["outputs"]):
        measure = ms_ssim if name.startswith("ms_ssim") else ssim
        given = {**config, **config.get("custom", {})} if "custom" in name or not custom else config
        kind = next(kind for kind in ranges if kind in name.removesuffix("_0_1"))
        pixels, data_range = ranges[kind]
        k1, k2 = given["K"]
        how = Ssim(given["win_size"], given["win_sigma"], k1, k2, tuple(given["weights"]), data_range)
        if name.endswith("_0_1"):
            found[name] = Near(measure(pixels[:2], how)[0], ROUNDING)
        else:
            alone = [measure(pixels[[i, i]], how)[0] for i in range(len(images))]
            matrix = _matrix(measure(pixels, how), len(images), 0.0) + np.diag(alone)
            found[name] = Near(matrix, ROUNDING)
    return found
