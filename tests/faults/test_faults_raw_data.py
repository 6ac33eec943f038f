# SPDX-License-Identifier: Apache-2.0
"""Raw data with one mistake: `prepare` names the file in one line, writes nothing, and ends well once it is mended."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_faults_disk
from fault_bench import assert_nothing_torn, pair_hashes
from PIL import Image
from test_faults_disk import Disk

from sis.config.cards import DatasetCard
from sis.data.pairs import PairSet
from sis.data.prepare import prepare
from sis.errors import SisError

pytestmark = pytest.mark.faults

#: A small file system in memory (see test_faults_disk).
small_disk = test_faults_disk.disk

TABLE = {
    "name": "streets",
    "void": 255,
    "classes": [{"id": i, "name": f"class {i}", "colour": [i, 9, 9]} for i in range(34)],
}
ROOMS = {**TABLE, "name": "rooms", "file_offset": 1, "file_void": [0]}
VIEWS = {"name": "views", "void": None, "classes": [{"id": i, "name": f"c{i}", "colour": [i, 0, 0]} for i in range(29)]}
CITIES = ("aachen", "bonn")
#: Enough for `prepare` to start two processes.
MANY = 64


def card(name: str, count: int) -> DatasetCard:
    """Cards of three small datasets in the layouts of Cityscapes, ADE20K and the landscapes."""
    facts: dict[str, Any] = {
        "name": name,
        "title": name,
        "layout": "folder",
        "size": [16, 32],
        "licence": "",
        "source": "",
    }
    splits: dict[str, dict] = {"train": {"count": count}, "val": {"count": count}}
    for split, long in [("train", "training"), ("val", "validation")]:
        if name == "streets":
            fine = f"gtFine/{split}/*/{{id}}_gtFine_"
            splits[split]["image"] = f"leftImg8bit/{split}/*/{{id}}_leftImg8bit.png"
            splits[split] |= {"label": f"{fine}labelIds.png", "instance": f"{fine}instanceIds.png"}
        elif name == "rooms":
            splits[split] |= {"image": f"images/{long}/{{id}}.*", "label": f"annotations/{long}/{{id}}.png"}
    if name == "streets":
        more = {"labels": TABLE, "prepare": {"policy": "sdm_aspect"}, "files": {"instances": "file"}, "edges": True}
    elif name == "rooms":
        more = {"labels": ROOMS, "prepare": {"policy": "sdm_aspect"}}
    else:
        splits["train"] |= {"image": "train/imgs/{id}.jpg", "label": "train/labels/{id}.png"}
        splits["val"] |= {"photographs": False, "label": "val/{id}.png", "references": "label_to_img.json"}
        more = {"labels": VIEWS, "prepare": {"policy": "exact"}}
    return DatasetCard.model_validate({**facts, "splits": splits, **more})


def save(path: Path, array: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def fill(root: Path, name: str, count: int) -> None:
    """The files of that dataset, `count` pairs a split; rows of blocks, so that labels have some structure."""
    random = np.random.default_rng(5)
    size = (16, 32) if name == "views" else (32, 64)
    for split, long in [("train", "training"), ("val", "validation")]:
        for number in range(count):
            photo = random.integers(0, 256, (*size, 3), dtype=np.uint8)
            label = np.kron(random.integers(0, 29, (4, 8)), np.ones((size[0] // 4, size[1] // 8))).astype(np.uint8)
            if name == "streets":
                city = CITIES[number % 2]
                stem = f"{split}/{city}/{city}_{number:06d}_000019_"
                save(root / f"leftImg8bit/{stem}leftImg8bit.png", photo)
                save(root / f"gtFine/{stem}gtFine_labelIds.png", label)
                save(
                    root / f"gtFine/{stem}gtFine_instanceIds.png",
                    np.where(label > 23, 1000 * label.astype(np.uint16) + number, label),
                )
            elif name == "rooms":
                save(root / f"images/{long}/ADE_{split}_{number:08d}.jpg", photo, quality=95)
                save(root / f"annotations/{long}/ADE_{split}_{number:08d}.png", label)
            elif split == "train":
                save(root / f"train/imgs/{number}_b.jpg", photo)
                save(root / f"train/labels/{number}_b.png", label)
            else:
                save(root / f"val/{number + 100}_b.png", label.astype(np.uint16))
    if name == "views":
        pairs = {f"{n + 100}_b.png": f"{n}_b.jpg" for n in range(count)}
        (root / "label_to_img.json").write_text(json.dumps(pairs))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """`sound(name, count)`: the folder of a dataset without mistakes, made once; copy it to spoil it."""
    folder = tmp_path_factory.mktemp("sound")

    def make(name: str, count: int) -> Path:
        root = folder / f"{name}-{count}"
        if not root.exists():
            fill(root, name, count)
        return root

    return make


# one mistake each, made in the folder of a dataset; the pair that is spoilt is number 1 of train

STREET = "bonn/bonn_000001_000019_"
PHOTO, LABEL = f"leftImg8bit/train/{STREET}leftImg8bit.png", f"gtFine/train/{STREET}gtFine_labelIds.png"
INSTANCE = f"gtFine/train/{STREET}gtFine_instanceIds.png"
ROOM, ROOM_LABEL = "images/training/ADE_train_00000001.jpg", "annotations/training/ADE_train_00000001.png"
REFERENCES = "label_to_img.json"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def without(*folders: str) -> Callable[[Path], object]:
    return lambda root: [shutil.rmtree(root / f) for f in folders]


def without_file(*files: str) -> Callable[[Path], object]:
    return lambda root: [(root / f).unlink() for f in files]


def cut(file: str, keep: float) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        data = (root / file).read_bytes()
        (root / file).write_bytes(data[: int(len(data) * keep)])

    return spoil


def rewritten(file: str, change: Callable[[np.ndarray], np.ndarray], **options: Any) -> Callable[[Path], object]:
    return lambda root: save(root / file, change(pixels(root / file)), **options)


def strange_values(values: np.ndarray) -> np.ndarray:
    values[3, 4], values[5, 6:8] = 77, 200
    return values


def bomb(file: str) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        data = bytearray((root / file).read_bytes())
        if file.endswith(".png"):
            data[16:24] = struct.pack(">II", 30_000, 30_000)
            data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        else:
            frame = data.index(b"\xff\xc0")
            data[frame + 5 : frame + 9] = struct.pack(">HH", 30_000, 30_000)
        (root / file).write_bytes(data)

    return spoil


def with_palette(root: Path) -> None:
    picture = Image.fromarray(pixels(root / LABEL))
    picture.putpalette([i * 7 % 256 for i in range(768)])
    picture.save(root / LABEL)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 8
    return exif


def in_two_cities(root: Path) -> None:
    for file in (PHOTO, LABEL, INSTANCE):
        shutil.copy(root / file, (root / file).parents[1] / "aachen")


def renamed(name: str) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        for file in (ROOM, ROOM_LABEL):
            (root / file).rename((root / file).with_name(name + Path(file).suffix))

    return spoil


def moved_out(name: str) -> Callable[[Path], object]:
    """A file or folder that is a link to where it was moved, beside the root."""

    def spoil(root: Path) -> None:
        outside = root.with_name("outside")
        (root / name).rename(outside)
        (root / name).symlink_to(outside)

    return spoil


def reference(name: str) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        pairs = json.loads((root / REFERENCES).read_text())
        (root / REFERENCES).write_text(json.dumps(pairs | {"101_b.png": name}))

    return spoil


#: What is wrong: dataset, the mistake, words of the one line; the split is train unless references are wrong.
MISTAKES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing split": ("streets", without("leftImg8bit/train"), r"missing folder .*leftImg8bit/train"),
    "missing root": ("streets", lambda root: shutil.rmtree(root), r"no such folder .*root"),
    "empty split": (
        "rooms",
        without_file(*(f"images/training/ADE_train_{i:08d}.jpg" for i in range(4))),
        "no file fits",
    ),
    "wrong count": ("streets", without_file(PHOTO, LABEL, INSTANCE), r"has 3 pairs, its card expects 4 .*root"),
    "label value": ("streets", rewritten(LABEL, strange_values), rf"outside the table 'streets': 77, 200 .*{LABEL}"),
    "size of a label map": (
        "streets",
        rewritten(LABEL, lambda a: a[:, :-1]),
        "64x32 and label map of 63x32 .*bonn_000001",
    ),
    "turned size": ("rooms", rewritten(ROOM_LABEL, lambda a: a.T), "64x32 and label map of 32x64 .*ADE_train_00000001"),
    "size of an instance map": ("streets", rewritten(INSTANCE, lambda a: a[1:]), "instance map of 64x31.*bonn_000001"),
    "no label map": ("streets", without_file(LABEL), "1 photographs without label maps: bonn_000001_000019"),
    "no photograph": ("rooms", without_file(ROOM), "1 label maps without photographs: ADE_train_00000001"),
    "no instance map": ("streets", without_file(INSTANCE), "1 label maps without instance maps: bonn_000001_000019"),
    "truncated PNG": ("streets", cut(PHOTO, 0.6), rf"truncated PNG .*{PHOTO}"),
    "truncated label map": ("streets", cut(LABEL, 0.9), rf"truncated PNG .*{LABEL}"),
    "truncated JPEG": ("rooms", cut(ROOM, 0.6), rf"truncated JPEG .*{ROOM}"),
    "JPEG without its last byte": ("rooms", cut(ROOM, 0.9999), rf"truncated JPEG .*{ROOM}"),
    "empty file": ("rooms", cut(ROOM, 0), rf"empty file .*{ROOM}"),
    "bomb in a PNG": ("streets", bomb(LABEL), rf"30000x30000 is over 64 MP .*{LABEL}"),
    "bomb in a JPEG": ("rooms", bomb(ROOM), rf"30000x30000 is over 64 MP .*{ROOM}"),
    "palette": ("streets", with_palette, rf"palette picture.*{LABEL}"),
    "label map in colours": (
        "streets",
        rewritten(LABEL, lambda a: np.dstack([a] * 3)),
        rf"mode RGB: .*not ids .*{LABEL}",
    ),
    "JPEG as label map": ("streets", rewritten(LABEL, lambda a: a, format="JPEG"), rf"the file is a JPEG .*{LABEL}"),
    "instances in 8 bits": (
        "streets",
        rewritten(INSTANCE, lambda a: a.clip(0, 255).astype(np.uint8)),
        rf"8 bits.*{INSTANCE}",
    ),
    "photograph with alpha": (
        "streets",
        rewritten(PHOTO, lambda a: np.dstack([a, a[..., 0]])),
        rf"mode RGBA .*{PHOTO}",
    ),
    "EXIF orientation": ("rooms", rewritten(ROOM, lambda a: a, exif=turned()), rf"EXIF orientation 8.*{ROOM}"),
    "duplicate id": ("streets", in_two_cities, f"'bonn_000001_000019' twice: .*{STREET}"),
    "case": ("rooms", renamed("ADE_Train_00000002"), "in case only: ADE_Train_00000002, ADE_train_00000002"),
    "space in an id": ("rooms", renamed("ADE train 1"), "no good ids: ADE train 1 .*rooms/train"),
    "command in an id": ("rooms", renamed("$(reboot)"), r"no good ids: \$\(reboot\)"),
    "dash before an id": ("rooms", renamed("-rf"), "no good ids: -rf"),
    "letters of an id": ("rooms", renamed("Zürich"), "no good ids: Zürich"),
    "line break in an id": ("rooms", renamed("a\nb"), "no good ids: a b"),
    "file out of the root": ("streets", moved_out(PHOTO), rf"leaves the dataset's root, to .*outside .*{PHOTO}"),
    "folder out of the root": (
        "streets",
        moved_out("gtFine/train"),
        "leaves the dataset's root, to .*outside .*gtFine/train",
    ),
    "reference out of the root": ("views", reference("../../secret.jpg"), rf"lead out of .*secret\.jpg .*{REFERENCES}"),
    "reference to nothing": ("views", reference("9_b.jpg"), rf"no training photographs: 9_b\.jpg .*{REFERENCES}"),
    "references out of the root": ("views", moved_out(REFERENCES), rf"leaves the dataset's root.*{REFERENCES}"),
}
#: Mistakes that only a worker process finds.
FOUND_BY_WORKERS = ["label value", "truncated PNG", "truncated JPEG", "bomb in a PNG", "EXIF orientation", "palette"]


def assert_refused(name: str, count: int, root: Path, out: Path, words: str, workers: int) -> None:
    """Preparing ends in one line with these words, exit code 2, and not a single file."""
    split = "val" if name == "views" else "train"
    with pytest.raises(SisError, match=words) as refusal:
        prepare(card(name, count), split, root, out, workers)
    assert refusal.value.exit_code == 2 and len(str(refusal.value).splitlines()) == 1
    assert [p for p in out.rglob("*") if not p.is_dir()] == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_in_one_line_and_nothing_is_written(
    sound: Callable[[str, int], Path], tmp_path: Path, mistake: str
) -> None:
    name, spoil, words = MISTAKES[mistake]
    root, out = tmp_path / "root", tmp_path / "out"
    shutil.copytree(sound(name, 4), root)
    spoil(root)
    assert_refused(name, 4, root, out, words, workers=1)
    split = "val" if name == "views" else "train"
    prepare(card(name, 4), split, sound(name, 4), out)
    assert len(PairSet.open(out)) == 4


@pytest.mark.parametrize("mistake", FOUND_BY_WORKERS)
def test_two_workers_name_a_mistake_as_one_does(
    sound: Callable[[str, int], Path], tmp_path: Path, mistake: str
) -> None:
    name, spoil, words = MISTAKES[mistake]
    shutil.copytree(sound(name, MANY), tmp_path / "root")
    spoil(tmp_path / "root")
    assert_refused(name, MANY, tmp_path / "root", tmp_path / "out", words, workers=2)


@pytest.mark.parametrize("name", ["streets", "rooms"])
def test_sound_data_give_the_same_bytes_with_one_worker_and_two(
    sound: Callable[[str, int], Path], tmp_path: Path, name: str
) -> None:
    made = [prepare(card(name, MANY), "train", sound(name, MANY), tmp_path / str(n), n) for n in (1, 2)]
    assert made[0].files == made[1].files and len(PairSet.open(tmp_path / "2")) == MANY


# kinds of files that are rare, and right


def test_labels_of_16_bits_are_prepared_right(sound: Callable[[str, int], Path], tmp_path: Path) -> None:
    root = sound("views", 4)
    prepare(card("views", 4), "val", root, tmp_path / "out")
    for pair in PairSet.open(tmp_path / "out"):
        with Image.open(root / f"val/{pair.image_id}.png") as picture:
            assert picture.mode == "I;16"
            np.testing.assert_array_equal(pair.label, np.asarray(picture))
        assert pair.photograph is None and pair.reference_id == f"{int(pair.image_id[:3]) - 100}_b"


def test_grey_and_cmyk_photographs_are_prepared_right(sound: Callable[[str, int], Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(sound("rooms", 4), root)
    Image.new("L", (64, 32), 90).save(root / "images/training/ADE_train_00000000.jpg", quality=100)
    Image.new("CMYK", (64, 32), (255, 0, 0, 51)).save(root / ROOM, quality=100)
    Image.new("RGB", (64, 32), (200, 30, 10)).save(root / "images/training/ADE_train_00000002.jpg", quality=100)
    prepare(card("rooms", 4), "train", root, tmp_path / "out")
    pairs = PairSet.open(tmp_path / "out")
    for index, (mode, colour) in enumerate([("L", (90, 90, 90)), ("CMYK", (0, 204, 204)), ("RGB", (200, 30, 10))]):
        assert pairs.get(index).origin.mode == mode
        assert np.abs(pairs.get(index).image.astype(int) - colour).max() <= 2


# the disk that the result goes to


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_target_is_named_and_the_next_run_completes(
    sound: Callable[[str, int], Path], small_disk: Disk, tmp_path: Path, workers: int
) -> None:
    root, own = sound("rooms", MANY), card("rooms", MANY)
    wanted = prepare(own, "train", root, tmp_path / "peace").files
    room = sum(p.stat().st_size for p in (tmp_path / "peace").rglob("*"))
    for share in (0.0, 0.5, 0.9):
        small_disk.clear()
        ballast = small_disk.fill(int(share * room))
        with pytest.raises(SisError, match=r"no space left to write .* free disk space") as refusal:
            prepare(own, "train", root, small_disk.folder / "out", workers)
        assert len(str(refusal.value).splitlines()) == 1
        assert [p for p in (small_disk.folder / "out").rglob("*") if not p.is_dir()] == []
        ballast.unlink()
        assert prepare(own, "train", root, small_disk.folder / "out", workers).files == wanted


def test_a_read_only_target_is_named(sound: Callable[[str, int], Path], small_disk: Disk) -> None:
    root, own = sound("rooms", 4), card("rooms", 4)
    for made in (False, True):
        if made:
            (small_disk.folder / "out").mkdir()
        small_disk.remount("ro")
        with pytest.raises(SisError, match=r"cannot write .*Read-only file system"):
            prepare(own, "train", root, small_disk.folder / "out")
        small_disk.remount("rw")
        assert [p for p in small_disk.folder.rglob("*") if not p.is_dir()] == []
    prepare(own, "train", root, small_disk.folder / "out")
    assert_nothing_torn(small_disk.folder)
    assert len(pair_hashes(small_disk.folder / "out")) == 4


def test_a_target_inside_the_raw_data_is_not_taken_for_data(sound: Callable[[str, int], Path], tmp_path: Path) -> None:
    """`out` below the root holds Parquet and JSON, which no pattern of pictures fits."""
    shutil.copytree(sound("rooms", 4), tmp_path / "root")
    for _ in range(2):
        prepare(card("rooms", 4), "train", tmp_path / "root", tmp_path / "root/images/training/out")
    assert len(PairSet.open(tmp_path / "root/images/training/out")) == 4
