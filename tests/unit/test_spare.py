# SPDX-License-Identifier: Apache-2.0
"""A finished artefact comes back from its second name: whole, only its own, and without one nothing happens."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from sis.data.spare import bring_back, keep_spare, restore_spare


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    manifest, model = tmp_path / "model.manifest.json", tmp_path / "model"
    manifest.write_text(json.dumps({"meta": {"key": "k"}}))
    model.write_text("weights")
    return [manifest, model]


@pytest.mark.parametrize("links", [True, False], ids=["links", "copies"])
def test_deleted_files_come_back(files: list[Path], monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    work = files[0].parent / "work"
    keep_spare(files, work)
    assert (files[1].stat().st_nlink == 2) == links
    files[1].unlink()
    assert bring_back(files, work) and files[1].read_text() == "weights"
    assert sorted(path.name for path in work.iterdir()) == ["model.manifest.json.spare", "model.spare"]


def test_only_the_artefact_that_is_asked_for_comes_back(files: list[Path]) -> None:
    work = files[0].parent / "work"
    keep_spare(files, work)
    for path in files:
        path.unlink()
    assert not restore_spare(files, work, files[0], "another key") and not files[1].exists()
    assert restore_spare(files, work, files[0], "k") and all(path.exists() for path in files)


def test_a_file_that_is_there_is_left_alone(files: list[Path]) -> None:
    work = files[0].parent / "work"
    keep_spare(files, work)
    files[1].unlink()
    files[1].write_text("newer")
    assert bring_back(files, work) and files[1].read_text() == "newer"


def test_without_all_spares_nothing_comes_back(files: list[Path]) -> None:
    work = files[0].parent / "work"
    keep_spare(files, work)
    (work / "model.manifest.json.spare").unlink()
    files[1].unlink()
    assert not bring_back(files, work) and not files[1].exists()
    assert not restore_spare(files, work, files[0], "")
