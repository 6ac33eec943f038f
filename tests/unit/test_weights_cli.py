# SPDX-License-Identifier: Apache-2.0
"""`weights list | check | convert` on a folder with good, bad and missing files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_weights import Trap, written

from evaluators import weights_cli
from evaluators.nets.face_unet import FaceUNet
from evaluators.network import fill_seeded
from evaluators.weights_cli import register
from sis.data.manifest import file_sha256
from sis.errors import SisError

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command on `tmp_path/weights` and the list `tmp_path/weights.yaml`; returns what it printed."""
    (tmp_path / "weights").mkdir()
    listed(tmp_path)

    def command(*argv: str) -> str:
        parser = argparse.ArgumentParser()
        register(parser.add_subparsers(required=True))
        folders = ["--weights", str(tmp_path / "weights"), "--weights-list", str(tmp_path / "weights.yaml")]
        arguments = parser.parse_args(["weights", *argv, *folders])
        assert arguments.run is arguments.command
        arguments.run(arguments)
        return capsys.readouterr().out

    return command


def listed(tmp_path: Path, *more: str) -> None:
    """A list with the face network under its digits, `plain` without a hash, and `more` entries."""
    known = "licence: MIT, bytes: null, purpose: test"
    entries = [
        f"{{name: face, file: face.pth, url: 'https://example.org/f', sha256_prefix: {face(tmp_path)[:10]!r}, {known}, "
        "columns: [miou], fits: {network: segmenters/face_unet, options: {feature_scale: 32}}}",
        f"{{name: plain, file: plain.pth, url: null, sha256_prefix: null, {known}, published_as: model.pth}}",
        *more,
    ]
    (tmp_path / "weights.yaml").write_text("".join(f"- {entry}\n" for entry in entries))


def face(tmp_path: Path) -> str:
    """The face network's file, beside the folder; returns its sha256."""
    path = tmp_path / "face.pth"
    if not path.exists():
        network = FaceUNet(32)
        fill_seeded(network)
        torch.save(network.state_dict(), path)
    return file_sha256(path)


def bring(tmp_path: Path) -> None:
    (tmp_path / "weights/face.pth").write_bytes((tmp_path / "face.pth").read_bytes())
    written(tmp_path / "weights/plain.pth")


def refused(run: Run, capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[str, str]:
    """What a refused command printed, and its error."""
    with pytest.raises(SisError) as caught:
        run(*argv)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    return capsys.readouterr().out, str(caught.value)


def test_an_empty_folder_is_listed_and_says_what_to_fetch(run: Run, tmp_path: Path) -> None:
    lines = run("list").splitlines()
    assert lines[0].split() == ["name", "state", "size", "licence", "file", "feeds"]
    assert [line.split() for line in lines[1:]] == [
        ["face", "missing", "?", "MIT", "face.pth", "miou"],
        ["plain", "missing", "?", "MIT", "plain.pth"],
    ]
    first, second = run("check").splitlines()
    place = tmp_path / "weights" / "face.pth"
    assert first == f"missing    face: fetch https://example.org/f, save it as {place}; not real until then: miou"
    assert second.startswith("missing    plain: bring your own, nobody publishes it, save it as ")


def test_good_files_are_read_to_the_end_and_fitted(run: Run, tmp_path: Path) -> None:
    bring(tmp_path)
    states = [line.split()[1] for line in run("list").splitlines()]
    assert states == ["state", "present", "unverified"]
    first, second = run("check").splitlines()
    digest = face(tmp_path)[:16]
    count = len(FaceUNet(32).state_dict())
    assert first == f"present    face: face.pth, sha256 {digest}, {count} weights, fits segmenters/face_unet"
    assert second.startswith("unverified plain: plain.pth, sha256 ") and "6 weights, " in second


def test_json_has_everything(run: Run, tmp_path: Path) -> None:
    bring(tmp_path)
    first, second = json.loads(run("list", "--json"))
    assert (first["state"], first["sha256"], first["name"]) == ("present", face(tmp_path), "face")
    assert first["path"] == str(tmp_path / "weights/face.pth") and first["columns"] == ["miou"]
    assert (second["state"], second["sha256_prefix"], second["fault"]) == ("unverified", None, "")


def test_a_pin_is_kept_and_a_later_change_is_wrong(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bring(tmp_path)
    assert "pins.yaml: the sha256 of 2 files" in run("check", "--pin").splitlines()[-1]
    assert [line.split()[0] for line in run("check").splitlines()] == ["present", "pinned"]
    written(tmp_path / "weights/plain.pth", {"a": torch.ones(2)})
    out, error = refused(run, capsys, "check")
    for text in (out, run("list")):
        assert "wrong      plain: sha256 begins with " in text and "pins.yaml has " in text
    assert error == "1 of 2 weight files are wrong: plain - see above"
    pins = (tmp_path / "weights/pins.yaml").read_bytes()
    refused(run, capsys, "check", "--pin")
    assert (tmp_path / "weights/pins.yaml").read_bytes() == pins, "a wrong file does not move its pin"


def test_nothing_to_pin_is_refused(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing to pin" in refused(run, capsys, "check", "--pin")[1]
    assert not (tmp_path / "weights/pins.yaml").exists()


def test_wrong_files_are_all_named_and_the_others_still_checked(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bring(tmp_path)
    (tmp_path / "weights/face.pth").write_bytes(b"x")
    sentinel = tmp_path / "was run"
    torch.save({"a": torch.zeros(1), "x": Trap(sentinel)}, tmp_path / "weights/plain.pth")
    known = "url: null, sha256_prefix: null, licence: MIT, bytes: null, purpose: test"
    nan, good = f"{{name: nan, file: nan.safetensors, {known}}}", f"{{name: good, file: good.safetensors, {known}}}"
    listed(tmp_path, nan, good)
    save_file({"a": torch.tensor([float("nan")])}, tmp_path / "weights/nan.safetensors")
    written(tmp_path / "weights/good.safetensors")
    out, error = refused(run, capsys, "check")
    lines = {line.split()[1].rstrip(":"): line for line in out.splitlines()}
    assert lines["good"].startswith("unverified good: good.safetensors")
    assert lines["face"].startswith("wrong      face: sha256 begins with ")
    assert "nothing in it was run" in lines["plain"] and "weights are not finite: a" in lines["nan"]
    assert error.startswith("3 of 4 weight files are wrong: face, plain, nan")
    assert not sentinel.exists()


def test_weights_of_another_network_are_wrong(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = torch.load(tmp_path / "face.pth", weights_only=True)
    first = next(iter(weights))
    torch.save({k: v for k, v in weights.items() if k != first} | {"stranger": torch.zeros(1)}, tmp_path / "face.pth")
    listed(tmp_path)
    bring(tmp_path)
    out, _ = refused(run, capsys, "check")
    assert (
        f"wrong      face: the checkpoint does not fit the network; 1 missing: {first}; 1 unexpected: stranger" in out
    )
    assert run("list").splitlines()[1].split()[1] == "present", "list reads the hash alone"


def test_files_of_one_network_wait_for_each_other(run: Run, tmp_path: Path) -> None:
    both = "fits: {network: segmenters/face_unet, files: [one, two]}"
    known = f"url: null, sha256_prefix: null, licence: MIT, bytes: null, purpose: test, {both}"
    listed(tmp_path, f"{{name: one, file: one.pth, {known}}}", f"{{name: two, file: two.pth, {known}}}")
    written(tmp_path / "weights/one.pth")
    assert "fit not tried, two is missing" in run("check")


def test_names_that_nothing_reads_are_explained(run: Run, tmp_path: Path) -> None:
    for name in ("model.pth", "fase.pth", ".face.pth.safetensors.tmp-12", "notes.txt"):
        (tmp_path / "weights" / name).write_bytes(b"x")
    lines = [line for line in run("check").splitlines() if line.startswith("unused")]
    assert lines == [
        "unused     .face.pth.safetensors.tmp-12: of a conversion that runs now, or was killed; then delete it",
        "unused     fase.pth: not listed; did you mean 'face.pth' or 'plain.pth'?",
        "unused     model.pth: not read under this name; rename it to plain.pth",
        "unused     notes.txt: not listed",
    ]


def test_a_converted_file_is_checked_with_its_source(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bring(tmp_path)
    out = tmp_path / "weights/face.pth.safetensors"
    assert run("convert", "face") == f"{out}: used in place of face.pth from now on\n"
    line = run("check").splitlines()[0]
    assert line.startswith(f"present    face: face.pth.safetensors, converted, sha256 {face(tmp_path)[:16]}, ")
    assert line.endswith("fits segmenters/face_unet")
    (tmp_path / "weights/face.pth").write_bytes(b"x")
    assert "wrong      face: sha256 begins with " in refused(run, capsys, "check")[0]
    (tmp_path / "weights/face.pth").unlink()
    assert run("list").splitlines()[1].split()[1:2] == ["present"]
    assert "did you mean 'face'" in refused(run, capsys, "convert", "fase")[1]


def test_large_files_show_progress(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_cli, "_MB", 1_000)
    bring(tmp_path)
    size = sum((tmp_path / "weights" / name).stat().st_size for name in ("face.pth", "plain.pth")) // 1_000
    for action in (["list"], ["check"]):
        run(*action)
    run("list")
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(required=True))
    arguments = parser.parse_args(["weights", "list", "--weights", str(tmp_path / "weights"),
                                   "--weights-list", str(tmp_path / "weights.yaml")])  # fmt: skip
    arguments.run(arguments)
    assert f"weights: {size:,}/{size:,} MB, " in capsys.readouterr().err


def test_the_folder_and_the_list_default_to_the_projects(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(required=True))
    arguments = parser.parse_args(["weights", "list", "--markdown"])
    arguments.run(arguments)
    assert capsys.readouterr().out == weights_cli.markdown(weights_cli._store(arguments).cards)
