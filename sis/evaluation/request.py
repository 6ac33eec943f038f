# SPDX-License-Identifier: Apache-2.0
"""What `sis eval` was asked, made precise: dataset, protocol, metrics, controls, name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from sis.config.cards import DatasetCard
from sis.config.files import ad_hoc, config_file, dataset_card, named, project_root
from sis.config.protocols import ProtocolCard
from sis.config.strict_yaml import load_yaml
from sis.data.atomic import write_text_atomic
from sis.data.manifest import stable_hash
from sis.errors import SisError, did_you_mean
from sis.methods.discovery import methods

#: What the name of the benchmark's own protocol of a dataset ends with.
BENCH = "_bench"
#: Letters of the name that a folder gives a run.
_NAME = 40


@dataclass(frozen=True)
class Request:
    """The command line of `sis eval`; what is empty is found out.

    source: folder of pictures, or image set; pattern and samples: of a folder; threads: of every job, 0 for all cores.
    """

    source: Path
    dataset: str = ""
    protocol: str = ""
    metrics: Sequence[str] = ()
    controls: Sequence[str] = ("real",)
    name: str = ""
    title: str = ""
    pattern: str = ""
    samples: int = 0
    threads: int = 0
    out: Path | None = None


def choose_protocol(dataset: DatasetCard, wanted: str) -> ProtocolCard:
    """The protocol called `wanted`, or the benchmark's own of the dataset, else its only one or the one of its name.

    The benchmark's own is `<dataset>_bench` (docs/protocols.md). Raises SisError for one of another dataset, and where
    a choice is left, listing them.
    """
    if wanted:
        card = named("protocols", wanted, ProtocolCard)
        if card.dataset != dataset.name:
            fix = f"protocols of {dataset.name}: {', '.join(_protocols_of(dataset.name)) or 'none'}"
            raise SisError(f"protocol {card.name} judges {card.dataset}, not {dataset.name}", fix=fix)
        return card
    known = _protocols_of(dataset.name)
    usual = [name for name in known if _same(name, f"{dataset.name}{BENCH}")]
    chosen = usual or (known if len(known) == 1 else [name for name in known if _same(name, dataset.name)])
    if len(chosen) != 1:
        fault = f"{dataset.name} has {len(known)} protocols" if known else f"{dataset.name} has no protocol"
        fix = f"choose one: --protocol {' | '.join(known)}" if known else "write one: config/protocols/<name>.yaml"
        raise SisError(fault, where=project_root() / "config" / "protocols", fix=fix)
    return named("protocols", chosen[0], ProtocolCard)


def local_judge(dataset: DatasetCard) -> str:
    """The dataset's protocol of a judge that is trained here, which needs no weights from elsewhere; "" without."""
    for name in _protocols_of(dataset.name):
        if _same(name, dataset.name) and named("protocols", name, ProtocolCard).trained_segmenter() is not None:
            return name
    return ""


def _same(one: str, other: str) -> bool:
    return one.replace("-", "_") == other.replace("-", "_")


def check_metrics(protocol: ProtocolCard, metrics: Sequence[str]) -> None:
    """Raise SisError, with the nearest, for a metric that the protocol has not."""
    known = _stems(protocol)
    for metric in metrics:
        if metric not in known:
            fault = f"protocol {protocol.name} has no metric {metric!r}"
            raise SisError(fault, where="--metrics", fix=did_you_mean(metric, known))


def _stems(protocol: ProtocolCard) -> list[str]:
    return list(dict.fromkeys(entry if isinstance(entry, str) else entry.metric for entry in protocol.metrics))


def only(protocol: ProtocolCard, metrics: Sequence[str]) -> ProtocolCard:
    """The protocol with some of its metrics alone, kept as a card of its own beside the artefacts.

    Its numbers have the ids of the whole protocol's: they depend on no other metric. Raises SisError for a metric that
    the protocol has not.
    """
    if not metrics:
        return protocol
    check_metrics(protocol, metrics)
    known = _stems(protocol)
    chosen = [metric for metric in known if metric in metrics]
    if chosen == known:
        return protocol
    path = config_file("protocols", protocol.name)
    data = load_yaml(path)[0]
    entries = data["metrics"]
    data["metrics"] = [e for e in entries if (e if isinstance(e, str) else e["metric"]) in metrics]
    data["name"] = f"{protocol.name}.{'-'.join(chosen)}"
    if len(data["name"]) > 64:
        data["name"] = f"{protocol.name[:50]}.{stable_hash(chosen)}"
    text = (
        f"# {protocol.name} with some of its metrics; written by `sis eval`.\n{yaml.safe_dump(data, sort_keys=False)}"
    )
    write_text_atomic(ad_hoc("protocols") / f"{data['name']}.yaml", text)
    return named("protocols", data["name"], ProtocolCard)


def choose_controls(wanted: Sequence[str], dataset: DatasetCard, split: str) -> list[str]:
    """The methods of the control rows. Raises SisError for what is no control, or needs photographs that are not there.

    The default, `real`, is left out silently where the split has no photographs.
    """
    known = {m.name: m for m in methods().values() if m.role == "control"}
    chosen = [] if list(wanted) == ["none"] else [name.replace("-", "_") for name in dict.fromkeys(wanted)]
    for name in chosen:
        if name not in known:
            raise SisError(f"no control called {name!r}", where="--controls", fix=did_you_mean(name, [*known, "none"]))
    if dataset.splits[split].photographs:
        return chosen
    if list(wanted) != ["real"] and any(known[name].needs_photographs for name in chosen):
        raise SisError(f"{dataset.name}/{split} has no photographs to show", where="--controls", fix="--controls none")
    return [name for name in chosen if not known[name].needs_photographs]


def run_name(request: Request, controls: Sequence[str]) -> str:
    """The name of the run: the one given, or made of the folder's. Raises SisError for one that is no name."""
    name = request.name
    if not name:
        words = re.sub(r"[^a-z0-9_.-]+", "-", request.source.resolve().name.lower())
        name = words.strip("-._")[:_NAME].strip("-._") or "images"
        name = f"{name}-images" if name in controls else name
    if not re.fullmatch(rf"[a-z0-9][a-z0-9_.-]{{0,{_NAME - 1}}}", name) or name in controls:
        fix = f"1 to {_NAME} lower-case letters, digits, '_', '.', '-', and no control's name"
        raise SisError(f"{name!r} cannot name a run", where="--name", fix=fix)
    return name


def find_dataset(request: Request, own: str) -> DatasetCard:
    """The dataset asked for, or the one that an image set names itself (`own`)."""
    if not request.dataset and not own:
        raise SisError("say of which dataset these images are", fix="--dataset NAME; `sis list datasets` tells them")
    return dataset_card(request.dataset or own)


def _protocols_of(dataset: str) -> list[str]:
    """Names of the protocols of config/protocols that judge a dataset; a card that cannot be read is none."""
    found = []
    for path in sorted((project_root() / "config" / "protocols").glob("*.yaml")):
        # Most cards are another dataset's: reading them strictly would take longer than all the rest.
        data = load_yaml(path)[0] if dataset in path.read_text() else None
        if isinstance(data, dict) and data.get("dataset") == dataset:
            found.append(path.stem)
    return found
