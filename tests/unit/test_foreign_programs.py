# SPDX-License-Identifier: Apache-2.0
"""Methods of kind command: whatever a foreign program does is contained."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sis.config.cards import MethodCard
from sis.data.manifest import read_manifest
from sis.data.pairs import PairSet
from sis.errors import SisError
from sis.plan import RunSpec
from sis.sampling.foreign import command_line, command_maker
from sis.sampling.run import SampleJob, sample_run

Spec = Callable[..., RunSpec]


# Programs


GOOD_PROGRAM = """
import sys
from pathlib import Path
from PIL import Image
labels, out, ids, seed = sys.argv[1:5]
for line in Path(ids).read_text().splitlines():
    image_id, sample = line.split("\\t")
    size = Image.open(Path(labels, image_id + ".png")).size
    Image.new("RGB", size, (int(seed), int(sample), 7)).save(Path(out, f"{image_id}_{int(sample):03d}.png"))
"""


@pytest.fixture
def program(tiny_pairs: Path, tmp_path: Path) -> Callable[..., NDArray[np.uint8]]:
    """`program(text, extra="", **card)`: run a Python program as a command method on three keys."""

    def make(text: str, extra: str = "", **changes: Any) -> NDArray[np.uint8]:
        script = tmp_path / "program.py"
        script.write_text(text)
        command = f"{sys.executable} -S {script} {{labels}} {{out}} {{ids}} {{seed}}{extra}"
        card = MethodCard(kind="command", title="Program", command=command.replace("-S ", ""), **changes)
        pairs = PairSet.open(tiny_pairs / "val")
        keys = [("val-00000", 0), ("val-00000", 1), ("val-00007", 0)]
        return command_maker(card, pairs, tmp_path / "work; touch a" / "$(touch b)", 9)(keys)

    return make


def test_a_program_gets_label_maps_ids_and_seed(program: Callable[..., NDArray[np.uint8]], tmp_path: Path) -> None:
    images = program(GOOD_PROGRAM)
    assert images.shape == (3, 32, 32, 3)
    assert images[:, 0, 0].tolist() == [[9, 0, 7], [9, 1, 7], [9, 0, 7]]
    assert not list((tmp_path / "work; touch a" / "$(touch b)").iterdir())


def test_a_warning_to_all_processes_of_a_job_does_not_end_the_program(
    program: Callable[..., NDArray[np.uint8]],
) -> None:
    assert len(program("import os, signal\nos.kill(os.getpid(), signal.SIGUSR2)\n" + GOOD_PROGRAM)) == 3


def test_a_failing_program_is_reported_with_its_last_words(program: Callable[..., NDArray[np.uint8]]) -> None:
    with pytest.raises(SisError, match=r"exit code 3: .*out of memory.*log\.txt"):
        program("import sys\nprint('line')\nsys.stderr.write('out of memory')\nsys.exit(3)\n")


def test_a_program_that_writes_too_little_is_refused(program: Callable[..., NDArray[np.uint8]]) -> None:
    with pytest.raises(SisError, match=r"the folder of images is empty .*out.*pictures of every label map"):
        program("pass")
    with pytest.raises(SisError, match=r"2 of 3 images are missing: "):
        program(
            GOOD_PROGRAM + "\nimport pathlib\nfor p in sorted(pathlib.Path(sys.argv[2]).iterdir())[1:]: p.unlink()\n"
        )


def test_a_program_that_writes_another_size_is_refused(program: Callable[..., NDArray[np.uint8]]) -> None:
    with pytest.raises(SisError, match="image is 1x1, expected 32x32"):
        program(GOOD_PROGRAM.replace('"RGB", size', '"RGB", (1, 1)'))


def test_a_program_that_cannot_start_is_refused(tiny_pairs: Path, tmp_path: Path) -> None:
    card = MethodCard(kind="command", title="Ghost", command="no-such-program-here {labels} {out}")
    with pytest.raises(SisError, match="cannot start 'no-such-program-here'"):
        command_maker(card, PairSet.open(tiny_pairs / "val"), tmp_path, 0)([("val-00000", 0)])


def test_nothing_is_executed_from_words_that_mean_something_to_a_shell(
    program: Callable[..., NDArray[np.uint8]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = f"\nPath({str(tmp_path / 'words')!r}).write_text(chr(10).join(sys.argv[5:]))\n"
    traps = ["; touch PWNED", "$(touch PWNED)", "`touch PWNED`", "| touch PWNED", "*", "$HOME", "> PWNED", "&"]
    program(GOOD_PROGRAM + save, " " + " ".join(f"'{t}'" for t in traps))
    assert (tmp_path / "words").read_text().splitlines() == traps
    program(GOOD_PROGRAM + save, " ; touch PWNED && $(x)")
    assert (tmp_path / "words").read_text().splitlines() == [";", "touch", "PWNED", "&&", "$(x)"]
    root = Path(__file__).parents[2]
    assert not [p for folder in (tmp_path, root) for p in folder.glob("PWNED*")]
    assert not list(tmp_path.rglob("a")) and not list(tmp_path.rglob("b"))


def test_values_are_filled_in_after_the_command_is_split() -> None:
    card = MethodCard(kind="command", title="T", command="run --in {labels} '--out={out}'")
    words = command_line(card, {"labels": "a b;c", "out": "$(d) '", "ids": "", "seed": ""}, Path("x"))
    assert words == ["run", "--in", "a b;c", "--out=$(d) '"]


def test_a_flood_of_output_neither_blocks_nor_fills_the_memory(program: Callable[..., NDArray[np.uint8]]) -> None:
    flood = "import sys\nfor _ in range(200):\n    sys.stdout.write('x' * 100_000)\n    sys.stderr.write('y' * 1000)\n"
    assert len(program(flood + GOOD_PROGRAM)) == 3
    with pytest.raises(SisError) as caught:
        program(flood + "sys.exit(1)")
    assert len(str(caught.value)) < 3000


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


SLEEPER = """
import subprocess, sys, time
from pathlib import Path
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
Path({place!r}).write_text(str(child.pid))
{then}
"""


@pytest.mark.parametrize(
    ("then", "reason"),
    [("time.sleep(600)", r"ran over 0\.0\d+ minutes and was stopped.*timeout_minutes"), ("sys.exit(4)", "exit code 4")],
    ids=["timeout", "exit"],
)
def test_a_program_ends_with_all_its_children(
    program: Callable[..., NDArray[np.uint8]], tmp_path: Path, then: str, reason: str
) -> None:
    place = tmp_path / "child.pid"
    began = time.monotonic()
    with pytest.raises(SisError, match=reason):
        program(SLEEPER.format(place=str(place), then=then), timeout_minutes=0.04)
    assert time.monotonic() - began < 20
    child = int(place.read_text())
    deadline = time.monotonic() + 5
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)


def test_containers_and_environments_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool: dict[str, str | None] = {"apptainer": "/opt/apptainer", "conda": "/opt/conda"}
    monkeypatch.setattr(shutil, "which", lambda name: tool.get(name))
    places = dict.fromkeys(("labels", "out", "ids", "seed"), "v")
    container = MethodCard(kind="command", title="T", command="run {labels} {out}", container="docker://x@sha256:00")
    words = command_line(container, places, tmp_path)
    assert words[:2] == ["/opt/apptainer", "exec"] and words[-4:] == ["docker://x@sha256:00", "run", "v", "v"]
    assert "--cleanenv" in words and words[words.index("--network") + 1] == "none"
    conda = MethodCard(kind="command", title="T", command="run {labels} {out}", conda="env")
    assert command_line(conda, places, tmp_path)[:2] == ["conda", "run"]
    tool.clear()
    for card, name in ((container, "apptainer"), (conda, "conda")):
        with pytest.raises(SisError, match=f"needs {name}"):
            command_line(card, places, tmp_path)


def test_the_example_program_runs_as_a_method(tiny_pairs: Path, tiny_spec: Spec, tmp_path: Path) -> None:
    from sis.methods.discovery import method_info
    from sis.project.check import example_spec

    spec = example_spec(method_info("segment_noise"))
    manifest = sample_run(SampleJob(spec, tiny_pairs / "val", tmp_path / "out"))
    assert manifest is not None and manifest.meta["kind"] == "command" and manifest.meta["rows"] == 32
    assert read_manifest(tmp_path / "out", "images").digest == manifest.digest


def test_a_program_finds_its_files_from_any_folder(
    tiny_pairs: Path, tiny_spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec("segment_noise")
    monkeypatch.chdir(tmp_path)  # a relative path means another place for the program, which runs in the project
    manifest = sample_run(SampleJob(spec, tiny_pairs / "val", Path("set")))
    assert manifest is not None and manifest.meta["rows"] == 32
