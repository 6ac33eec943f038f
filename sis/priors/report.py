# SPDX-License-Identifier: Apache-2.0
"""A report of a prior: how often each class was seen at each position, which tokens fall back, what it looks like."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sis.data.atomic import write_bytes_atomic, write_text_atomic
from sis.data.contact_sheet import Picture, sheet, stacked
from sis.data.images import encode_png
from sis.diffusion.noise import Noise
from sis.diffusion.pixels import to_uint8
from sis.errors import SisError
from sis.priors.files import PriorFacts
from sis.priors.params import Policy
from sis.priors.prior import SOURCES, Prior, draw

#: Lower ends of the histogram's bins: cells that were seen 0 times, once, 2 to 4 times, ...
BINS = (0, 1, 2, 5, 10, 20, 50, 100, 1000)
#: Draws from the joint prior for each label map, and classes in the picture.
_DRAWS, _CLASSES, _COLUMNS = 2, 16, 4


@dataclass(frozen=True)
class Masks:
    """Label maps to draw priors for.

    ids: their names, which key the noise of draws. labels: int64 `(m, h, w)` at the latents' resolution. palette:
    colours by id, uint8 `(k or more, 3)`. names: of the classes.
    """

    ids: tuple[str, ...]
    labels: Tensor
    palette: NDArray[np.uint8]
    names: tuple[str, ...]


def measure(prior: Prior, split: Iterable[Tensor], policy: Policy) -> dict[str, Any]:
    """The figures of the report as plain JSON data.

    split: label maps `(b, h, w)` at the latents' resolution, batch by batch. Raises SisError for an empty split.
    """
    bounds = torch.tensor(BINS[1:])
    cells = torch.bincount(torch.bucketize(prior.joint.count.flatten().cpu(), bounds, right=True), minlength=len(BINS))
    tokens, maps = torch.zeros(len(BINS), dtype=torch.int64), 0
    sources = {kind: dict.fromkeys(SOURCES[:3], 0.0) for kind in ("joint", "categorical")}
    for labels in split:
        seen = torch.bucketize(prior.counts(labels).flatten().cpu(), bounds, right=True)
        tokens += torch.bincount(seen, minlength=len(BINS))
        maps += len(labels)
        for kind, found in (("joint", sources["joint"]), ("categorical", sources["categorical"])):
            share = prior.assigned_share(labels, "joint" if kind == "joint" else "categorical", policy)
            for name in found:
                found[name] += share[name] * len(labels)
    if not maps:
        raise SisError("a report of a prior needs label maps, the split is empty")
    return {
        "label_maps": maps,
        "policy": policy.model_dump(),
        "cells": int(cells.sum()),
        "cells_by_count": _shares(cells),
        "tokens_by_count": _shares(tokens),
        "sources": {kind: {name: n / maps for name, n in found.items()} for kind, found in sources.items()},
        "falling_back": 1 - sources["joint"]["joint"] / maps,
    }


def pictures(prior: Prior, masks: Masks, decode: Callable[[Tensor], Tensor], policy: Policy, seed: int = 0) -> Picture:
    """The priors decoded to images: means for some label maps with draws beside them, and the mean of every class.

    decode: latents `(b, c, h, w)` to images `(b, 3, H, W)` in about [-1, 1]. Returns uint8 `(H, W, 3)`.
    """
    columns, heads = [], ["spatial mean", "categorical mean", "joint mean"]
    for kind in ("spatial", "categorical", "joint"):
        columns.append(_decoded(prior.maps(masks.labels, kind, policy)[0], decode))
    mean, std = prior.maps(masks.labels, "joint", policy)
    for number in range(_DRAWS):
        noise = Noise(seed, tuple((name, number) for name in masks.ids), mean.device)
        columns.append(_decoded(draw(mean, std, noise.normal("prior", 0, mean.shape[1:])), decode))
        heads.append(f"drawn from joint, {number + 1}")
    size = columns[0].shape[1:3]
    rows = [
        [_enlarged(masks.palette[masks.labels[i].cpu().numpy()], size), *(column[i] for column in columns)]
        for i in range(len(masks.ids))
    ]
    caption = "the mean of each prior at each token, decoded; drawn: mean plus deviation times keyed noise"
    sheets = [sheet("Priors of the latents", caption, ["label map", *heads], masks.ids, rows)]
    return stacked([*sheets, *_class_sheet(prior, masks, decode)])


def write_report(
    folder: Path,
    prior: Prior,
    facts: PriorFacts,
    split: Iterable[Tensor],
    policy: Policy,
    masks: Masks,
    decode: Callable[[Tensor], Tensor],
) -> list[Path]:
    """Write `prior.json`, `prior.md` and `prior.png` into a folder; returns their paths."""
    found = {"facts": facts.model_dump(mode="json"), **measure(prior, split, policy)}
    paths = [folder / f"prior.{suffix}" for suffix in ("json", "md", "png")]
    write_text_atomic(paths[0], json.dumps(found, indent=1, sort_keys=True) + "\n")
    write_text_atomic(paths[1], markdown(found))
    write_bytes_atomic(paths[2], encode_png(pictures(prior, masks, decode, policy)))
    return paths


def markdown(found: dict[str, Any]) -> str:
    """The figures of `measure`, with the facts of the prior under `facts`, as a page."""
    facts, sources = found["facts"], found["sources"]
    size = "x".join(map(str, facts["size"]))
    lines = [
        f"# Prior of {facts['dataset']}, {size}",
        "",
        f"{facts['count']:,} images, autoencoder {facts['autoencoder']}, latents: {facts['params']['latents']}. "
        f"Of all tokens of {found['label_maps']:,} label maps {found['falling_back']:.2%} do not get their own joint "
        f"statistic (min_count {found['policy']['min_count']}, fall-back {found['policy']['fallback']}).",
        "",
        f"| images behind a (class, position) | of {found['cells']:,} cells | of the split's tokens |",
        "| --- | ---: | ---: |",
    ]
    for cells, tokens in zip(found["cells_by_count"], found["tokens_by_count"], strict=True):
        lines.append(f"| {cells['count']} | {cells['share']:.2%} | {tokens['share']:.2%} |")
    lines += ["", "| prior | " + " | ".join(SOURCES[:3]) + " |", "| --- | ---: | ---: | ---: |"]
    for kind, shares in sources.items():
        lines.append(f"| {kind} | " + " | ".join(f"{shares[name]:.2%}" for name in SOURCES[:3]) + " |")
    return "\n".join([*lines, "", "![The priors, decoded](prior.png)", ""])


def _shares(counted: Tensor) -> list[dict[str, Any]]:
    whole = max(1, int(counted.sum()))
    ranges = [f"{a}" if b - a == 1 else f"{a} to {b - 1}" for a, b in pairwise(BINS)] + [f"{BINS[-1]} or more"]
    return [{"count": name, "share": n / whole} for name, n in zip(ranges, counted.tolist(), strict=True)]


def _class_sheet(prior: Prior, masks: Masks, decode: Callable[[Tensor], Tensor]) -> list[Picture]:
    """Each class' mean all over a picture, the most frequent classes first."""
    count = prior.categorical.count[:, 0, 0].cpu()
    classes = [c for c in torch.argsort(count, descending=True, stable=True).tolist() if count[c] > 0][:_CLASSES]
    _, h, w = prior.shape
    images = _decoded(prior.categorical.mean[classes].expand(-1, -1, h, w), decode)
    made = []
    for start in range(0, len(classes), _COLUMNS):
        part = classes[start : start + _COLUMNS]
        heads = [f"{_name(c, masks.names)}, {int(count[c]):,} tokens" for c in part]
        title, caption = ("Class means", "one mean everywhere, most frequent classes first") if not start else ("", "")
        made.append(sheet(title, caption, heads, [""], [list(images[start : start + len(part)])]))
    return made


def _name(class_id: int, names: Sequence[str]) -> str:
    return names[class_id] if class_id < len(names) else f"id {class_id}"


def _decoded(latents: Tensor, decode: Callable[[Tensor], Tensor]) -> NDArray[np.uint8]:
    """uint8 `(b, H, W, 3)`, one latent at a time: a decoder at full size needs much memory."""
    with torch.no_grad():
        images = [to_uint8(decode(one[None]), ("decoded prior",)) for one in latents]
    return torch.cat(images).permute(0, 2, 3, 1).cpu().numpy()


def _enlarged(picture: Picture, size: tuple[int, ...]) -> Picture:
    """Repeat pixels up to `size` (height, width)."""
    return picture.repeat(size[0] // picture.shape[0], axis=0).repeat(size[1] // picture.shape[1], axis=1)
