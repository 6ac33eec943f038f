# SPDX-License-Identifier: Apache-2.0
"""A thousand random single-bit flips over all that a published number is made of: none changes it silently.

Images, manifests, partials, statistics of the reference and weights are flipped two hundred times each; the stage that
reads them must refuse in one line that names the file. There are no bits without a meaning: digests cover every byte.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from bit_flips import Flipper
from fault_bench import DATASET, Outcome, assert_refused

from evaluators import lpips_heads, partial
from evaluators.cli import main as evaluators
from evaluators.lpips_backbone import lpips_record, seeded_network
from evaluators.partial import content_sha256, load_partial
from evaluators.weights import WeightStore
from evaluators.weights_check import convert
from sis.cli import main as sis
from sis.data.manifest import file_sha256, manifest_path, read_manifest
from sis.errors import SisError
from sis.plan import Plan, load_plan

pytestmark = [pytest.mark.faults, pytest.mark.slow]

FLIPS_PER_KIND = 200
KINDS = ("images", "manifests", "partials", "statistics", "weights")
EXPERIMENT = f"""
name: flips
title: Flips
datasets: {{{DATASET}: {{protocol: scenes-tiny}}}}
runs: {{palette: {{method: palette, samples_per_map: 2}}}}
batch_size: 4
shard_size: 16
"""
Say = Callable[..., Outcome]


@dataclass(frozen=True)
class House:
    """The artefacts of an experiment of one run, made by the commands that the workflow runs."""

    root: Path
    plan: Plan

    @classmethod
    def at(cls, root: Path) -> House:
        return cls(root, load_plan({"artefacts": str(root / "artefacts")}, experiment=str(root / "flips.yaml")))

    def build(self, pairs: Path, say: Say) -> None:
        for split in ("val", "train"):
            shutil.copytree(pairs / split, self.pairs(split))
        chosen = ["--experiment", self.file, "--dataset", DATASET, "--run", "palette", "--device", "cpu"]
        recipe = ["train-segmenter", *self.protocol, "--pairs", self.pairs("train"), "--out", self.judge]
        for program, argv in (
            (sis, ["sample", *chosen, "--pairs", self.pairs("val"), "--out", self.images]),
            (evaluators, recipe),
            (evaluators, self.measure_reference),
            (evaluators, self.measure()),
            (evaluators, self.score),
        ):
            outcome = say(program, argv)
            assert outcome.code == 0, outcome.err

    @property
    def file(self) -> Path:
        return self.root / "flips.yaml"

    @property
    def catalogue(self) -> Path:
        return self.root / "weights.yaml"

    def pairs(self, split: str) -> Path:
        return Path(self.plan.pairs(DATASET, split)).parent

    @property
    def judge(self) -> Path:
        return Path(self.plan.segmenter(self.plan.judge("scenes-tiny")))

    @property
    def images(self) -> Path:
        return Path(self.plan.images(DATASET, self.plan.runs[0].run_id)).parent

    @property
    def partials(self) -> Path:
        return Path(self.plan.partials(DATASET, self.plan.runs[0].run_id, "scenes-tiny")).parent

    @property
    def reference(self) -> Path:
        return Path(self.plan.reference(DATASET, "scenes-tiny")).parent

    @property
    def scores(self) -> Path:
        return Path(self.plan.scores(DATASET, self.plan.runs[0].run_id, "scenes-tiny"))

    @property
    def protocol(self) -> list:
        return ["--protocol", "scenes-tiny"]

    def _judged(self, weights: str = "published") -> list:
        listed = ["--weights", self.root / weights, "--weights-list", self.catalogue]
        return ["measure", *self.protocol, "--segmenter", self.judge, *listed]

    def measure(self, weights: str = "published") -> list:
        judged = self._judged(weights)
        return [*judged, "--images", self.images, "--pairs", self.pairs("val"), "--out", self.partials]

    @property
    def measure_reference(self) -> list:
        return [*self._judged(), "--reference-pairs", self.pairs("train"), "--out", self.reference]

    @property
    def score(self) -> list:
        given = ["--partials", self.partials, "--reference", self.reference, "--out", self.scores]
        return ["score", *self.protocol, *given]

    @property
    def publish(self) -> list:
        out = self.root / "published"
        return ["publish", "--experiment", self.file, "--artefacts", self.root / "artefacts", "--out", out]

    def targets(self, kind: str) -> list[tuple[Path, Callable, list]]:
        """The files of a kind, each with the program and the command that reads it."""
        published, converted = (self.root / name for name in ("published/alex.pth", "converted/alex.pth.safetensors"))
        measure = (evaluators, self.measure())
        readers = {
            self.images: measure, self.pairs("val"): measure, self.pairs("train"): (evaluators, self.measure_reference),
            self.judge: measure, self.partials: (evaluators, self.score), self.reference: (evaluators, self.score),
            self.scores: (sis, self.publish), published: measure, converted: (evaluators, self.measure("converted")),
        }  # fmt: skip
        kinds = {
            "images": [(p, self.images) for p in _files(self.images)]
            + [(p, self.pairs(split)) for split in ("val", "train") for p in _files(self.pairs(split))],
            "manifests": [
                (manifest_path(artefact), artefact) for artefact in readers if manifest_path(artefact).is_file()
            ],
            "partials": [(p, self.partials) for p in _files(self.partials)] + [(self.scores, self.scores)],
            "statistics": [(p, self.reference) for p in _files(self.reference)],
            "weights": [(p, p) for p in (self.judge, published, converted)],
        }
        return [(path, *readers[artefact]) for path, artefact in kinds[kind]]


def _files(folder: Path) -> list[Path]:
    return read_manifest(folder).paths()


def _write_weights(root: Path) -> None:
    """LPIPS' backbone as its publisher's file and as a converted one, each in a folder, and the list of both."""
    state = {"features." + k.split(".", 1)[1]: v for k, v in seeded_network("alex").net.state_dict().items()}
    for name in ("published", "converted"):
        (root / name).mkdir()
        torch.save(state, root / name / "alex.pth")
    digits = file_sha256(root / "published" / "alex.pth")
    card = {"name": "lpips-alex", "file": "alex.pth", "url": None, "bytes": None, "sha256_prefix": digits}
    (root / "weights.yaml").write_text(yaml.safe_dump([{**card, "licence": "none", "purpose": "test"}]))
    convert(WeightStore.open(root / "converted", root / "weights.yaml"), "lpips-alex")
    (root / "converted" / "alex.pth").unlink()


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """Run a command in this process."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")

    def run(program: Callable, argv: list) -> Outcome:
        capsys.readouterr()
        code = program([str(word) for word in argv])
        out, err = capsys.readouterr()
        return Outcome(code, out, err, "", 0)

    return run


@pytest.fixture
def house(say: Say, tiny_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> House:
    """Made once: no test leaves a flipped bit behind."""
    root = tmp_path_factory.getbasetemp() / "bit-flips"
    if not (root / "done").exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        (root / "flips.yaml").write_text(EXPERIMENT)
        _write_weights(root)
        House.at(root).build(tiny_pairs, say)
        (root / "done").touch()
    return House.at(root)


def everything(house: House) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in house.root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_flipped_bits_are_refused_by_the_stage_that_reads_them(house: House, say: Say, kind: str) -> None:
    before, rng, passed = everything(house), random.Random(f"seed of {kind}"), []
    flippers = [(Flipper(path), program, argv) for path, program, argv in house.targets(kind)]
    for number in range(FLIPS_PER_KIND):
        flipper, program, argv = flippers[number % len(flippers)]
        position, bit = flipper.place(rng)
        with flipper.flipped(position, bit):
            outcome = say(program, argv)
        if outcome.code != 2:
            passed.append((flipper.path.name, position, bit, outcome))
        else:
            assert_refused(outcome, flipper.path.name, flipper.path.parent)
    assert passed == []
    assert everything(house) == before, "nothing was written"


def test_a_measurement_that_goes_on_makes_flipped_partials_again(house: House) -> None:
    """It asks no manifest, only the file: another key, or rows of the very same content, or one line of refusal."""
    rng, refused = random.Random(3), 0
    for path in [p for folder in (house.partials, house.reference) for p in _files(folder)]:
        (rows, facts), flipper = load_partial(path), Flipper(path)
        content = content_sha256(rows)
        for _ in range(FLIPS_PER_KIND):
            with flipper.flipped(*flipper.place(rng)):
                try:
                    found, said = load_partial(path)
                except SisError as error:
                    assert path.name in str(error) and "\n" not in str(error)
                    refused += 1
                    continue
            assert said.get("key") != facts["key"] or content_sha256(found) == content
    assert refused > 100


def test_every_bit_of_what_a_partial_says_of_itself(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key, the layout and the digest in its footer, bit by bit: no damage ends in anything but a refusal."""
    path = _files(house.reference)[0]
    rows, facts = load_partial(path)
    content = content_sha256(rows)
    text = bytearray(json.dumps(facts, sort_keys=True).encode())
    for position in range(len(text)):
        for bit in range(8):
            text[position] ^= 1 << bit
            with contextlib.suppress(ValueError):
                said = json.loads(bytes(text))
                monkeypatch.setattr(partial, "table_metadata", lambda _, said=said: said)
                with contextlib.suppress(SisError):
                    found, told = load_partial(path)
                    assert told.get("key") != facts["key"] or content_sha256(found) == content, (position, bit)
            text[position] ^= 1 << bit


def test_a_flipped_bit_of_a_file_without_a_known_hash_gives_its_numbers_another_id(
    house: House, tmp_path: Path
) -> None:
    """Nobody can call such a file wrong; but no number of it is taken for one of the file that it was."""
    shutil.copy(house.root / "published" / "alex.pth", tmp_path / "alex.pth")
    (card,) = yaml.safe_load(house.catalogue.read_text())
    (tmp_path / "weights.yaml").write_text(yaml.safe_dump([{**card, "sha256_prefix": None}]))
    store, rng = WeightStore.open(tmp_path, tmp_path / "weights.yaml"), random.Random(4)
    whole, _ = lpips_record("alex", store)
    flipper, ids = Flipper(tmp_path / "alex.pth"), {whole.sha256}
    assert not whole.verified
    for _ in range(100):
        with flipper.flipped(*flipper.place(rng)):
            ids.add(lpips_record("alex", store)[0].sha256)
    assert len(ids) == 101


@pytest.mark.parametrize("net", sorted(lpips_heads.SHA256))
def test_flipped_bits_of_the_heads_that_come_with_the_lpips_package_are_caught(
    house: House, say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: str
) -> None:
    """The oldest kind of pickle, without a checksum: most flips of these files load in silence."""
    shutil.copytree(lpips_heads.heads_folder(), tmp_path / "v0.1")
    monkeypatch.setattr(lpips_heads, "heads_folder", lambda: tmp_path / "v0.1")
    flipper, rng = Flipper(tmp_path / "v0.1" / f"{net}.pth"), random.Random(net)
    lpips_heads.check_heads(net)
    for _ in range(FLIPS_PER_KIND):
        with flipper.flipped(*flipper.place(rng)), pytest.raises(SisError, match=f"sha256 begins with .*{net}.pth"):
            lpips_heads.check_heads(net)
    if net == "alex":
        with flipper.flipped(*flipper.place(rng)):
            assert_refused(say(evaluators, house.measure()), "alex.pth", "reinstall")
