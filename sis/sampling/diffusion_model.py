# SPDX-License-Identifier: Apache-2.0
"""Opens the trained diffusion model of a run outside an image set: for editing a picture, for watching a chain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sis.config.cards import Scalar
from sis.diffusion.pixel_diffusion import PixelDiffusion
from sis.diffusion.repaint import Step
from sis.errors import SisError, did_you_mean
from sis.methods.build import build_method, load_weights
from sis.methods.discovery import method_class, methods
from sis.plan import RunSpec


@dataclass(frozen=True)
class DiffusionModel:
    """A run's method with its weights, and the steps that its sampling parameters mean."""

    diffusion: PixelDiffusion
    step: Step


def refuse_other_methods(spec: RunSpec) -> None:
    """Raise SisError when a run's method does not draw its pictures by denoising pixels."""
    if spec.method.kind == "python" and _is_diffusion(spec.method.name):
        return
    known = [name for name, info in methods().items() if info.kind == "python" and _is_diffusion(name)]
    raise SisError(
        f"{spec.method.name} draws no picture by denoising pixels step by step, so it can neither edit nor be watched",
        where=f"run {spec.name}",
        fix=f"choose a run of {' or '.join(known)}" if known else "",
    )


def open_diffusion(
    spec: RunSpec, model: Path | None, device: str, changes: Mapping[str, Scalar] | None = None
) -> DiffusionModel:
    """Build a run's method, with some sampling parameters changed, and load its averaged weights.

    Raises SisError for methods that are no pixel diffusion, parameters that the method does not know, and a missing,
    altered or unfit model.
    """
    refuse_other_methods(spec)
    refuse_unknown(spec, changes or {})
    method = build_method(replace(spec, sample={**spec.sample, **(changes or {})}), device, None, None)
    if spec.method.trains:
        if model is None:
            raise SisError(f"method {spec.method.name} needs a trained model", fix="give --model")
        load_weights(method, model)
    if method.network is not None:
        method.network.eval()
    assert isinstance(method, PixelDiffusion)
    return DiffusionModel(method, _step(method.sample_params))


def _step(how: object) -> Step:
    """One step of the sampler that sampling parameters name, as far as they name one (see `PixelDiffusion`).

    A solver that looks back at earlier steps has no single step; its steps of order 1 are DDIM's without noise.
    """
    numbers = list(getattr(how, "channel_statistics", []))
    return Step(
        clip=getattr(how, "clip", True),
        variance=getattr(how, "variance", "learned"),
        statistics=torch.tensor(numbers).reshape(2, -1) if numbers else None,
        eta=None if getattr(how, "sampler", "ddpm") == "ddpm" else float(getattr(how, "eta", 0.0)),
    )


def refuse_unknown(spec: RunSpec, changes: Mapping[str, Scalar]) -> None:
    """Raise SisError when a run's method has no such sampling parameters."""
    known = method_class(spec.method.name).SampleParams.model_fields
    for name in changes:
        if name not in known:
            raise SisError(f"{spec.method.name} has no sampling parameter {name!r}", fix=did_you_mean(name, known))


def _is_diffusion(method: str) -> bool:
    return issubclass(method_class(method), PixelDiffusion)
