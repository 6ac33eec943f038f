# SPDX-License-Identifier: Apache-2.0
"""FID against pytorch-fid, its resizers against those of five implementations; weights come in as a checkpoint file."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from evaluators.features import inception
from evaluators.frechet import Moments, distance, factor, trace_of_root
from evaluators.network import Source
from evaluators.resizers import resize, squash
from runners import Case, Data, Found, Near, names
from runners.eval_deeplab import generated

#: Float32 sums in another order: of a feature map's standard deviation, and of a single value.
ROUNDING, LAST_BITS = 1e-5, 1e-6
#: What the cases call the resizers; sdm_256 is the step before.
RESIZERS = {"pytorch_fid": "pytorch-fid", "clean_legacy_pytorch": "pytorch-fid", "tf1": "tf1", "clean": "clean"}


@contextmanager
def checkpoint(case: Case, gain: float = 1.0) -> Iterator[Source]:
    """The case's generated weights as a file under the authors' names; the gain is on kernels and matrices."""
    weights = {key: generated(key, shape) for key, shape in case["keys"].items()}
    weights = {k: v * np.float32(gain) if v.ndim >= 2 else v for k, v in weights.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inception.pth"
        torch.save(weights, path)
        yield Source([path])


def near(found: NDArray, data: Data, name: str) -> Near:
    return Near(found, ROUNDING * float(data[name].std()), LAST_BITS)


def step_of(whole: int, kept: int) -> int:
    """Every how many-th of `whole` pixels is kept, where `kept` are."""
    step = -(-whole // kept)
    assert -(-whole // step) == kept, f"{kept} evenly spaced pixels of {whole}"
    return step


def features(case: Case, data: Data) -> Found:
    """Features at every depth the case lists, without and with its gain, and what the network sees."""
    images, wanted = data[names(case["inputs"])[0]], names(case["outputs"])
    found: dict[str, NDArray | Near] = {}
    for gain, ending in ((1.0, ""), (case["config"].get("gain", 1.0), "_gain")):
        depths = [(n, re.fullmatch(rf"feat(\d+){ending}", n)) for n in wanted]
        with checkpoint(case, gain) as source:
            extractor = inception.load({}, source)
        pixels = extractor.pixels(images)
        for name, match in depths:
            if match:
                extractor.dims = int(match[1])
                found[name] = near(extractor.features(images), data, name)
        if "block0_corner" in wanted and ending:
            c, h, w = data["block0_corner"].shape[1:]
            with torch.inference_mode():
                corner = extractor.network.maps(pixels, 64)[:, :c, :h, :w].numpy()
            found["block0_corner"] = near(corner, data, "block0_corner")
        if "resized_sub" in wanted:
            sub = pixels.numpy()[..., :: step_of(pixels.shape[-1], data["resized_sub"].shape[-1])]
            sub = sub[..., :: step_of(pixels.shape[-2], data["resized_sub"].shape[-2]), :]
            found["resized_sub"] = Near(sub, LAST_BITS)
    return found


def resizers(case: Case, data: Data) -> Found:
    found: dict[str, NDArray | Near] = {}
    for name in names(case["outputs"]):
        way, _, index = name.rpartition("_")
        image = data[f"image_{index}"][None]
        if way == "sdm_256":
            resized = squash(image)[0]
        else:
            resized = resize(image, RESIZERS[way], 299)[0].permute(1, 2, 0).numpy()
        h, w = (step_of(whole, kept) for whole, kept in zip(resized.shape, data[name].shape[:2], strict=False))
        found[name] = Near(resized[::h, ::w], 255 * LAST_BITS)
    return found


def statistics(case: Case, data: Data) -> Found:
    """Means, covariances and the FID of two folders of images, at several depths."""
    groups = sorted(names(case["inputs"]))
    wanted = names(case["outputs"])
    found: dict[str, NDArray | Near] = {}
    with checkpoint(case) as source:
        for dims in case["config"]["dims"]:
            extractor = inception.load({"dims": dims}, source)
            rows = [extractor.features(data[group]) for group in groups]
            error = LAST_BITS * max(float(np.abs(r).max()) for r in rows)
            moments = [Moments.of(r) for r in rows]
            for group, m in zip(groups, moments, strict=True):
                index, s = group.rpartition("_")[2], m.covariance
                tolerance = 2 * error * float(np.sqrt(np.diag(s).max()))
                mean, sigma = f"mu_{dims}_{index}", f"sigma_{dims}_{index}"
                corner = data[f"{sigma}_corner"].shape if f"{sigma}_corner" in wanted else (0, 0)
                found[mean] = Near(m.mean, ROUNDING * float(m.mean.std()), LAST_BITS)
                found[sigma] = Near(s, tolerance)
                found[f"{sigma}_diag"] = Near(np.diag(s), tolerance)
                found[f"{sigma}_corner"] = Near(s[: corner[0], : corner[1]], tolerance)
            value = distance(*moments)
            # the root of the distance is a metric, and either set moves by the error in each dimension at most
            moved = 2 * error * np.sqrt(dims)
            noise = moved * (2 * np.sqrt(max(value, 0)) + moved) + of_roots(*moments)
            found |= {name: Near(np.array(value), noise) for name in (f"fid_{dims}", f"fid_{dims}_eigh")}
    return found


def of_roots(one: Moments, two: Moments) -> float:
    """How far 2 tr (S_1 S_2)^(1/2) may be off by rounding of the eigenvalues, which weighs most where they are zero."""
    f = factor(two.covariance)
    values = np.linalg.eigvalsh(f.T @ one.covariance @ f)
    error = len(values) * np.finfo(np.float64).eps * values[-1]
    return float(2 * (error / np.sqrt(np.maximum(values, max(error, 1e-300)))).sum())


def frechet_distance(case: Case, data: Data) -> Found:
    """Distances of given statistics. Ours is the symmetric value: nothing is added to a singular covariance."""
    eps, found = case["config"]["eps"], {}
    for name in names(case["inputs"]):
        if not name.startswith("mu1_"):
            continue
        i = name.removeprefix("mu1_")
        mu1, mu2, s1, s2 = (data[f"{n}_{i}"].astype(np.float64) for n in ("mu1", "mu2", "sigma1", "sigma2"))
        one, two = Moments(2.0, mu1, s1), Moments(2.0, mu2, s2)
        value, added = distance(one, two), eps * np.eye(len(mu1))
        fallback = value + 2 * (trace_of_root(s1, s2) - trace_of_root(s1 + added, s2 + added))
        took = next((c["eps_path"] for k, c in enumerate(case["config"].get("cases", [])) if str(k) == i), False)
        noise, single = of_roots(one, two), data[f"mu1_{i}"].dtype == np.float32
        rounding = 1e-5 if single else 1e-9
        noise += 1e-13 * float(np.trace(s1 + s2))  # of the traces, which cancel where the distance is zero
        found[f"fid_eigh_{i}"] = Near(np.array(value), noise, rounding)
        found[f"fid_{i}"] = Near(np.array(fallback if took else value), noise, rounding)
        found[f"fid_eps_fallback_{i}"] = Near(np.array(fallback), noise, rounding)
    return found
