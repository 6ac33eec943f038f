# SPDX-License-Identifier: Apache-2.0
"""A project in which `sis eval` judges a folder for real: the workflow's commands run in this process, one by one."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from bad_folders import brightened, png
from fault_bench import DATASET, assert_nothing_torn

from evaluators.cli import main as evaluators
from sis.cli import main as sis
from sis.config.files import label_space
from sis.data.images import encode_png
from sis.data.pairs import PairSet
from sis.errors import SisError
from sis.evaluation import evaluate as stage
from sis.evaluation import workflow
from sis.plan import Plan, load_plan

CLASSES = len(label_space("scenes").evaluated_ids)
PROTOCOL = "strict"
#: Judged by a published segmenter of few channels and by the first features of Inception; both stand-ins without files.
CARD: dict[str, Any] = {
    "name": PROTOCOL, "title": "Strict", "dataset": DATASET, "split": "val", "reference": {"split": "val", "count": 4},
    "segmenter": "small-face", "metrics": ["miou", "fid"], "features": {"options": {"dims": 64}}, "batch_size": 4,
    "bootstrap": {"replicates": 4, "seed": 0}, "version": 1,
}  # fmt: skip
OPTIONS = {"feature_scale": 16, "classes": CLASSES, "size": 32}
PRESET = {"name": "small-face", "title": "Small", "network": "face_unet", "options": OPTIONS, "source": "a test"}
LISTED = {"name": "small-face", "file": "small-face.pth", "url": None, "bytes": None, "sha256_prefix": None}


@dataclass(frozen=True)
class Answer:
    """What a command said; lines of progress are left out of `err`."""

    code: int
    out: str
    err: list[str]


@dataclass(frozen=True)
class World:
    """The project, a good folder of pictures, and the command."""

    project: Path
    folder: Path
    say: Callable[[Sequence[object]], Answer]

    @property
    def pairs(self) -> Path:
        return self.project / "artefacts/pairs" / DATASET / "val"

    @property
    def reference(self) -> Path:
        return self.project / "artefacts/partials" / DATASET / "_reference" / PROTOCOL

    def eval(self, *words: object, folder: Path | None = None) -> Answer:
        named = [] if "--protocol" in words else ["--protocol", PROTOCOL]
        controls = [] if "--controls" in words else ["--controls", "none"]
        return self.say(["eval", *words, *named, *controls, "--dataset", DATASET, "--", folder or self.folder])

    def files(self) -> set[Path]:
        return {p for part in ("artefacts", "results") for p in (self.project / part).rglob("*") if p.is_file()}

    def put(self, number: int, data: bytes) -> None:
        (self.folder / png(number)).write_bytes(data)

    def weigh(self, content: object, name: str = "small-face.pth") -> Path:
        """A file in the weights folder: bytes as they are, anything else by torch."""
        path = self.project / "weights" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        return path

    def protocol(self, name: str = PROTOCOL, **changes: Any) -> str:
        """Write the protocol with some keys changed; returns its name."""
        text = yaml.safe_dump({**CARD, **changes, "name": name})
        (self.project / "config/protocols" / f"{name}.yaml").write_text(text)
        return name

    def preset(self, name: str = "small-face", **options: Any) -> str:
        """Write the segmenter's preset with some options changed; returns its name, which processes remember it by."""
        facts = {**PRESET, "name": name, "weights": ["small-face"], "options": {**OPTIONS, **options}}
        (self.project / "config/segmenters" / f"{name}.yaml").write_text(yaml.safe_dump(facts))
        return name

    def is_whole(self) -> bool:
        """Whether no file is torn and every manifest tells the truth."""
        try:
            assert_nothing_torn(self.project / "artefacts")
        except (SisError, OSError):
            return False
        return True

    def refused(self, answer: Answer) -> str:
        """The one line of a refusal, after which there is no table, not even a part of one."""
        assert answer.code == 2, answer
        assert len(answer.err) == 1 and answer.err[0].startswith("error: ") and "Traceback" not in answer.err[0], answer
        assert answer.out == ""
        assert not list((self.project / "results").rglob("*.*"))
        return answer.err[0]


def jobs(experiment: str, targets: Sequence[str], cores: int, log: Path) -> None:
    """What the workflow would do for these scores, in order; what is there is kept, and a refusal ends it."""
    plan = load_plan(experiment=experiment)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as said:
        for program, words, made in _commands(plan):
            if "score" not in words and made and (Path(made).is_file()):
                continue
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                code = program(words)
            if code:
                said.flush()
                raise workflow._failure(log)


def _commands(plan: Plan) -> list[tuple[Callable[[list[str]], int], list[str], str]]:
    found = []
    for spec in plan.runs:
        dataset, name = spec.dataset.name, spec.protocol.name
        scored = (dataset, spec.run_id, name)
        reference, partials, scores = plan.reference(dataset, name), plan.partials(*scored), plan.scores(*scored)
        measure = ["measure", "--protocol", name, "--device", "cpu", "--weights", plan.settings.weights]
        real = shlex.split(plan.measuring_options(name, reference=True))
        ours = ["--images", plan.images(dataset, spec.run_id), *shlex.split(plan.measuring_options(name))]
        both = ["--partials", partials, "--reference", reference]
        found += [
            (evaluators, [*measure, *real, "--out", reference], reference),
            (evaluators, [*measure, *ours, "--out", partials], partials),
            (evaluators, ["score", "--protocol", name, *both, "--out", scores], scores),
        ]
    return found


def built(
    project: Path, pairs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> World:
    """Prepared pairs, pictures like their photographs in `folder`, a protocol whose networks are small."""
    shutil.copytree(pairs, project / "artefacts/pairs" / DATASET)
    folder.mkdir()
    for pair in PairSet.open(pairs / "val"):
        (folder / f"{pair.image_id}.png").write_bytes(encode_png(brightened(pair.image)))
    listed = project / "config/weights.yaml"
    listed.write_text(listed.read_text() + yaml.safe_dump([{**LISTED, "licence": "none", "purpose": "a test"}]))
    monkeypatch.setattr(stage, "run_workflow", jobs)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")

    def say(words: Sequence[object]) -> Answer:
        capsys.readouterr()
        code = sis([str(word) for word in words])
        out, err = capsys.readouterr()
        return Answer(code, out, [line for line in err.splitlines() if not line.startswith("import ")])

    made = World(project, folder, say)
    made.protocol()
    made.preset()
    return made
