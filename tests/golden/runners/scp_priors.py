# SPDX-License-Identifier: Apache-2.0
"""SCP-Diff's prior statistics, and the maps and chain starts that follow from them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runners import Case, Data, Found, Near, names
from sis.diffusion.schedule import Schedule
from sis.priors.accumulator import Accumulator
from sis.priors.draws import Draws, released
from sis.priors.labels import latent_labels
from sis.priors.params import Kind, Policy
from sis.priors.prior import Gaussians, Prior, draw
from sis.priors.released import ENOUGH, categorical_gaussians
from sis.priors.statistics import Encoded, Statistics, accumulate

#: The released running sums are float32 with an epsilon in their denominators.
RELEASED = 1e-4
#: Two passes in float64 against one, and float32 arithmetic on values around one.
EXACT, ROUNDING = 1e-10, 1e-5

#: Prior types of the released code, as outputs spell them: kind and fall-back of ours.
TYPES: dict[str, tuple[Kind, Policy]] = {
    "spatial": ("spatial", Policy.released()),
    "class": ("categorical", Policy.released()),
    "spatial_class": ("spatial_class", Policy.released()),
    "spatial_class_joint": ("joint", Policy.released("spatial")),
    "class_spatial_joint": ("joint", Policy.released("class")),
}


def prior_stats(case: Case, data: Data) -> Found:
    """Statistics by the released draw, and those of the paper's definition over all images."""
    config, latents, labels = case["config"], data["latents"], data["labels"]
    ids = [str(i) for i in range(len(latents))]

    def read(indices: object) -> Encoded:
        rows = np.asarray(indices)
        return Encoded(latents[rows], np.zeros_like(latents[rows]), labels[rows])

    draws = released(len(ids), config["sample_size"], config["seed"], config["batch_size_const"],
                     config["num_cpus_const"])  # fmt: skip
    theirs = accumulate(read, ids, draws, 256)
    every = accumulate(read, ids, Draws(tuple(range(len(ids))), len(ids)), 256)
    small = latent_labels(labels, (latents.shape[2], latents.shape[3]))
    raw = picked_tokens(draws, latents, small)
    classes = np.array(sorted(raw))
    return {
        "draw_indices": np.array(draws.images),
        "joint_used_indices": np.array(draws.joint),
        "classes": classes,
        "cat_raw": np.concatenate([raw[c] for c in classes]),
        "cat_raw_offsets": np.cumsum([0, *(len(raw[c]) for c in classes)]),
        **released_statistics(theirs, classes),
        **paper_statistics(every, classes),
    }


def picked_tokens(draws: Draws, latents: NDArray, labels: NDArray[np.int64]) -> dict[int, NDArray]:
    """The tokens of the categorical prior, for each class in the order of the draw."""
    found: dict[int, list[NDArray]] = {}
    picker = draws.picker()
    for image in draws.images:
        for y, x in np.argwhere(picker.pick(labels[image])):
            found.setdefault(int(labels[image, y, x]), []).append(latents[image, :, y, x])
    return {class_id: np.stack(tokens) for class_id, tokens in found.items()}


def released_statistics(statistics: Statistics, classes: NDArray) -> dict[str, Near | NDArray]:
    of_class, of_place, joint = statistics.categorical, statistics.spatial, statistics.joint
    return {
        "cat_mean": Near(of_class.mean[classes, :, 0, 0], RELEASED),
        "cat_std": Near(np.sqrt(of_class.variance(1)[classes, :, 0, 0]), RELEASED),
        "spatial_mean": Near(of_place.mean[0], RELEASED),
        "spatial_std": Near(np.sqrt(of_place.variance()[0]), RELEASED),
        "joint_mean": Near(joint.mean[classes], RELEASED),
        "joint_std": Near(np.sqrt(joint.variance()[classes]), RELEASED),
        "joint_count": joint.count[classes][:, None],
    }


def paper_statistics(statistics: Statistics, classes: NDArray) -> dict[str, Near | NDArray]:
    def of(name: str, found: Accumulator, rows: tuple) -> dict[str, Near]:
        return {
            f"ref64_{name}_mean": Near(found.mean[rows], EXACT),
            f"ref64_{name}_var": Near(found.variance()[rows], EXACT),
        }

    every, one, only = (classes,), (classes, slice(None), 0, 0), (0,)
    return {
        **of("class", statistics.categorical, one),
        **of("spatial", statistics.spatial, only),
        **of("joint", statistics.joint, every),
        "ref64_class_count": statistics.categorical.count[classes, 0, 0],
        "ref64_joint_count": statistics.joint.count[classes],
    }


def prior_map(case: Case, data: Data) -> Found:
    """Maps of every prior for one label map, and the noised starts of chains."""
    config, prior = case["config"], prior_of(data)
    weights = {"spatial_weight": config["spatial_scale"], "class_weight": config["class_scale"]}
    labels = torch.from_numpy(latent_labels(data["mask"][None], prior.shape[1:]))
    maps = {name: prior.maps(labels, kind, policy.model_copy(update=weights)) for name, (kind, policy) in TYPES.items()}
    found: dict[str, NDArray | Near] = {
        "mask_down": labels[0].numpy(),
        "count_map": prior.counts(labels)[0].numpy(),
    }
    shown = {"class": "class", "joint_fb_spatial": "spatial_class_joint", "joint_fb_class": "class_spatial_joint"}
    for name, kind in shown.items():
        for part, value in zip(("mean", "std"), maps[kind], strict=True):
            found[f"map_{name}_{part}"] = Near(value.numpy(), ROUNDING, ROUNDING)
    for output in (name for name in names(case["outputs"]) if name.startswith("x_")):
        kind, _, step = output.removeprefix("x_").rpartition("_t")
        found[output] = Near(
            start(data, maps[kind], int(step), shared=kind == "spatial_class").numpy(), ROUNDING, ROUNDING
        )
    return found


def start(data: Data, maps: tuple[Tensor, Tensor], step: int, shared: bool) -> Tensor:
    """x at the chain's index `step`; the type `spatial_class` draws one x_prior for the whole batch."""
    bar = data["alphas_cumprod"].astype(np.float64)
    schedule = Schedule(1 - bar / np.concatenate([np.ones(1), bar[:-1]]), np.arange(len(bar)))
    eps, forward = (torch.from_numpy(data[name]) for name in ("noise_prior", "noise_forward"))
    x_prior = draw(*maps, eps[:1] if shared else eps).expand_as(forward)
    return schedule.q_sample(x_prior, torch.full((len(forward),), step), forward)


def prior_of(data: Data) -> Prior:
    """The released statistics of the case, in 256 slots."""
    classes = data["classes"].tolist()
    means_and_deviations = zip(data["cat_mean"], data["cat_std"], strict=True)
    by_class = {c: {"mean": m, "std": s} for c, (m, s) in zip(classes, means_and_deviations, strict=True)}
    _, channels, h, w = data["joint_mean"].shape
    count, mean = torch.zeros(256, h, w, dtype=torch.int64), torch.zeros(256, channels, h, w)
    std = torch.zeros_like(mean)
    count[classes] = torch.from_numpy(data["joint_count"][:, 0].astype(np.int64))
    mean[classes], std[classes] = torch.from_numpy(data["joint_mean"]), torch.from_numpy(data["joint_std"])
    spatial = (torch.from_numpy(data[f"spatial_{name}"])[None] for name in ("mean", "std"))
    return Prior(
        Gaussians(count, mean, std),
        categorical_gaussians(by_class, 256),
        Gaussians(torch.full((1, h, w), ENOUGH), *spatial),
    )
