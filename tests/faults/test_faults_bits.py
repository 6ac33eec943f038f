# SPDX-License-Identifier: Apache-2.0
"""Flipped bits and damaged files: `sis verify` and the stage that reads them refuse, resuming repairs."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fault_bench import (
    DATASET,
    Bench,
    Outcome,
    assert_nothing_torn,
    assert_refused,
    pair_hashes,
)
from safetensors.torch import load_file

from evaluators.cli import main as evaluators
from sis.cli import main as sis
from sis.config.cards import DatasetCard
from sis.config.files import dataset_card, label_space
from sis.data import image_set, pairs
from sis.data.image_set import pixel_hashes
from sis.data.layouts import Entry, scenes
from sis.data.manifest import file_sha256, read_manifest, write_manifest_of
from sis.data.pair import Pair
from sis.data.prepare import prepare
from sis.data.provenance import RunRecord
from sis.data.schemas import IMAGES, PAIRS, SCORES
from sis.data.tables import read_table, table_metadata
from sis.data.tensors import save_tensors
from sis.errors import SisError
from sis.plan import Plan, load_plan

pytestmark = pytest.mark.faults

FLIPS_PER_FILE = 20
PUBLISHED = """
name: published
title: Published
datasets: {scenes_tiny: {protocol: scenes-tiny}}
runs: {palette: {method: palette, title: "<script>alert(1)</script>"}}
batch_size: 4
shard_size: 8
"""


class House:
    """A finished experiment of one run, and for each artefact the command that reads it."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.root = bench, bench.folder / "house"
        self.file = bench.folder / "published.yaml"
        self.file.write_text(PUBLISHED)
        plan: Plan = load_plan({"artefacts": str(self.root)}, experiment=str(self.file))
        spec = plan.runs[0]
        judged = (DATASET, spec.run_id, spec.protocol.name)
        self.val, self.train = (Path(plan.pairs(DATASET, s)).parent for s in ("val", "train"))
        self.images = Path(plan.images(DATASET, spec.run_id)).parent
        self.judge = Path(plan.segmenter(plan.judge(spec.protocol.name)))
        self.reference = Path(plan.reference(DATASET, spec.protocol.name)).parent
        self.partials = Path(plan.partials(*judged)).parent
        self.scores = Path(plan.scores(*judged))
        self.prior, self.model = self.root / "prior/prior.safetensors", self.root / "model/model.safetensors"

    def build(self) -> None:
        shutil.copytree(self.bench.pairs, self.val)
        shutil.copytree(self.bench.train_pairs, self.train)
        shutil.copytree(self.bench.model.parent, self.model.parent)
        save_tensors({"mean": torch.zeros(3)}, self.prior, "prior", {}, RunRecord.start())
        of_run = ["sample", "--experiment", self.file, "--dataset", DATASET, "--run", "palette", "--device", "cpu"]
        self._made([*of_run, "--pairs", self.val, "--out", self.images], "sis")
        self._made(["train-segmenter", *self.protocol, "--pairs", self.train, "--out", self.judge])
        real = ["--reference-pairs", self.train, "--segmenter", self.judge, "--out", self.reference]
        self._made(["measure", *self.protocol, *real])
        self._made(self.measure(self.partials))
        self._made(self.score(self.scores))

    @property
    def protocol(self) -> list:
        return ["--protocol", "scenes-tiny"]

    def measure(self, out: Path) -> list:
        judged = ["--images", self.images, "--pairs", self.val, "--segmenter", self.judge]
        return ["measure", *self.protocol, *judged, "--out", out]

    def score(self, out: Path) -> list:
        return ["score", *self.protocol, "--partials", self.partials, "--reference", self.reference, "--out", out]

    def publish(self, out: Path) -> list:
        return ["publish", "--experiment", self.file, "--artefacts", self.root, "--out", out]

    def readers(self, out: Path) -> dict[Path, tuple[str, list]]:
        """For each artefact the program and the command that must refuse it when it is damaged."""
        sample = self.bench.sample(out, pairs=self.val)
        return {
            self.val: ("sis", sample),
            self.train: ("sis", self.bench.train(out / "model.safetensors", pairs=self.train)),
            self.model: ("sis", self.bench.sample(out, "sdm", pairs=self.val, model=self.model)),
            self.prior: ("sis", [*sample, "--prior", self.prior]),
            self.images: ("evaluators", self.measure(out)),
            self.judge: ("evaluators", self.measure(out)),
            self.partials: ("evaluators", self.score(out / "scores.parquet")),
            self.reference: ("evaluators", self.score(out / "scores.parquet")),
            self.scores: ("sis", self.publish(out)),
        }

    def _made(self, argv: list, program: str = "evaluators") -> None:
        outcome = self.bench.runner(*argv, program=program)
        assert outcome.code == 0, outcome.err


@pytest.fixture(scope="module")
def house(bench: Bench) -> House:
    made = House(bench)
    made.build()
    return made


@contextlib.contextmanager
def flipped(path: Path, position: int, bit: int) -> Iterator[None]:
    """One flipped bit of a file, put right afterwards."""
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[position] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        yield
    finally:
        path.write_bytes(whole)


def here(capsys: pytest.CaptureFixture[str], argv: list, program: str = "sis") -> Outcome:
    """Run a command in this process: refusals are quick."""
    capsys.readouterr()
    code = (sis if program == "sis" else evaluators)([str(a) for a in argv])
    out, err = capsys.readouterr()
    return Outcome(code, out, err, "", 0)


def listed(artefact: Path) -> list[Path]:
    """Every file of an artefact and its manifest."""
    manifest = read_manifest(artefact)
    own = artefact / "manifest.json" if artefact.is_dir() else artefact.with_name(artefact.name + ".manifest.json")
    return [own, *manifest.paths()]


@pytest.mark.slow
def test_every_flipped_bit_is_caught_by_verify_and_by_the_stage_that_reads(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    rng, flips = random.Random(0), 0
    for artefact, (program, argv) in house.readers(tmp_path / "out").items():
        assert here(capsys, ["verify", artefact]).code == 0
        for path in listed(artefact):
            for _ in range(FLIPS_PER_FILE):
                position, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
                label = f"bit {bit} of byte {position} of {path.name}"
                with flipped(path, position, bit):
                    for outcome in (here(capsys, ["verify", artefact]), here(capsys, argv, program)):
                        assert outcome.code == 2, f"{label}: {outcome}"
                        assert_refused(outcome, path.name, path.parent)
                flips += 1
        left = [p for p in (tmp_path / "out").rglob("*") if p.is_file() and "work" not in p.parts]
        assert left == [], f"{artefact}: {left}"
    assert flips >= 400


@pytest.mark.slow
def test_every_single_bit_of_a_manifest_counts(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, not a sample: also those that still parse, and those in the last digit of a number."""
    path = house.images / "manifest.json"
    damaged, passed = bytearray(path.read_bytes()), []
    assert len(damaged) > 1000
    monkeypatch.setattr(Path, "read_text", lambda self: damaged.decode())
    read_manifest(path, verify=False)
    for position in range(len(damaged)):
        for bit in range(8):
            damaged[position] ^= 1 << bit
            with contextlib.suppress(SisError):
                read_manifest(path, verify=False)
                passed.append((position, bit))
            damaged[position] ^= 1 << bit
    assert passed == []


def test_a_damaged_shard_never_counts_as_finished(house: House, tmp_path: Path) -> None:
    """Before a manifest exists only Parquet's and the pixels' own checksums protect a shard."""
    rng, path = random.Random(1), tmp_path / "shard.parquet"
    cases = [(house.images, image_set.shard_is_good, IMAGES), (house.val, pairs.good_shard, PAIRS)]
    for folder, is_good, schema in cases:
        source = folder / "shard-0000.parquet"
        whole, key, rows = source.read_bytes(), table_metadata(source)["key"], read_table(source, schema)
        refused = 0
        for _ in range(150):
            damaged = bytearray(whole)
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            if is_good(path, key):  # True, or the label maps' histograms
                assert read_table(path, schema).equals(rows)
            else:
                refused += 1
        assert refused > 50


@pytest.mark.slow
def test_a_flipped_bit_in_a_finished_batch_costs_one_batch(bench: Bench, tmp_path: Path) -> None:
    argv, wanted, rng = bench.sample(tmp_path / "out"), pixel_hashes(bench.images()), random.Random(2)
    stored = tmp_path / "out" / "work" / "shard-0000" / "batch-00000.parquet"
    for _ in range(12):
        assert bench.runner(*argv, at=10).code == -9
        damaged = bytearray(stored.read_bytes())
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        stored.write_bytes(damaged)
        again = bench.runner(*argv)
        assert again.code == 0, again.err
        assert len(again.work) in (3, 4)  # some bits of a Parquet footer mean nothing
        assert pixel_hashes(tmp_path / "out") == wanted
        shutil.rmtree(tmp_path / "out")


def test_a_damaged_finished_shard_is_made_again(bench: Bench, tmp_path: Path) -> None:
    for argv, hashes in ((bench.sample, pixel_hashes), (bench.prepare, pair_hashes)):
        out = tmp_path / argv.__name__
        assert bench.runner(*argv(out)).code == 0
        wanted, shard = hashes(out), out / "shard-0000.parquet"
        damaged = bytearray(shard.read_bytes())
        damaged[len(damaged) // 3] ^= 1
        for content in (bytes(damaged), bytes(damaged[: len(damaged) // 2]), b""):
            shard.write_bytes(content)
            assert_refused(bench.runner("verify", out), shard.name)
            again = bench.runner(*argv(out))
            assert again.code == 0, again.err
            assert hashes(out) == wanted
            assert bench.runner("verify", out).code == 0


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "manifest", "both"])
def test_a_damaged_checkpoint_is_dropped_and_the_one_before_used(bench: Bench, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out/model.safetensors"
    wanted = file_sha256(bench.model)
    points = bench.runner(*bench.train(tmp_path / "peace/model.safetensors")).points
    third = [i for i, name in enumerate(points, 1) if name == "write tensors"][2]
    assert bench.runner(*bench.train(out), at=third).code == -9
    states = sorted((out.parent / "work").glob("state-*.safetensors"))
    assert [s.name for s in states] == ["state-00000005.safetensors", "state-00000010.safetensors"]
    for state in states if damage == "both" else states[1:]:
        content = bytearray(state.read_bytes())
        if damage == "manifest":
            state.with_name(state.name + ".manifest.json").unlink()
            continue
        content[len(content) // 2] ^= 8
        state.write_bytes({"cut": content[:-20], "empty": b""}.get(damage, content))
    again = bench.runner(*bench.train(out))
    assert again.code == 0, again.err
    assert again.work == [str(step) for step in range(0 if damage == "both" else 5, 12)]
    assert file_sha256(out) == wanted


@pytest.mark.parametrize("cut", [1, 4, 12, 20, 200])
def test_a_truncated_picture_in_a_folder_is_named(bench: Bench, tmp_path: Path, cut: int) -> None:
    folder, wanted = tmp_path / "pictures", pixel_hashes(bench.images())
    shutil.copytree(bench.pictures, folder)
    picture = folder / "val-00003.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:-cut])
    assert_refused(bench.runner(*bench.bring(tmp_path / "out", folder)), picture, "truncated", "write it again")
    assert list((tmp_path / "out").glob("*")) == []
    picture.write_bytes(whole)
    assert bench.runner(*bench.bring(tmp_path / "out", folder)).code == 0
    assert pixel_hashes(tmp_path / "out") == wanted


def test_an_id_outside_the_label_table_is_named(bench: Bench, tmp_path: Path) -> None:
    """Pairs that were prepared with a wider table than the one they claim."""
    space = label_space("scenes")
    shutil.copytree(bench.pairs, tmp_path / "val")
    manifest = json.loads((tmp_path / "val/manifest.json").read_text())
    manifest["meta"]["labels"]["classes"] = [c.model_dump() for c in space.classes[:4]]
    write_manifest_of(tmp_path / "val", "pairs", manifest["files"], manifest["meta"], manifest["run"])
    outcome = bench.runner(*bench.sample(tmp_path / "out", pairs=tmp_path / "val"))
    assert_refused(outcome, "label ids outside the table 'scenes': 4", "val-0000", "ids 0..3 and void 255")
    assert_nothing_torn(tmp_path)


def test_a_layout_with_a_wrong_id_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = scenes.read

    def wrong(card: DatasetCard, entry: Entry) -> Pair:
        pair = read(card, entry)
        label = pair.label.copy()
        label[3, 5] = 77
        return replace(pair, label=label) if entry.image_id == "val-00009" else pair

    monkeypatch.setattr(scenes, "read", wrong)
    with pytest.raises(SisError, match=r"label ids outside the table 'scenes': 77.*val-00009.*void 255"):
        prepare(dataset_card(DATASET), "val", tmp_path, tmp_path / "out")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_missing_shard_is_named(house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(house.images, tmp_path / "images")
    (tmp_path / "images/shard-0001.parquet").unlink()
    assert_refused(here(capsys, ["verify", tmp_path / "images"]), "missing files: shard-0001.parquet", "run the stage")
    measure = [tmp_path / "images" if a == house.images else a for a in house.measure(tmp_path / "out")]
    assert_refused(here(capsys, measure, "evaluators"), "missing files: shard-0001.parquet")
    assert not (tmp_path / "out").exists()


def test_an_artefact_of_another_kind_is_refused(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = house.bench
    wrong = bench.sample(tmp_path / "out", pairs=house.images)
    assert_refused(here(capsys, wrong), "this is a images artefact, expected pairs", house.images)
    wrong = bench.sample(tmp_path / "out", "sdm", model=house.prior)
    assert_refused(here(capsys, wrong), "this is a prior artefact, expected model", house.prior)
    wrong = [house.val if a == house.images else a for a in house.measure(tmp_path / "out")]
    assert_refused(here(capsys, wrong, "evaluators"), "this is a pairs artefact, expected images", house.val)
    wrong = [house.reference if a == house.partials else a for a in house.score(tmp_path / "out/scores.parquet")]
    assert_refused(here(capsys, wrong, "evaluators"), "these are partials of reference, expected images")
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file() and "work" not in p.parts] == []


def test_a_model_of_another_network_is_refused(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, other = load_file(house.model), tmp_path / "model.safetensors"
    first = next(k for k, v in sorted(tensors.items()) if v.ndim == 4)
    narrow = {k: v[:, :1].contiguous() if k == first else v for k, v in tensors.items()}
    save_tensors(narrow, other, "model", {}, RunRecord.start())
    outcome = here(capsys, house.bench.sample(tmp_path / "out", "sdm", model=other))
    assert_refused(outcome, "the weights do not fit the network", f"{first} is ", "the network has", other)
    fewer = {("renamed" if k == first else k): v for k, v in tensors.items()}
    save_tensors(fewer, other, "model", {}, RunRecord.start())
    outcome = here(capsys, house.bench.sample(tmp_path / "out", "sdm", model=other))
    assert_refused(outcome, f"missing {first}", "unexpected renamed", other)
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []


def test_interrupted_evaluation_is_one_line_and_ends_with_the_same_numbers(house: House, tmp_path: Path) -> None:
    argv = house.measure(tmp_path / "partials")
    peace = house.bench.runner(*argv, program="evaluators")
    assert peace.code == 0, peace.err
    wanted = {p.name: p.read_bytes() for p in (tmp_path / "partials").glob("*.parquet")}
    for at in range(1, len(peace.points) + 1):
        for name, code in (("INT", 130), ("KILL", -9)):
            shutil.rmtree(tmp_path / "partials")
            struck = house.bench.runner(*argv, program="evaluators", at=at, signal=name)
            assert struck.code == code, struck.err
            assert "Traceback" not in struck.err
            if name == "INT":
                assert struck.err.splitlines()[-1].startswith("interrupted;")
            assert_nothing_torn(tmp_path)
            again = house.bench.runner(*argv, program="evaluators")
            assert again.code == 0, again.err
            assert {p.name: p.read_bytes() for p in (tmp_path / "partials").glob("*.parquet")} == wanted


def test_the_house_publishes_and_a_script_in_a_title_stays_text(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    title = "<script>alert(1)</script>"
    assert set(read_table(house.scores, SCORES).column("title").to_pylist()) == {title}
    outcome = here(capsys, house.publish(tmp_path / "out"))
    assert outcome.code == 0, outcome.err
    page = (tmp_path / "out/leaderboard.html").read_text()
    assert title not in page
    assert "alert(1)" in page
