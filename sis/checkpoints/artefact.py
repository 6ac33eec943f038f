# SPDX-License-Identifier: Apache-2.0
"""Between files of other people and our model artefacts: look into a file, bring it in, write it back out."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor, nn

import sis.checkpoints
from sis.data.atomic import remove_leftovers
from sis.data.manifest import Manifest, file_sha256, manifest_path, read_manifest, stable_hash
from sis.data.provenance import RunRecord
from sis.data.tensors import load_tensors, save_tensors
from sis.data.weight_files import read_weights, write_weights
from sis.errors import SisError, did_you_mean

#: What a user may say of weights; a file does not tell.
WEIGHTS = ("ema", "raw", "not stated")


class Format(Protocol):
    """What a file of this package offers if it is an upstream format; its stem is the format's name."""

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
    """What a file of weights is: format, what its format tells, parameters, bytes, sha256.

    A model of ours (it has a manifest) tells what its manifest says.
    """
    if manifest_path(path).is_file():
        manifest = read_manifest(path, "model")
        tensors, meta = load_tensors(path, "model")
        source = meta.get("source")
        facts: dict[str, object] = {"format": "model of this project", "method": meta["method"]}
        facts |= {"dataset": meta["dataset"], "label channels": meta["label_width"], "fit": meta["fit"]}
        facts |= {"imported from": source["file"], "weights": source["weights"]} if source else {}
        return facts | _sizes(tensors, path, manifest.files[path.name])
    file = read_weights(path)
    name, found = _format_of(file.tensors, path)
    with _about(path):
        facts = {"format": name, **found.describe(file.tensors)}
    return facts | _sizes(file.tensors, path, file.sha256)


def import_model(file: Path, weights: str, network: nn.Module, target: Target, out: Path) -> Manifest:
    """Write a foreign file's weights as the model artefact of a run.

    Args:
        file: the foreign file; its name and sha256 go into the artefact's facts.
        weights: ema, raw or "not stated", as the user says; recorded, since no file tells.
        network: the network of the run's method; it may lie on the meta device.
        target: the run.
        out: the artefact's file.

    Raises SisError for a file that is not of a known format or does not fit the network.
    """
    if weights not in WEIGHTS:
        raise SisError(f"weights are {weights!r}", fix=did_you_mean(weights, WEIGHTS))
    run = RunRecord.start(device="cpu")
    read = read_weights(file)
    name, found = _format_of(read.tensors, file)
    if target.method != found.METHOD:
        raise SisError(f"a checkpoint of {found.METHOD}, the run's method is {target.method}", where=file)
    with _about(file):
        tensors = found.to_model(read.tensors, network, target.fit, file)
    source = {"file": file.name, "sha256": read.sha256, "bytes": read.bytes, "format": name, "weights": weights}
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


def _format_of(state: Mapping[str, Tensor], path: Path) -> tuple[str, Format]:
    known = formats()
    for name, found in known.items():
        if found.recognises(state):
            return name, found
    raise SisError(f"weights of no known format ({', '.join(known)}); the first is {next(iter(state))}", where=path)


def _sizes(tensors: Mapping[str, Tensor], path: Path, sha256: str) -> dict[str, object]:
    types = Counter(str(value.dtype).removeprefix("torch.") for value in tensors.values())
    return {
        "parameters": f"{sum(value.numel() for value in tensors.values()):,}",
        "tensors": f"{len(tensors)}, {' and '.join(types)}",
        "bytes": f"{path.stat().st_size:,}",
        "sha256": sha256,
    }
