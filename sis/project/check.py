# SPDX-License-Identifier: Apache-2.0
"""`sis check NAME`: runs the contract of one plug-in on the built-in data; the test suite runs the same functions."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sis.config.files import dataset_card, dataset_root, named, project_root, settings
from sis.config.protocols import ProtocolCard
from sis.errors import SisError, did_you_mean
from sis.methods.discovery import MethodInfo, method_class, methods

if TYPE_CHECKING:
    from sis.config.cards import DatasetCard
    from sis.plan import RunSpec

_DATASET, _PROTOCOL = "scenes_tiny", "scenes-tiny"
_BATCH = 4
#: Datasets of at most so many pairs are prepared as a whole; of each split of larger ones so many pairs.
_SMALL, _SOME = 200, 32


def check(name: str) -> int:
    """Check a method, dataset or metric by name and print one line a clause; returns the exit code."""
    root = project_root()
    datasets = [p.stem for p in (root / "config" / "datasets").glob("*.yaml")]
    metrics = [p.stem for p in (root / "evaluators" / "metrics").glob("*.py") if p.stem != "__init__"]
    found = methods()
    if name in found:
        lines = check_method(found[name])
    elif name in datasets:
        lines = check_dataset(name)
    elif name in metrics:
        return subprocess.run([sys.executable, "-m", "evaluators", "check", name], check=False).returncode
    else:
        raise SisError(f"nothing is called {name!r}", fix=did_you_mean(name, [*found, *datasets, *metrics]))
    for line in lines:
        print(f"ok  {line}")  # noqa: T201
    return 0


def check_dataset(name: str) -> Iterator[str]:
    """The contract of a dataset; yields each clause that holds, raises SisError at the first that does not.

    The built-in scenes and small datasets are prepared twice as a whole, of larger ones some pairs.
    """
    from sis.data.check import check_raw
    from sis.data.parallel import available_cores

    card = dataset_card(name)
    root = dataset_root(card, settings())
    report = check_raw(card, root, available_cores())
    report.refuse()
    whole = card.layout == "scenes" or sum(s.count for s in card.splits.values()) <= _SMALL
    for facts in report.splits:
        pairs = f"{facts.read:,} pairs as the card expects"
        yield f"{facts.split}: {pairs}, every label id in the table {report.space.name}"
        twice = _whole_twice if whole else _some_twice
        yield f"{facts.split}: {twice(card, facts.split, root)} prepared twice, equal bytes"
    if report.overlaps:
        yield "; ".join(line for both in report.overlaps for line in both.lines()) + ", as its card allows"
    else:
        yield "no image is in two splits"


def _whole_twice(card: DatasetCard, split: str, root: Path) -> str:
    from sis.data.pairs import PairSet
    from sis.data.prepare import prepare

    with tempfile.TemporaryDirectory() as folder:
        first, again = (prepare(card, split, root, Path(folder, attempt)) for attempt in ("first", "again"))
        if list(first.files.values()) != list(again.files.values()):
            raise SisError(f"preparing {card.name}/{split} twice gives different bytes")
        for pair in PairSet(first):
            if pair.label.shape != (card.size[0], card.size[1]):
                raise SisError(f"a label map of {pair.label.shape}, not {card.size}", where=pair.image_id)
    return "all"


def _some_twice(card: DatasetCard, split: str, root: Path) -> str:
    from sis.data.prepare import Preparer, checked_entries
    from sis.data.split_facts import spread

    entries, preparer = checked_entries(card, split, root), Preparer(card, split)
    chosen = [entries[i] for i in spread(len(entries), _SOME)]
    for entry in chosen:
        if preparer.row(entry)[0] != preparer.row(entry)[0]:
            raise SisError(f"preparing {card.name}/{split} twice gives different bytes", where=entry.image_id)
    return f"{len(chosen)} pairs"


def check_method(info: MethodInfo) -> Iterator[str]:
    """The contract of a method; yields each clause that holds, raises SisError at the first that does not."""
    if info.kind == "rule":
        if not info.title or info.title == info.name:
            raise SisError("a rule file begins with a docstring, its title", where=info.path)
        yield f"the rule file has a title: {info.title}"
        return
    if info.kind == "images" and info.card is not None:
        yield f"the card is complete; pictures are expected as {info.card.path}/{info.card.pattern}"
        return
    if info.is_part:
        yield from _check_part(info)
        return
    with _workshop(info) as make:
        first = make("first", 0)
        yield f"{len(first)} images of the label maps' size, uint8, as an image set"
        if make("again", 0) != first:
            raise SisError(f"{info.name}: the same run twice gave different pixels", fix="draw only from `noise`")
        yield "the same run twice gives the same pixels"
        if make("shards", 3) != first:
            raise SisError(f"{info.name}: pixels depend on how the set is cut into shards")
        yield "pixels do not depend on shards or on the position in a batch"
        _check_variety(info, first)
        yield "samples of one map are equal" if info.deterministic else "samples of one map differ"
        if len({h for (_, sample), h in first.items() if sample == 0}) < 2:
            raise SisError(f"{info.name}: every label map gives the same image")
        yield "different label maps give different images"
    if info.kind == "python":
        yield from _check_class(info)


def _check_part(info: MethodInfo) -> Iterator[str]:
    """The contract of a method that only serves others: it trains, twice to the same weights."""
    from sis.data.manifest import file_sha256
    from sis.data.prepare import prepare
    from sis.device import prepare_device

    spec, device = example_spec(info), prepare_device("cpu", threads=1)
    digests = set()
    for _ in range(2):
        with tempfile.TemporaryDirectory() as name:
            prepare(spec.dataset, "train", Path(name), Path(name, "train"))
            model, _prior = _made(spec, Path(name), device)
            digests.add(file_sha256(model) if model else "")
    if "" in digests:
        raise SisError(f"{info.name} makes neither images nor a model", where=info.path, fix="write `sample` or `fit`")
    if len(digests) > 1:
        raise SisError(f"{info.name}: the same training twice gave other weights", where=info.path)
    yield "the same training twice gives the same weights"
    yield from _check_class(info)


def _check_class(info: MethodInfo) -> Iterator[str]:
    chosen = method_class(info.name)
    if "pairs" in chosen.NEEDS and chosen.ROLE != "control":
        raise SisError(f"{info.name} reads real photographs, so its ROLE must be control", where=info.path)
    yield "only a control reads the photographs it is judged against"
    reason = chosen.skip(dataset_card(_DATASET))
    if reason and not reason.endswith("."):
        raise SisError(f"{info.name}: skip must return a sentence, got {reason!r}", where=info.path)
    yield "skip returns nothing or a sentence"
    for params in (chosen.FitParams, chosen.SampleParams, chosen.PriorParams):
        silent = [n for n, f in params.model_fields.items() if not f.description]
        if silent:
            raise SisError(f"{info.name}: parameters without description: {', '.join(silent)}", where=info.path)
    yield "every parameter has a description"


def _check_variety(info: MethodInfo, hashes: dict[tuple[str, int], str]) -> None:
    pairs = [(hashes[(i, 0)], hashes[(i, 1)]) for i, sample in hashes if sample == 1]
    same = sum(a == b for a, b in pairs)
    if info.deterministic and same != len(pairs):
        raise SisError(f"{info.name} says DETERMINISTIC, but samples of one map differ", where=info.path)
    if not info.deterministic and same:
        raise SisError(f"{info.name}: {same} of {len(pairs)} label maps gave equal samples", where=info.path)


@contextmanager
def _workshop(info: MethodInfo) -> Iterator[Callable[[str, int], dict[tuple[str, int], str]]]:
    """A temporary folder with tiny pairs and, where needed, tiny trained models; yields a function that samples."""
    from sis.data.image_set import pixel_hashes
    from sis.data.prepare import prepare
    from sis.device import prepare_device
    from sis.sampling.run import SampleJob, sample_run

    spec, device = example_spec(info), prepare_device("cpu", threads=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split in ("train", "val"):
            prepare(spec.dataset, split, folder, folder / split)
        model, prior = _made(spec, folder, device)
        uses = {role: _model(folder, other) for role, other in spec.used("sample").items()}
        styles = folder / "train" if "references" in info.needs else None

        def make(label: str, shards: int) -> dict[tuple[str, int], str]:
            out = folder / label
            job = SampleJob(spec, folder / "val", out, model, prior, device, shards, uses=uses, styles=styles)
            with _untouched_randomness(info):
                sample_run(job)
            return pixel_hashes(out)

        yield make


def _made(spec: RunSpec, folder: Path, device: str) -> tuple[Path | None, Path | None]:
    """Train what a run uses, then its own model, and compute its prior; returns the last two."""
    from sis.methods.build import UsedFiles
    from sis.run_spec import MIRRORED
    from sis.training.encode import encode_split
    from sis.training.prior import compute_prior
    from sis.training.train import train_model

    for other in spec.uses.values():
        if not _model(folder, other).is_file():
            _made(other, folder, device)
    latents, model, prior = None, None, None
    if spec.latents_id:
        latents, encoder = folder / spec.latents_id, spec.uses[spec.method.latents]
        mirrored = spec.latents_id.endswith(MIRRORED)
        encode_split(encoder, folder / "train", _model(folder, encoder), mirrored, latents, device)
    used = UsedFiles({role: _model(folder, other) for role, other in spec.used("fit").items()}, latents)
    if spec.method.trains:
        model = _model(folder, spec)
        train_model(spec, folder / "train", model, device, used=used)
    if spec.method.has_prior:
        prior = folder / "prior.safetensors"
        compute_prior(spec, folder / "train", prior, device, used)
    return model, prior


def _model(folder: Path, spec: RunSpec) -> Path:
    return folder / spec.model_id / "model.safetensors"


def example_spec(info: MethodInfo, entry: Mapping[str, Any] | None = None) -> RunSpec:
    """A run of a method with its small example parameters, or with those of an entry of some EXAMPLE_USES."""
    from sis.plan import RunSpec

    chosen = method_class(info.name) if info.kind == "python" else None
    own = {"fit": dict(chosen.EXAMPLE_FIT), "uses": dict(chosen.EXAMPLE_USES)} if chosen else {}
    facts = {"fit": {}, "uses": {}, **(own if entry is None else entry)}
    uses = {role: example_spec(methods()[other["method"]], other) for role, other in facts["uses"].items()}
    card, protocol = dataset_card(_DATASET), named("protocols", _PROTOCOL, ProtocolCard)
    return RunSpec(
        dataset=card, protocol=protocol, name=info.name, method=info, title=info.title, fit=facts["fit"],
        sample=dict(chosen.EXAMPLE_SAMPLE) if chosen else {}, seed=0, sample_seed=0, samples_per_map=2,
        batch_size=_BATCH, shard_size=500, threads=1, prior=dict(chosen.EXAMPLE_PRIOR) if chosen else {}, uses=uses,
    )  # fmt: skip


@contextmanager
def _untouched_randomness(info: MethodInfo) -> Iterator[None]:
    """Raise SisError when the code inside draws from a global random generator."""
    import numpy as np
    import torch

    def state() -> tuple[object, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())

    before = state()
    yield
    if state() != before:
        raise SisError(f"{info.name} draws from a global random generator", where=info.path, fix="use `noise`")
