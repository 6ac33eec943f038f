# SPDX-License-Identifier: Apache-2.0
"""Runners of golden cases: which function answers which kind, and how its answer is compared.

A runner is a plain function `(case, data) -> found`: `case` is case.json, `data` the arrays of data.npz, `found` maps
the names of the case's outputs to arrays, or to `Near` where rounding may differ. It takes every parameter from the
case, never from its folder's name. Every output that the case lists must be found.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray


@dataclass(frozen=True)
class Near:
    """An array that may differ from the case's in every element by `atol` plus `rtol` times the case's value there."""

    array: NDArray
    atol: float | NDArray
    rtol: float = 0.0


Case = dict[str, Any]
Data = dict[str, NDArray]
Found = Mapping[str, NDArray | Near]

#: Kind to the function that answers it: module of this folder, name.
RUNNERS: dict[str, tuple[str, str]] = {
    "eval.deeplabv2": ("eval_deeplab", "deeplabv2"),
    "eval.drn": ("eval_drn", "single"),
    "eval.drn_multiscale": ("eval_drn", "multiscale"),
    "eval.face_unet": ("eval_face_unet", "face_unet"),
    "eval.fid_inception": ("eval_fid", "features"),
    "eval.fid_resizers": ("eval_fid", "resizers"),
    "eval.fid_statistics": ("eval_fid", "statistics"),
    "eval.frechet_distance": ("eval_fid", "frechet_distance"),
    "eval.lpips": ("eval_diversity", "lpips"),
    "eval.miou_definitions": ("eval_miou", "definitions"),
    "eval.ms_ssim": ("eval_diversity", "structural"),
    "eval.sdm_lpips_protocol": ("eval_diversity", "sdm_lpips_protocol"),
    "eval.upernet": ("eval_upernet", "single"),
    "eval.upernet_multiscale": ("eval_upernet", "multiscale"),
    "gan.spade.preprocess": ("conditions", "spade_preprocess"),
    "iidm.colour_transfer": ("iidm_chains", "colour_transfer"),
    "iidm.ddim_i2i": ("iidm_chains", "ddim_i2i"),
    "iidm.full_model_keys": ("iidm_first_stage", "full_model_keys"),
    "iidm.jittor_checkpoint": ("iidm_first_stage", "jittor_checkpoint"),
    "iidm.label_onehot": ("conditions", "iidm_label_onehot"),
    "iidm.pipeline": ("iidm_chains", "pipeline"),
    "iidm.q_sample": ("iidm_chains", "q_sample"),
    "iidm.sampler_step": ("iidm_chains", "sampler_step"),
    "iidm.schedule": ("iidm_chains", "schedules"),
    "iidm.score": ("iidm_scores", "score"),
    "iidm.style_similarity": ("iidm_scores", "style_similarity"),
    "iidm.training_losses": ("iidm_chains", "training_losses"),
    "iidm.unet": ("iidm_chains", "unet"),
    "iidm.vq_autoencoder": ("iidm_first_stage", "vq_autoencoder"),
    "iidm.weight_average": ("iidm_first_stage", "weight_average"),
    "scp.cldm_controlnet": ("scp_networks", "cldm_controlnet"),
    "scp.ddim_joint": ("scp_chains", "ddim_joint"),
    "scp.ddim_truncation": ("scp_chains", "ddim_truncation"),
    "scp.diffusers_controlnet": ("scp_networks", "diffusers_controlnet"),
    "scp.hint_encode": ("hints", "hint_encode"),
    "scp.prior_map": ("scp_priors", "prior_map"),
    "scp.prior_stats": ("scp_priors", "prior_stats"),
    "scp.train_step": ("scp_chains", "train_step"),
    "scp.vae": ("scp_networks", "vae"),
    "sdm.blocks": ("sdm_network", "blocks"),
    "sdm.chain_ddim": ("sdm_network", "chain_ddim"),
    "sdm.chain_ddpm": ("sdm_network", "chain_ddpm"),
    "sdm.condition_input": ("conditions", "condition_input"),
    "sdm.diffusion_math": ("sdm_mathematics", "diffusion_math"),
    "sdm.edges": ("conditions", "edges"),
    "sdm.model_keys": ("sdm_network", "model_keys"),
    "sdm.preprocess": ("preparation", "sdm_preprocess"),
    "sdm.schedule": ("sdm_mathematics", "schedules"),
    "sdm.timestep_embedding": ("sdm_network", "embedding"),
    "sdm.train_steps": ("sdm_training", "train_steps"),
    "sdm.unet": ("sdm_network", "unet"),
}

#: Kinds that are declined for good, with the reason.
DECLINED = {
    "sdm.unet_legacy": "strided resampling and additive time embedding: no released SDM model uses these flags",
}


def run_case(folder: Path) -> None:
    """Run the case in a folder and compare all its outputs."""
    if not (folder / "case.json").is_file():
        pytest.fail(f"no case.json below {folder}", pytrace=False)
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    kind = case.get("kind")
    if kind in DECLINED:
        pytest.skip(f"{kind} is declined: {DECLINED[kind]}")
    if kind not in RUNNERS:
        pytest.fail(f"no runner for kind {kind!r}; known: {sorted(RUNNERS)}", pytrace=False)
    module, name = RUNNERS[kind]
    runner: Callable[[Case, Data], Found] = getattr(importlib.import_module(f"runners.{module}"), name)
    with np.load(folder / "data.npz", allow_pickle=False) as arrays:
        data = dict(arrays)
    outputs = [output for entry in names(case["outputs"]) for output in named(entry, data)]
    compare(runner(case, data), {output: data[output] for output in outputs})


def names(entries: list) -> list[str]:
    """The names of a case's inputs or outputs, which stand there alone or with their shapes."""
    return [entry if isinstance(entry, str) else entry["name"] for entry in entries]


def named(entry: str, data: Data) -> list[str]:
    """The arrays that an entry means: one by its name, or all of a pattern (`out__*`, `out0..2`, `stageN_z`)."""
    if entry in data:
        return [entry]
    pattern = re.sub(r"\d+\.\.\d+$", "N", entry.replace("*", ".*")).replace("N", r"\d+")
    found = [name for name in data if re.fullmatch(pattern, name)]
    assert found, f"the case has no array of the output {entry!r}"
    return found


def compare(found: Found, expected: Mapping[str, NDArray]) -> None:
    """Fail unless every expected array was found, with its shape and its values."""
    assert expected, "the case lists no outputs"
    missing = sorted(set(expected) - set(found))
    assert not missing, f"outputs that the runner did not find: {missing}"
    for name, right in expected.items():
        ours = found[name]
        near = ours if isinstance(ours, Near) else Near(ours, 0.0)
        array = near.array
        assert array.shape == right.shape, f"{name}: shape {array.shape}, the case has {right.shape}"
        there, wanted = array.astype(np.float64), right.astype(np.float64)
        distance = np.abs(there - wanted)
        undefined = np.isnan(there) & np.isnan(wanted)  # what the authors' code leaves undefined is undefined here too
        within = undefined | (distance <= near.atol + near.rtol * np.abs(wanted))  # false where one is not a number
        assert within.all(), f"{name}: {(~within).sum()} of {within.size} values differ, by up to {distance.max():.3g}"
