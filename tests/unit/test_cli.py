# SPDX-License-Identifier: Apache-2.0
"""The command line: quick to answer, one line for a refusal, and files that survive a round trip."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sis.cli import build_parser, main
from sis.data.image_set import pixel_hashes
from sis.plan import RunSpec
from sis.sampling.run import SampleJob, sample_run

ROOT = Path(__file__).parents[2]
COMMANDS = [
    "prepare", "train", "prior", "sample", "publish", "data", "verify", "export", "import", "list", "new", "check",
    "edit", "trace", "figure", "checkpoint", "eval", "compare", "gallery",
]  # fmt: skip
RUN = ["--experiment", "tiny", "--dataset", "scenes_tiny", "--pairs", "p", "--out", "x", "--run"]


def sis(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sis", *map(str, words)], capture_output=True, text=True, check=False, cwd=cwd
    )


def test_help_answers_at_once_and_names_every_command() -> None:
    fastest, text = 9.0, ""
    for _ in range(3):
        began = time.perf_counter()
        text = sis("--help").stdout
        fastest = min(fastest, time.perf_counter() - began)
    assert fastest < 0.5
    assert all(re.search(rf"^    {name}\s", text, re.MULTILINE) for name in COMMANDS)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom sis.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'pyarrow', 'PIL', 'pydantic', 'matplotlib', 'scipy'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.splitlines()[-1] == "loaded: []"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: sis {command}") and len(out.splitlines()) > 4


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["prepare", "--dataset", "scene", "--split", "val", "--out", "x"], "did you mean 'scenes'"),
        (["prepare", "--dataset", "scenes_tiny", "--split", "vall", "--out", "x"], "did you mean 'val'"),
        (["check", "palete"], "did you mean 'palette'"),
        (["verify", "no-such-folder"], "no such file or folder [no-such-folder]"),
        (["export", "no-such-folder", "--out", "x"], "no such artefact"),
        (["new", "method", "Bad-Name"], "no good name"),
        (["new", "method", "palette"], "exists already"),
        (["sample", *RUN, "palete"], "did you mean 'palette'"),
        (["train", "--experiment", "tinny", *RUN[2:], "sdm-s1.0"], "did you mean 'tiny'"),
        (["train", *RUN, "sdm-s1.0", "--device", "gpu"], "unknown device 'gpu'"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)  # fmt: skip
def test_a_refusal_is_one_line_with_exit_code_two(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert reason in err
    assert not (ROOT / "x").exists()


def test_a_refusal_is_seen_from_outside_too() -> None:
    done = sis("check", "palete")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: nothing is called 'palete'") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["nonsense"], ["list", "nonsense"], ["sample"]])
def test_a_command_line_that_cannot_be_read_exits_with_two(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2


def test_an_interruption_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from sis.project import listing

    def interrupt(what: str | None) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, "listing", interrupt)
    assert main(["list"]) == 130
    assert capsys.readouterr().err.startswith("interrupted") and not capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run([sys.executable, "-m", "sis", "list"], stdout=write, stderr=subprocess.PIPE, cwd=ROOT)
    os.close(write)
    assert process.stderr == b""


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("methods", ["sdm", "palette", "segment_noise", "row_colours", "retrieval"]),
        ("datasets", ["scenes", "scenes_tiny"]),
        ("experiments", ["tiny"]),
        ("protocols", ["scenes", "scenes-tiny"]),
    ],
)
def test_list_shows_what_there_is(what: str, names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what]) == 0
    first, *rows = capsys.readouterr().out.splitlines()
    assert first == what
    assert set(names) <= {row.split()[0] for row in rows}


def test_list_shows_everything_in_aligned_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    sections = capsys.readouterr().out.strip().split("\n\n")
    assert [s.splitlines()[0] for s in sections] == ["methods", "datasets", "experiments", "protocols"]
    rows = sections[0].splitlines()[1:]
    kinds = {
        row.index(f" {kind} ") for row in rows for kind in ("python", "command", "images", "rule") if f" {kind} " in row
    }
    assert len(kinds) == 1


def test_prepare_sample_export_import_and_verify_go_round(
    tiny_pairs: Path, tiny_spec: Callable[..., RunSpec], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample_run(SampleJob(tiny_spec("palette", samples_per_map=1), tiny_pairs / "val", tmp_path / "set"))
    pictures, back = tmp_path / "pictures", tmp_path / "back"
    assert main(["export", str(tmp_path / "set"), "--out", str(pictures)]) == 0
    assert len(list(pictures.glob("*.png"))) == 16
    words = ["import", str(pictures), "--pairs", str(tiny_pairs / "val"), "--name", "mine", "--out", str(back)]
    assert main(words) == 0
    assert pixel_hashes(back) == pixel_hashes(tmp_path / "set")
    capsys.readouterr()
    assert main(["verify", str(back), str(tiny_pairs / "train" / "manifest.json"), str(tiny_pairs / "val")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 3 and all(line.startswith("ok ") for line in lines)
    shard = back / "shard-0000.parquet"
    os.truncate(shard, shard.stat().st_size - 1)
    assert main(["verify", str(back)]) == 2
    assert "truncated" in capsys.readouterr().err


def test_artefacts_may_be_named_by_their_manifest(
    tiny_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "new" / "manifest.json"
    assert main(["prepare", "--dataset", "scenes_tiny", "--split", "val", "--out", str(manifest)]) == 0
    assert manifest.is_file()
    assert main(["verify", str(manifest)]) == 0


def test_a_run_of_the_tiny_experiment_is_sampled_by_one_command(tiny_pairs: Path, tmp_path: Path) -> None:
    words = ["sample", "--experiment", "tiny", "--dataset", "scenes_tiny", "--run", "real", "--device", "cpu"]
    assert main([*words, "--pairs", str(tiny_pairs / "val" / "manifest.json"), "--out", str(tmp_path / "out")]) == 0
    assert len(pixel_hashes(tmp_path / "out")) == 16


def test_a_metric_is_checked_by_the_evaluators_own_command() -> None:
    done = sis("check", "accuracy")
    assert done.returncode == 0 and done.stdout.splitlines()[0].startswith("ok  the constants are complete")
    evaluators = [sys.executable, "-m", "evaluators", "check", "acuracy"]
    wrong = subprocess.run(evaluators, capture_output=True, text=True, check=False, cwd=ROOT)
    assert wrong.returncode == 2 and "did you mean 'accuracy'" in wrong.stderr and wrong.stderr.count("\n") == 1


def test_every_option_has_a_help_text() -> None:
    import argparse

    (commands,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    silent = [(n, a.dest) for n, p in commands.choices.items() for a in p._actions if not a.help]
    assert not silent
