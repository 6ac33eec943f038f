# SPDX-License-Identifier: Apache-2.0
"""How a training's pictures are sampled: by the run's own method, in a second network, with few steps."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch
from torch import Tensor

from sis.config.recipe import Recipe
from sis.data.pairs import PairSet
from sis.diffusion.noise import Noise
from sis.errors import SisError
from sis.methods.build import build_method
from sis.methods.contract import MapBatch, Method
from sis.plan import RunSpec
from sis.training.monitor import Sampler


def preview_sampler(spec: RunSpec, method: Method, pairs: PairSet, device: str) -> Sampler | None:
    """The run's sampling with at most `preview_steps` steps; None for a recipe without pictures.

    Each call builds the method anew, so that nothing of the training is touched. Raises SisError for methods that
    sample with a prior, which a training does not have.
    """
    recipe = method.fit_params
    if not isinstance(recipe, Recipe) or not recipe.preview_every:
        return None
    if spec.method.has_prior:
        raise SisError(f"method {spec.method.name} samples with a prior: no pictures", fix="set preview_every to 0")
    few = dataclasses.replace(spec, sample=_capped(spec.sample, method.sample_params, recipe.preview_steps))

    def sample(weights: dict[str, Tensor], maps: MapBatch, noise: Noise) -> Tensor:
        with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
            artist = build_method(few, device, pairs, None)
            artist.network.load_state_dict(weights)
            artist.network.eval()
            with torch.inference_mode():
                return artist.sample(maps, noise)

    return sample


def _capped(given: dict[str, Any], params: Any, most: int) -> dict[str, Any]:
    """The run's sampling parameters; of steps, a number or words as `ddim100` and `10,20`, at most so many."""
    steps = getattr(params, "steps", None)
    if steps is None or sum(int(n) for n in re.findall(r"\d+", str(steps))) <= most:
        return given
    return given | {"steps": most}
