# SPDX-License-Identifier: Apache-2.0
"""What the fault tests share: commands that run in forks, a tiny experiment, and what must always hold."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from safetensors import safe_open

from sis.data.images import decode_png
from sis.data.manifest import manifest_path, read_manifest
from sis.data.verify import verify_all

ROOT = Path(__file__).resolve().parents[2]
DATASET = "scenes_tiny"

EXPERIMENT = """
name: faults
title: Faults
datasets:
  scenes_tiny: {protocol: scenes-tiny}
runs:
  sdm:
    method: sdm
    fit: {width: 8, multipliers: [1], blocks: 1, attention: [], head_channels: 8, spade_hidden: 8, steps: 12,
          batch_size: 2, learning_rate: 0.001, ema: 0.9, checkpoint_every: 5, diffusion_steps: 50}
    sample: {steps: 2, guidance: 1.0}
  slow:
    method: sdm
    fit: {width: 8, multipliers: [1], blocks: 1, attention: [], head_channels: 8, spade_hidden: 8, steps: 12,
          batch_size: 2, learning_rate: 0.001, ema: 0.9, checkpoint_every: 5, diffusion_steps: 50}
    sample: {steps: 16, guidance: 1.5}
  palette: {method: palette, title: "<script>alert(1)</script>"}
batch_size: 4
shard_size: 8
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended. code: exit code, minus the signal, or None while it is stopped."""

    code: int | None
    out: str
    err: str
    log: str
    pid: int

    @property
    def points(self) -> list[str]:
        """Names of the write points that it reached."""
        return [line.removeprefix("point ") for line in self.log.splitlines() if line.startswith("point ")]

    @property
    def work(self) -> list[str]:
        """The batches, steps or shards that it computed."""
        return [line.removeprefix("work ") for line in self.log.splitlines() if line.startswith("work ")]


class Runner:
    """Runs commands in forks of one process that has imported everything."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, *argv: object, program: str = "sis", **request: Any) -> Outcome:
        """Run a command; `request` may hold at, when and signal of a strike, and set (see killer.py)."""
        return self._ask({"argv": [str(a) for a in argv], "program": program, **request})

    def wake(self, stopped: Outcome) -> Outcome:
        """Let a stopped command go on and wait for its end."""
        return self._ask({"continue": stopped.pid})

    def _ask(self, request: dict[str, Any]) -> Outcome:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the command server died"
        return Outcome(**json.loads(line))


@dataclass(frozen=True)
class Bench:
    """The tiny experiment and its artefacts, made once; tests copy what they damage."""

    folder: Path
    runner: Runner

    @property
    def experiment(self) -> Path:
        return self.folder / "faults.yaml"

    def prepare(self, out: Path, split: str = "val") -> list[object]:
        return ["prepare", "--dataset", DATASET, "--split", split, "--out", out]

    def of_run(self, stage: str, run: str, out: Path, pairs: Path, *more: object) -> list[object]:
        chosen = ["--experiment", self.experiment, "--dataset", DATASET, "--run", run, "--device", "cpu"]
        return [stage, *chosen, "--pairs", pairs, "--out", out, *more]

    def sample(self, out: Path, run: str = "palette", *, pairs: Path | None = None, model: Path | None = None) -> list:
        weights = [] if run == "palette" else ["--model", model or self.model]
        return self.of_run("sample", run, out, pairs or self.pairs, *weights)

    def train(self, out: Path, *, pairs: Path | None = None) -> list:
        return self.of_run("train", "sdm", out, pairs or self.train_pairs)

    def bring(self, out: Path, folder: Path | None = None, *, pairs: Path | None = None) -> list:
        return ["import", folder or self.pictures, "--pairs", pairs or self.pairs, "--name", "brought", "--out", out]

    def make(self, path: Path, argv: list, **request: Any) -> Path:
        """An artefact that is made the first time it is asked for."""
        if not path.exists():
            outcome = self.runner(*argv, **request)
            assert outcome.code == 0, outcome.err
        return path

    @property
    def pairs(self) -> Path:
        path = self.folder / "artefacts/pairs/scenes_tiny/val"
        return self.make(path, self.prepare(path))

    @property
    def train_pairs(self) -> Path:
        path = self.folder / "artefacts/pairs/scenes_tiny/train"
        return self.make(path, self.prepare(path, "train"))

    @property
    def model(self) -> Path:
        path = self.folder / "artefacts/model/model.safetensors"
        return path if path.exists() else self.make(path, self.train(path))

    def images(self, run: str = "palette") -> Path:
        path = self.folder / "artefacts/images" / run
        return path if path.exists() else self.make(path, self.sample(path, run))

    @property
    def pictures(self) -> Path:
        """A folder of PNGs, one for each label map."""
        path = self.folder / "pictures"
        return path if path.exists() else self.make(path, ["export", self.images(), "--out", path])


def assert_refused(outcome: Outcome, *words: object) -> None:
    """Exit code 2 and one line that begins `error:` and holds all these words."""
    assert outcome.code == 2, f"exit code {outcome.code}\n{outcome.err}"
    lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and outcome.err.splitlines()[-1] == lines[0], outcome.err
    assert "Traceback" not in outcome.err
    for word in words:
        assert str(word) in lines[0], f"{word!r} is not in: {lines[0]}"


def assert_nothing_torn(folder: Path) -> None:
    """Every file under a final name is whole, and every manifest tells the truth about files that exist."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).parts
        if not path.is_file() or path.name.startswith(".") or "work" in relative:
            continue
        if path.name.endswith("manifest.json"):
            sidecar = path.name != "manifest.json"
            if not sidecar or path.with_name(path.name.removesuffix(".manifest.json")).exists():
                list(verify_all([path]))
            else:
                read_manifest(path, verify=False)
        elif path.suffix == ".parquet":
            pq.read_table(path, page_checksum_verification=True)
        elif path.suffix == ".safetensors":
            assert manifest_path(path).is_file(), f"{path} has no manifest"
            with safe_open(path, "np") as file:
                [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
        elif path.suffix == ".npy":
            np.array(np.load(path))
        elif path.suffix == ".png":
            decode_png(path.read_bytes(), where=path)


def assert_no_leftovers(folder: Path) -> None:
    """No temporary file of a killed writer stays once the artefact is finished.

    Except where several jobs may write at a time: the decoded arrays and the manifest of shards.
    """
    found = [p for p in folder.rglob(".*.tmp-*") if "decoded" not in p.parts and ".manifest.json.tmp" not in p.name]
    assert found == []


def pair_hashes(folder: Path) -> dict[str, tuple[str, str]]:
    """(pixels, labels) of every pair, by image id."""
    rows: list[dict] = []
    for path in read_manifest(folder, "pairs").paths():
        rows += pq.read_table(path, columns=["image_id", "pixel_sha256", "label_sha256"]).to_pylist()
    return {r["image_id"]: (r["pixel_sha256"], r["label_sha256"]) for r in rows}
