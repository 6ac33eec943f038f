# SPDX-License-Identifier: Apache-2.0
"""Which protocol `sis eval` takes when nobody names one, and what it says where that one's weights are not here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import own_pairs  # pyright: ignore[reportMissingImports]
import pytest
import yaml

from evaluators import cli as evaluators
from sis.cli import main
from sis.config.files import dataset_card
from sis.data.images import encode_png
from sis.data.pairs import PairSet
from sis.data.prepare import prepare
from sis.errors import SisError
from sis.evaluation import evaluate as stage
from sis.evaluation.request import choose_protocol, local_judge
from sis.evaluation.required_weights import require_weights
from sis.plan import load_plan

Command = Callable[..., tuple[int, list[str]]]
WEIGHTS = {
    "inception-fid": "pt_inception-2015-12-05-6726825d.pth", "drn-d-105": "drn-d-105_ms_cityscapes.pth",
    "lpips-alex": "alexnet-owt-7be5be79.pth", "lpips-vgg": "vgg16-397923af.pth",
}  # fmt: skip


class WorkflowStartedError(Exception):
    """Nothing was refused: the workflow would run now."""


@pytest.mark.parametrize(
    ("dataset", "protocol"),
    [
        ("cityscapes", "cityscapes_bench"),
        ("ade20k", "ade20k_bench"),
        ("celebamask_hq", "celebamask_hq_bench"),
        ("coco_stuff", "coco_stuff_bench"),
        ("coco_stuff_inst", "coco_stuff_inst"),
        ("landscapes", "landscapes_iidm"),
        ("cityscapes_mini", "mini_cityscapes"),
        ("scenes", "scenes"),
        ("scenes_tiny", "scenes-tiny"),
    ],
)
def test_the_benchmarks_own_protocol_comes_first(dataset: str, protocol: str) -> None:
    assert choose_protocol(dataset_card(dataset), "").name == protocol


@pytest.mark.parametrize(
    ("dataset", "judge"), [("cityscapes", "cityscapes"), ("scenes_tiny", "scenes-tiny"), ("landscapes", "")]
)
def test_a_local_judge_is_the_protocol_of_the_datasets_name(dataset: str, judge: str) -> None:
    assert local_judge(dataset_card(dataset)) == judge


@pytest.fixture
def harbour(project_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`sis eval` on a folder of a prepared dataset with a local judge and a protocol of the benchmark's own."""
    card = own_pairs.card(size=[16, 24])
    config = project_copy / "config"
    (config / "datasets/harbour.yaml").write_text(yaml.safe_dump(card.model_dump(mode="json", exclude_unset=True)))
    for source, name, changes in (
        ("cityscapes_bench", "harbour_bench", {"labels": None}),
        ("cityscapes", "harbour", {}),
    ):
        facts = yaml.safe_load((config / f"protocols/{source}.yaml").read_text())
        changed = {**facts, "name": name, "dataset": "harbour", **changes}
        (config / f"protocols/{name}.yaml").write_text(yaml.safe_dump(changed))
    pairs = project_copy / "artefacts/pairs/harbour/val"
    prepare(card, "val", own_pairs.write(project_copy.parent / "raw"), pairs)
    folder, rng = project_copy.parent / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for pair in PairSet.open(pairs):
        (folder / f"{pair.image_id}.png").write_bytes(
            encode_png(rng.integers(0, 256, pair.image.shape).astype(np.uint8))
        )

    def start(*_: object) -> None:
        raise WorkflowStartedError

    monkeypatch.setattr(stage, "run_workflow", start)

    def command(*words: str) -> tuple[int, list[str]]:
        capsys.readouterr()
        code = main(["eval", str(folder), "--dataset", "harbour", *words])
        return code, [line for line in capsys.readouterr().err.splitlines() if not line.startswith("import ")]

    return command


def bring(project: Path, *names: str) -> None:
    (project / "weights").mkdir(exist_ok=True)
    for name in names:
        (project / "weights" / WEIGHTS[name]).write_bytes(b"weights")


def test_without_weights_the_line_names_the_columns_and_every_way_on(project_copy: Path, harbour: Command) -> None:
    before = sorted(project_copy.rglob("*"))
    code, (line, *more) = harbour()
    assert (
        code == 2 and not more and line.startswith("error: harbour_bench has 11 of 12 columns without their weights ")
    )
    for column in ("miou-cs-up-full", "miou-cs-lowres-ms", "fid", "fid-clean", "kid", "coverage", "fid-infinity"):
        assert f"{column}," in line or f"{column} [" in line
    assert "(drn-d-105, inception-fid)" in line, "diversity has no value for one image a map, whatever lies there"
    assert "sis weights check" in line and "--metrics throughput (complete without them)" in line
    assert "--protocol harbour (a local judge, trained here)" in line
    assert "--protocol harbour_bench (with stand-ins that mean nothing)" in line
    assert sorted(project_copy.rglob("*")) == before, "nothing is written"


def test_weights_that_are_here_leave_the_line(project_copy: Path, harbour: Command) -> None:
    bring(project_copy, "inception-fid")
    code, (line,) = harbour()
    assert (
        code == 2 and "3 of 12 columns" in line and "(drn-d-105): miou-cs-up-full, miou-cs-lowres-ms, accuracy" in line
    )
    assert "--metrics fid kid precision recall density coverage fid_infinity throughput (complete" in line


@pytest.mark.parametrize("words", [["--metrics", "fid", "kid"], []])
def test_with_all_weights_that_count_the_workflow_starts(
    project_copy: Path, harbour: Command, words: list[str]
) -> None:
    bring(project_copy, "inception-fid", *([] if words else ["drn-d-105"]))
    with pytest.raises(WorkflowStartedError):
        harbour(*words)
    (experiment,) = (project_copy / "artefacts/eval/experiments").glob("*.yaml")
    assert load_plan(experiment=experiment.stem).runs[0].protocol.name.startswith("harbour_bench")


@pytest.mark.parametrize("protocol", ["harbour", "harbour_bench"])
def test_who_names_a_protocol_has_it_as_it_is(project_copy: Path, harbour: Command, protocol: str) -> None:
    with pytest.raises(WorkflowStartedError):
        harbour("--protocol", protocol)


def test_a_refused_request_leaves_no_card_of_its_metrics(project_copy: Path, harbour: Command) -> None:
    before = sorted(project_copy.rglob("*"))
    code, (line,) = harbour("--metrics", "miou")
    assert code == 2 and "2 of 2 columns" in line and "--metrics" not in line
    assert sorted(project_copy.rglob("*")) == before


@pytest.mark.parametrize(("samples", "asked"), [(1, False), (19, False), (20, True)])
def test_diversity_asks_for_weights_where_there_are_enough_samples(
    project_copy: Path, samples: int, asked: bool
) -> None:
    bring(project_copy, "inception-fid", "drn-d-105")
    card = choose_protocol(dataset_card("cityscapes"), "")
    if not asked:
        require_weights(card, [], samples, "cityscapes")
        return
    with pytest.raises(SisError, match=r"2 of 15 columns .*\(lpips-alex, lpips-vgg\): lpips-alex, lpips-vgg") as caught:
        require_weights(card, [], samples, "cityscapes")
    assert "ms_ssim throughput (complete without them)" in str(caught.value)


def test_what_is_no_file_of_weights_is_the_line(project_copy: Path, harbour: Command) -> None:
    (project_copy / "weights" / WEIGHTS["inception-fid"]).mkdir(parents=True)
    code, lines = harbour()
    assert code == 2 and len(lines) == 1 and "this is a folder, a file of weights is expected" in lines[0]


def test_columns_are_listed_with_what_they_lack(project_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bring(project_copy, "drn-d-105", "lpips-vgg")
    assert evaluators.main(["columns", "--protocol", "cityscapes_bench"]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told["miou-cs-up-full"] == told["lpips-vgg"] == told["ms-ssim"] == "real"
    assert told["fid-clean"] == "a stand-in: inception-fid not here"
    assert evaluators.main(["columns", "--protocol", "landscapes_iidm"]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told["total-hue180"] == "a stand-in: segformer-landscapes, nima, inception-fid not here"
