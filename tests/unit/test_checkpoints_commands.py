# SPDX-License-Identifier: Apache-2.0
"""The commands that look at, import and export checkpoints of others."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_checkpoint
from small_checkpoint import small
from torch import Tensor

from sis.checkpoints.sdm import export_sdm
from sis.cli import main
from sis.data.manifest import file_sha256, read_manifest
from sis.data.weight_files import write_weights

theirs = small_checkpoint.theirs


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "foreign.yaml"
    fit = "{width: 32, multipliers: [1, 2], blocks: 1, attention: [2], diffusion_steps: 50}"
    path.write_text(
        "name: foreign\ntitle: Foreign\ndatasets:\n  scenes_tiny: {protocol: scenes-tiny}\n"
        f"runs:\n  released: {{method: sdm, fit: {fit}, sample: {{steps: 2}}}}\n"
    )
    return path


def test_the_three_commands_look_import_and_export(
    theirs: dict[str, Tensor], experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, model, back = tmp_path / "a.pt", tmp_path / "m" / "model.safetensors", tmp_path / "back.pt"
    write_weights(theirs, file)
    run = ["--experiment", str(experiment), "--dataset", "scenes_tiny", "--run", "released"]
    assert main(["checkpoint", "inspect", str(file)]) == 0
    assert "label channels  11\n" in capsys.readouterr().out
    assert main(["checkpoint", "import", str(file), *run, "--out", str(model)]) == 0
    assert read_manifest(model, "model").meta["source"]["weights"] == "not stated"
    assert main(["checkpoint", "inspect", str(model)]) == 0
    assert "imported from   a.pt\nweights         not stated\n" in capsys.readouterr().out
    assert main(["checkpoint", "export", str(model), "--format", "sdm", "--out", str(back)]) == 0
    assert back.read_bytes() == file.read_bytes() and file_sha256(back) in capsys.readouterr().out


def test_a_checkpoint_for_another_dataset_is_refused_on_one_line(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_weights(export_sdm(small(151).state_dict()), tmp_path / "a.pt")
    run = ["--experiment", str(experiment), "--dataset", "scenes_tiny", "--run", "released"]
    code = main(["checkpoint", "import", str(tmp_path / "a.pt"), *run, "--out", str(tmp_path / "m.safetensors")])
    error = capsys.readouterr().err
    assert code == 2 and len(error.splitlines()) == 1
    assert "the checkpoint was trained on 151 label channels, this dataset has 11" in error
    assert not (tmp_path / "m.safetensors").exists()
