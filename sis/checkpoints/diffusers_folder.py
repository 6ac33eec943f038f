# SPDX-License-Identifier: Apache-2.0
"""Folders in the layout of diffusers: a sub-folder a network (or the network's own), config.json and safetensors.

Only files on this machine are read. Numbers in the configurations that weights do not show are checked here: how many
attention heads, what the network predicts, how latents are scaled.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sis.data.weight_files import WeightFile, read_weights
from sis.errors import SisError

#: Weights of one network, best first; other files (half precision beside full, averaged beside raw) are left alone.
_STEMS = ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16")
#: The class that a configuration names, and the sub-folder that such a network has in a pipeline's folder.
_CLASSES = {"UNet2DConditionModel": "unet", "ControlNetModel": "controlnet", "AutoencoderKL": "vae"}
#: Side of the latents of bases for 768 pixels, which predict the velocity.
_VELOCITY_SIDE = 96


@dataclass(frozen=True)
class WeightFolder(WeightFile):
    """The weights of a folder; sha256: of the list of its files with their sha256s."""

    files: dict[str, str]


def read_folder(folder: Path, networks: Collection[str]) -> WeightFolder:
    """The weights of some networks (`unet`, `controlnet`, `vae`) of a folder, their names behind the network's.

    Raises SisError for a folder that has none of them, or whose files are missing or damaged.
    """
    found = {name: place for name in networks if (place := place_of(folder, name)) is not None}
    if not found:
        names = ", ".join(sorted(networks))
        fix = "name a folder in diffusers' layout, which has config.json beside *.safetensors (docs/base-models.md)"
        raise SisError(f"the folder holds no {names}", where=folder, fix=fix)
    tensors: dict[str, Tensor] = {}
    files: dict[str, str] = {}
    size = 0
    for name, place in found.items():
        for path in _weight_files(place):
            read = read_weights(path)
            tensors |= {f"{name}.{key}": value for key, value in read.tensors.items()}
            files[path.relative_to(folder).as_posix()] = read.sha256
            size += read.bytes
    listing = "".join(f"{digest}  {path}\n" for path, digest in sorted(files.items()))
    return WeightFolder(tensors, folder, hashlib.sha256(listing.encode()).hexdigest(), size, files)


def place_of(folder: Path, network: str) -> Path | None:
    """Where a network's configuration and weights lie: a sub-folder, or the folder itself; None: nowhere."""
    if (folder / network / "config.json").is_file():
        return folder / network
    own = folder / "config.json"
    if own.is_file() and _CLASSES.get(str(read_json(own).get("_class_name"))) == network:
        return folder
    return None


def options(folder: Path, network: str) -> Mapping[str, Any] | None:
    """A network's configuration; None for a folder without one."""
    place = place_of(folder, network)
    return None if place is None else read_json(place / "config.json")


def predicted(folder: Path) -> str:
    """What a folder's U-Net was trained to predict, in diffusers' words; empty where nothing tells.

    The scheduler beside the U-Net says it. Without one, latents of 96x96 speak of a base for 768 pixels.
    """
    for beside in (folder, folder.parent) if place_of(folder, "unet") == folder else (folder,):
        path = beside / "scheduler" / "scheduler_config.json"
        if path.is_file():
            return str(read_json(path).get("prediction_type", "epsilon"))
    return "v_prediction" if (options(folder, "unet") or {}).get("sample_size") == _VELOCITY_SIDE else ""


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON file's object. Raises SisError for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SisError("not a readable JSON file", where=path) from error
    if not isinstance(found, dict):
        raise SisError(f"holds a {type(found).__name__}, not a configuration", where=path)
    return found


def _weight_files(place: Path) -> list[Path]:
    """The safetensors of one network: one file, or all parts of one."""
    for stem in _STEMS:
        if (place / f"{stem}.safetensors").is_file():
            return [place / f"{stem}.safetensors"]
    parts = sorted(p for p in place.glob("*.safetensors") if re.search(r"-\d{5}-of-\d{5}\.safetensors$", p.name))
    totals = {int(p.stem.rsplit("-", 1)[1]) for p in parts}
    if parts and totals == {len(parts)}:
        return parts
    if parts:
        what = f"{len(parts)} parts of a file of {' or '.join(map(str, sorted(totals)))}"
        raise SisError(what, where=place, fix="fetch the others, and keep one set of them")
    others = sorted(place.glob("*.safetensors"))
    if len(others) == 1:
        return others
    what = "no *.safetensors beside config.json" if not others else f"{len(others)} files of weights, which one?"
    fix = "fetch diffusion_pytorch_model.safetensors" if not others else "keep diffusion_pytorch_model.safetensors"
    raise SisError(what, where=place, fix=f"{fix} (docs/base-models.md)")
