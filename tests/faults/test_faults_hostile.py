# SPDX-License-Identifier: Apache-2.0
"""Hostile bytes and careless text: bombs, pickles, links, experiment files with mistakes."""

from __future__ import annotations

import pickle
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from fault_bench import EXPERIMENT, Bench, assert_refused
from PIL import Image

from sis.data.image_set import pixel_hashes
from sis.data.manifest import write_manifest
from sis.data.provenance import RunRecord

pytestmark = pytest.mark.faults


def png_of_header(width: int, height: int) -> bytes:
    """A PNG that promises a picture of this size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.fixture
def folder(bench: Bench, tmp_path: Path) -> Path:
    """A folder of good pictures to spoil."""
    shutil.copytree(bench.pictures, tmp_path / "pictures")
    return tmp_path / "pictures"


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (8_001, 8_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_by_its_header(bench: Bench, folder: Path, width: int, height: int) -> None:
    bomb = folder / "val-00004.png"
    bomb.write_bytes(png_of_header(width, height))
    outcome = bench.runner(*bench.bring(folder.parent / "out", folder))
    assert_refused(outcome, bomb)
    assert not (folder.parent / "out").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"GIF89a" + b"\0" * 40, b"\xff\xd8\xff\xe0" + b"\0" * 40]
)
def test_a_file_that_is_no_png_is_refused(bench: Bench, folder: Path, content: bytes) -> None:
    (folder / "val-00002.png").write_bytes(content)
    assert_refused(bench.runner(*bench.bring(folder.parent / "out", folder)), folder / "val-00002.png")
    assert not (folder.parent / "out").exists()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "1"])
def test_a_picture_of_another_mode_is_refused(bench: Bench, folder: Path, mode: str) -> None:
    Image.new(mode, (32, 32)).save(folder / "val-00002.png")
    outcome = bench.runner(*bench.bring(folder.parent / "out", folder))
    assert_refused(outcome, folder / "val-00002.png", f"PNG of mode {mode}", "expected RGB")


def test_a_picture_of_another_size_is_refused(bench: Bench, folder: Path) -> None:
    Image.new("RGB", (31, 32)).save(folder / "val-00002.png")
    outcome = bench.runner(*bench.bring(folder.parent / "out", folder))
    assert_refused(outcome, folder / "val-00002.png", "image is 32x31, expected 32x32")


def test_a_link_out_of_the_folder_is_refused(bench: Bench, folder: Path) -> None:
    outside = folder.parent / "outside.png"
    (folder / "val-00006.png").rename(outside)
    (folder / "val-00006.png").symlink_to(outside)
    outcome = bench.runner(*bench.bring(folder.parent / "out", folder))
    assert_refused(outcome, "an image leads out of its folder", folder / "val-00006.png")
    assert not (folder.parent / "out").exists()
    (folder / "val-00006.png").unlink()
    shutil.copy(outside, folder / "val-00006.png")
    assert bench.runner(*bench.bring(folder.parent / "out", folder)).code == 0
    assert pixel_hashes(folder.parent / "out") == pixel_hashes(bench.images())


def test_missing_and_strange_pictures_are_counted_and_named(bench: Bench, folder: Path) -> None:
    (folder / "val-00001.png").rename(folder / "stranger.png")
    outcome = bench.runner(*bench.bring(folder.parent / "out", folder))
    assert_refused(outcome, "1 images belong to no label map: stranger.png", folder)
    (folder / "stranger.png").unlink()
    (folder / "val-00005.png").unlink()
    outcome = bench.runner(*bench.bring(folder.parent / "out", folder))
    assert_refused(outcome, "2 of 16 images are missing: val-00001.png, val-00005.png", folder)
    assert not (folder.parent / "out").exists()


class _Sentinel:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("vouched", [False, True], ids=["bare", "with a manifest"])
def test_a_pickle_called_safetensors_is_refused_and_not_executed(bench: Bench, tmp_path: Path, vouched: bool) -> None:
    sentinel, model = tmp_path / "sentinel", tmp_path / "model.safetensors"
    model.write_bytes(pickle.dumps(_Sentinel(sentinel)))
    if vouched:
        write_manifest(model, "model", [model], {}, RunRecord.start())
    outcome = bench.runner(*bench.sample(tmp_path / "out", "sdm", model=model))
    assert_refused(outcome, model, "run" if vouched else "manifest is missing")
    assert not sentinel.exists()
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []


#: (what, text to replace, replacement, words of the message)
MISTAKES = [
    ("unknown key", "batch_size: 4\n", "batchsize: 4\n", ["unknown key 'batchsize'", "did you mean 'batch_size'"]),
    ("unknown nested key", "{method: palette,", "{methid: palette,", ["methid", "did you mean 'method'?"]),
    ("duplicate key", "batch_size: 4\n", "batch_size: 4\nbatch_size: 5\n", ["duplicate key 'batch_size'", "keep one"]),
    ("text for a number", "batch_size: 4\n", 'batch_size: "4"\n', ["batch_size", "found '4' (str)"]),
    ("float for a count", "batch_size: 4\n", "batch_size: 4.5\n", ["batch_size", "found 4.5 (float)"]),
    ("list for a text", "title: Faults\n", "title: [Faults]\n", ["title", "found ['Faults'] (list)"]),
    ("yes for a name", "title: Faults\n", "title: yes\n", ["ambiguous value 'yes'", "quote the text"]),
    ("date", "title: Faults\n", "title: 2024-01-01\n", ["unsupported type"]),
    ("tab", "title: Faults\n", "\ttitle: Faults\n", ["not valid YAML"]),
    ("bad name", "  palette: {", "  'pal ette': {", ["pal ette"]),
]
#: Mistakes that only the whole project can tell, without a line.
ELSEWHERE = [
    ("unknown method", "{method: palette,", "{method: palete,", ["no method called 'palete'", "did you mean"]),
    ("unknown protocol", "scenes-tiny}", "scenes-tniy}", ["scenes-tniy", "did you mean 'scenes-tiny'"]),
    ("other name", "name: faults\n", "name: other\n", ["'other' differs from the file's name 'faults'"]),
]


LOCATED = [(*m[1:], True) for m in MISTAKES] + [(*m[1:], False) for m in ELSEWHERE]
IDS = [m[0] for m in MISTAKES + ELSEWHERE]


@pytest.mark.parametrize(("old", "new", "words", "located"), LOCATED, ids=IDS)
def test_a_mistake_in_an_experiment_file_is_located(
    bench: Bench, tmp_path: Path, old: str, new: str, words: list[str], located: bool
) -> None:
    assert old in EXPERIMENT
    file = tmp_path / "faults.yaml"
    file.write_text(EXPERIMENT.replace(old, new))
    argv = [file if a == bench.experiment else a for a in bench.sample(tmp_path / "out")]
    outcome = bench.runner(*argv)
    assert_refused(outcome, *words)
    if located:
        lines = zip(EXPERIMENT.splitlines(), file.read_text().splitlines(), strict=False)
        line = next(n for n, (before, after) in enumerate(lines, 1) if before != after)
        assert f"[{file}:{line}]" in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_float_without_a_dot_is_explained(bench: Bench, tmp_path: Path) -> None:
    """YAML reads 1e-4 as text."""
    file = tmp_path / "faults.yaml"
    file.write_text(EXPERIMENT.replace("learning_rate: 0.001", "learning_rate: 1e-4"))
    argv = [file if a == bench.experiment else a for a in bench.train(tmp_path / "out/model.safetensors")]
    assert_refused(bench.runner(*argv), "learning_rate", "'1e-4' is text in YAML", "write 0.0001", "sdm")
    assert not (tmp_path / "out").exists()


def test_an_unknown_parameter_of_a_method_is_answered_with_the_nearest(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "faults.yaml"
    file.write_text(EXPERIMENT.replace("spade_hidden: 8", "spade_hiden: 8"))
    argv = [file if a == bench.experiment else a for a in bench.train(tmp_path / "out/model.safetensors")]
    assert_refused(bench.runner(*argv), "unknown key 'spade_hiden'", "did you mean 'spade_hidden'?", "run sdm, fit")
    assert not (tmp_path / "out").exists()


def test_an_unknown_run_or_dataset_is_answered_with_the_nearest(bench: Bench, tmp_path: Path) -> None:
    argv = [str(a) for a in bench.sample(tmp_path / "out")]
    wrong = ["palete" if a == "palette" else a for a in argv]
    assert_refused(bench.runner(*wrong), "no run 'palete'", "did you mean 'palette'?")
    wrong = ["scenes_tinny" if a == "scenes_tiny" else a for a in argv]
    assert_refused(bench.runner(*wrong), "no dataset 'scenes_tinny'", "did you mean 'scenes_tiny'?")
    assert not (tmp_path / "out").exists()
