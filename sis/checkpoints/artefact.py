# SPDX-License-Identifier: Apache-2.0
"""Between files of other people and our model artefacts: look into a file, bring it in, write it back out."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor, nn

import sis.checkpoints
from sis.checkpoints.diffusers_folder import WeightFolder, read_folder
from sis.data.atomic import remove_leftovers
from sis.data.manifest import Manifest, file_sha256, manifest_path, read_manifest, stable_hash
from sis.data.provenance import RunRecord
from sis.data.tensors import load_tensors, save_tensors
from sis.data.weight_files import WeightFile, read_weights, write_weights
from sis.errors import SisError, did_you_mean

#: What a user may say of weights; a file does not tell.
WEIGHTS = ("ema", "raw", "not stated")

#: `organisation/model`, as hubs name what they hold.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?<!\.safetensors)(?<!\.ckpt)(?<!\.pt)(?<!\.pth)(?<!\.bin)")


class Format(Protocol):
    """What a file of this package offers if it is an upstream format; its stem is the format's name.

    One file of weights may be of several formats: a whole checkpoint of Stable Diffusion holds a U-Net and an
    autoencoder, for a method each. A format that reads folders in the layout of diffusers names their parts in FOLDERS.
    """

    #: The method whose network the weights fill.
    METHOD: str

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Whether weights are of this format."""
        ...

    def describe(self, state: Mapping[str, Tensor]) -> dict[str, object]:
        """Facts that the weights tell, for people to read."""
        ...

    def to_model(
        self, state: Mapping[str, Tensor], network: nn.Module, fit: Mapping[str, Any], where: Path
    ) -> dict[str, Tensor]:
        """The weights under the names of the method's network, which may lie on the meta device."""
        ...

    def from_model(self, tensors: Mapping[str, Tensor], fit: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
        """The weights of a model artefact under the upstream names."""
        ...


@dataclass(frozen=True)
class Target:
    """The run whose model the weights become: facts that its artefact carries, as a trained one's."""

    method: str
    model_id: str
    dataset: str
    fit: dict[str, Any]
    label_width: int


def formats() -> dict[str, Format]:
    """All upstream formats, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(sis.checkpoints.__path__))
    modules = {name: importlib.import_module(f"sis.checkpoints.{name}") for name in names}
    return {name: cast("Format", module) for name, module in modules.items() if hasattr(module, "recognises")}


def inspect(path: Path) -> dict[str, object]:
    """What a file or folder of weights is: formats, what they tell, parameters, bytes, sha256.

    A model of ours (it has a manifest) tells what its manifest says.
    """
    if path.is_file() and manifest_path(path).is_file():
        manifest = read_manifest(path, "model")
        tensors, meta = load_tensors(path, "model")
        source = meta.get("source")
        facts: dict[str, object] = {"format": "model of this project", "method": meta["method"]}
        facts |= {"dataset": meta["dataset"], "label channels": meta["label_width"], "fit": meta["fit"]}
        facts |= {"imported from": source["file"], "weights": source["weights"]} if source else {}
        return facts | _sizes(tensors, path.stat().st_size, manifest.files[path.name])
    read = _read(path, formats())
    found = _formats_of(read.tensors, path)
    facts = {"format": ", ".join(found)}
    with _about(path):
        for known in found.values():
            facts |= known.describe(read.tensors)
    return facts | _sizes(read.tensors, read.bytes, read.sha256)


def import_model(file: Path, weights: str, network: nn.Module, target: Target, out: Path) -> Manifest:
    """Write a foreign file's, or folder's, weights as the model artefact of a run.

    Args:
        file: the foreign file or folder; its name and sha256 go into the artefact's facts.
        weights: ema, raw or "not stated", as the user says; recorded, since no file tells.
        network: the network of the run's method; it may lie on the meta device.
        target: the run.
        out: the artefact's file.

    Raises SisError for a file that is not of a known format or does not fit the network.
    """
    if weights not in WEIGHTS:
        raise SisError(f"weights are {weights!r}", fix=did_you_mean(weights, WEIGHTS))
    run = RunRecord.start(device="cpu")
    known = {name: known for name, known in formats().items() if target.method == known.METHOD}
    read = _read(file, known)
    every = _formats_of(read.tensors, file)
    fitting = [name for name in every if name in known]
    if not fitting:
        methods = " and ".join(sorted({found.METHOD for found in every.values()}))
        raise SisError(f"a checkpoint of {methods}, the run's method is {target.method}", where=file)
    name = fitting[0]
    with _about(file):
        tensors = known[name].to_model(read.tensors, network, target.fit, file)
    source = {"file": file.name, "sha256": read.sha256, "bytes": read.bytes, "format": name, "weights": weights}
    source |= {"files": read.files} if isinstance(read, WeightFolder) else {}
    facts = {
        "method": target.method,
        "model_id": target.model_id,
        "key": stable_hash([target.model_id, "imported", read.sha256, weights], 16),
        "dataset": target.dataset,
        "fit": target.fit,
        "label_width": target.label_width,
        "parameters": sum(value.numel() for value in tensors.values()),
        "final_loss": None,
        "training_seconds": 0.0,
        "source": source,
    }
    save_tensors(tensors, out, "model", facts, run)
    remove_leftovers(out.parent)
    return read_manifest(out, "model")


def export_model(model: Path, name: str, out: Path) -> str:
    """Write a model artefact as a file of an upstream format; returns its sha256.

    Raises SisError for an unknown format, and for a network that the format's authors do not have.
    """
    known = formats()
    if name not in known:
        raise SisError(f"no checkpoint format {name!r}", fix=did_you_mean(name, known))
    tensors, meta = load_tensors(model, "model")
    if meta["method"] != known[name].METHOD:
        raise SisError(f"a model of {meta['method']}, the format {name} is for {known[name].METHOD}", where=model)
    write_weights(known[name].from_model(tensors, meta["fit"], model), out)
    return file_sha256(out)


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Name the file in refusals that do not know it."""
    try:
        yield
    except SisError as error:
        raise SisError(error.what, where=error.where or path, fix=error.fix) from error


def _read(path: Path, known: Mapping[str, Format]) -> WeightFile:
    """The weights of a file, or of those parts of a folder that some formats read.

    Raises SisError for a name of a hub, too: nothing is downloaded.
    """
    if path.is_dir():
        parts = {part for found in known.values() for part in getattr(found, "FOLDERS", ())}
        if not parts:
            raise SisError("a folder, and this method's checkpoints are files", where=path, fix="name the file")
        return read_folder(path, parts)
    if not path.exists() and _HUB_ID.fullmatch(str(path)) and not Path(path.parts[0]).is_dir():
        raise SisError(
            f"no file or folder is called {path}, and nothing is downloaded from a hub",
            fix="fetch unet/, vae/ and scheduler/ (config.json, *.safetensors) and name their folder, see "
            "docs/base-models.md",
        )
    return read_weights(path)


def _formats_of(state: Mapping[str, Tensor], path: Path) -> dict[str, Format]:
    """All formats that weights are of, by name."""
    known = formats()
    found = {name: known[name] for name in known if known[name].recognises(state)}
    if not found:
        raise SisError(f"weights of no known format ({', '.join(known)}); the first is {next(iter(state))}", where=path)
    return found


def _sizes(tensors: Mapping[str, Tensor], size: int, sha256: str) -> dict[str, object]:
    types = Counter(str(value.dtype).removeprefix("torch.") for value in tensors.values())
    return {
        "parameters": f"{sum(value.numel() for value in tensors.values()):,}",
        "tensors": f"{len(tensors)}, {' and '.join(types)}",
        "bytes": f"{size:,}",
        "sha256": sha256,
    }
