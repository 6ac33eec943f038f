# SPDX-License-Identifier: Apache-2.0
"""Traps: one alteration each to a written miniature, as users' folders have them, and the refusal that must follow.

Sources: issue threads of SDM, SPADE, OASIS and CC-FPSE on pairing, label values and sizes; the measured behaviour of
Pillow on cut, rotated, oversized and palette files.
"""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from miniatures import Miniature


@dataclass(frozen=True)
class Trap:
    """One alteration.

    dataset: the miniature that it is made for; split: the split whose preparation must refuse it, "" where only a
    comparison of splits can; refusal: regular expression that the one line must match, file or id included.
    """

    dataset: str
    split: str
    refusal: str
    alter: Callable[[Miniature], None]

    @property
    def story(self) -> str:
        """What is wrong, in one sentence."""
        return (self.alter.__doc__ or "").strip()


TRAPS: dict[str, Trap] = {}


def spring(name: str, miniature: Miniature) -> None:
    """Alter a written miniature."""
    TRAPS[name].alter(miniature)


def _trap(dataset: str, split: str, refusal: str) -> Callable[[Callable[[Miniature], None]], None]:
    def register(alter: Callable[[Miniature], None]) -> None:
        TRAPS[alter.__name__] = Trap(dataset, split, refusal, alter)

    return register


def _file(miniature: Miniature, holds: str, split: str = "train", index: int = 0) -> Path:
    return miniature.samples[split][index].files[holds]


def _cut(path: Path, size: int) -> None:
    """Keep only the first `size` bytes; a negative size counts from the end."""
    path.write_bytes(path.read_bytes()[:size])


def _convert(path: Path, mode: str) -> None:
    """Save a picture in another mode of Pillow."""
    Image.open(path).convert(mode).save(path)


def _rewrite_labels(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    Image.fromarray(change(np.array(Image.open(path)))).save(path)


@_trap("ade20k", "train", r"EXIF orientation 6.*ADE_train_00000001\.jpg")
def exif_rotation(miniature: Miniature) -> None:
    """A photograph lies on its side and only its EXIF tag says so."""
    path = _file(miniature, "image")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, quality=97, exif=exif)


@_trap("ade20k", "train", r"truncated JPEG.*ADE_train_00000001\.jpg")
def truncated_jpeg(miniature: Miniature) -> None:
    """A photograph's file ends too early; lenient readers fill the rest with grey."""
    _cut(path := _file(miniature, "image"), path.stat().st_size * 2 // 3)


@_trap("ade20k", "train", r"truncated JPEG.*ADE_train_00000001\.jpg")
def jpeg_without_end(miniature: Miniature) -> None:
    """A photograph's file lacks only its end marker."""
    _cut(_file(miniature, "image"), -2)


@_trap("ade20k", "train", r"empty file.*ADE_train_00000001\.jpg")
def empty_file(miniature: Miniature) -> None:
    """A download left a photograph without a byte."""
    _cut(_file(miniature, "image"), 0)


@_trap("ade20k", "train", r"palette picture.*ADE_train_00000001\.png")
def palette_label(miniature: Miniature) -> None:
    """A label map has a palette; turned to grey, its colours would become ids."""
    path = _file(miniature, "label")
    picture = Image.open(path)
    picture.putpalette([(index * 37) % 256 for index in range(768)])
    picture.save(path)


@_trap("ade20k", "train", r"mode RGB.*not ids.*ADE_train_00000001\.png")
def rgb_label(miniature: Miniature) -> None:
    """A label map was saved in colours."""
    _convert(_file(miniature, "label"), "RGB")


@_trap("ade20k", "train", r"outside the table 'ade20k': 151, 200 .*ADE_train_00000001\.png")
def label_out_of_table(miniature: Miniature) -> None:
    """A label map holds two values that the table does not know."""

    def spoil(labels: np.ndarray) -> np.ndarray:
        labels[:2, :2], labels[-1, -1] = 151, 200
        return labels

    _rewrite_labels(_file(miniature, "label"), spoil)


@_trap("ade20k", "train", r"link leaves the dataset's root.*ADE_train_00000001\.jpg")
def symlink_out(miniature: Miniature) -> None:
    """A photograph is a symbolic link to a file outside the dataset's folder."""
    path, outside = _file(miniature, "image"), miniature.root.with_name(f"{miniature.root.name}_outside.jpg")
    shutil.move(path, outside)
    path.symlink_to(outside)


@_trap("ade20k", "val", r"missing folder.*annotations/validation")
def missing_split(miniature: Miniature) -> None:
    """The folder of the validation split is missing; some READMEs call it `val`."""
    for kind in ("images", "annotations"):
        (miniature.root / kind / "validation").rename(miniature.root / kind / "val")


@_trap("ade20k", "", r"1 photograph in both train and val: ADE_train_00000001 = ADE_val_00000001")
def leaked_pixels(miniature: Miniature) -> None:
    """A training pair lies in the validation split too, under another name."""
    for holds in ("image", "label"):
        shutil.copyfile(_file(miniature, holds), _file(miniature, holds, "val"))


@_trap("cityscapes", "train", r"truncated PNG.*aachen_000000_000019_leftImg8bit\.png")
def truncated_png(miniature: Miniature) -> None:
    """A PNG lacks its last 20 bytes, which Pillow decodes without a word."""
    _cut(_file(miniature, "image"), -20)


@_trap("cityscapes", "train", r"damaged .*PNG.*aachen_000000_000019_gtFine_labelIds\.png")
def flipped_bit(miniature: Miniature) -> None:
    """One bit of a label map's file differs from what its checksum says."""
    path = _file(miniature, "label")
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 4 + len(data) // 4] ^= 1
    path.write_bytes(data)


@_trap("cityscapes", "train", r"20000x20000 is over 64 MP.*aachen_000000_000019_leftImg8bit\.png")
def bomb(miniature: Miniature) -> None:
    """A small PNG claims to be 20000x20000."""
    path = _file(miniature, "image")
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 20_000, 20_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


@_trap("cityscapes", "train", r"8 bits, expected 16.*aachen_000000_000019_gtFine_instanceIds\.png")
def eight_bit_instances(miniature: Miniature) -> None:
    """An instance map was saved in 8 bits, so that all things became one."""
    _rewrite_labels(_file(miniature, "instance"), lambda ids: np.minimum(ids, 255).astype(np.uint8))


@_trap("cityscapes", "train", r"mode RGBA.*aachen_000000_000019_leftImg8bit\.png")
def transparent_photograph(miniature: Miniature) -> None:
    """A photograph has an alpha channel."""
    _convert(_file(miniature, "image"), "RGBA")


@_trap("cityscapes", "train", r"'aachen_000000_000019' twice")
def duplicate_id(miniature: Miniature) -> None:
    """One image lies in two cities."""
    for path in miniature.samples["train"][0].files.values():
        copy = path.parent.with_name("bochum") / path.name
        shutil.copyfile(path, copy)


@_trap("cityscapes", "train", r"without instance maps: aachen_000000_000019")
def unpaired_instances(miniature: Miniature) -> None:
    """An instance map is missing."""
    _file(miniature, "instance").unlink()


@_trap("coco_stuff", "train", r"do not fit.*000000000140")
def size_mismatch(miniature: Miniature) -> None:
    """A label map is smaller than its photograph."""
    _rewrite_labels(_file(miniature, "label"), lambda labels: np.ascontiguousarray(labels[:-1]))


@_trap("coco_stuff", "train", r"photographs without label maps: 000000000140")
def unpaired_image(miniature: Miniature) -> None:
    """A label map is missing, so that pairing by order would shift every later pair."""
    _file(miniature, "label").unlink()


@_trap("coco_stuff", "train", r"label maps without photographs: 000000000140")
def unpaired_label(miniature: Miniature) -> None:
    """A photograph is missing, so that pairing by order would shift every later pair."""
    _file(miniature, "image").unlink()


@_trap("coco_stuff", "train", r"every colour of this palette is grey.*000000000140\.png")
def grey_palette_label(miniature: Miniature) -> None:
    """A label map has a palette of greys: its ids may be the indices or the greys."""
    path = _file(miniature, "label")
    picture = Image.open(path)
    picture.putpalette([255 - index // 3 for index in range(768)])
    picture.save(path)


@_trap("coco_stuff", "val", r"has 3 pairs, its card expects 4")
def wrong_count(miniature: Miniature) -> None:
    """A pair is missing altogether."""
    for path in miniature.samples["val"][-1].files.values():
        path.unlink()


@_trap("landscapes", "train", r"differ in case only: 1702_0317156075_B, 1702_0317156075_b")
def case_collision(miniature: Miniature) -> None:
    """Two pairs have names that differ in case only, one file on many systems."""
    for path in miniature.samples["train"][0].files.values():
        shutil.copyfile(path, path.with_name(path.stem.upper() + path.suffix))


@_trap("landscapes", "val", r"lead out of their folder: .*passwd\.jpg.*label_to_img\.json")
def reference_out(miniature: Miniature) -> None:
    """A mask's reference photograph is named by a path that leaves the dataset's folder."""
    _edit_references(miniature, lambda pairs: pairs | {next(iter(pairs)): "../../../../etc/passwd.jpg"})


@_trap("landscapes", "val", r"no training photographs: no_such_photograph\.jpg.*label_to_img\.json")
def reference_missing(miniature: Miniature) -> None:
    """A mask's reference photograph does not exist."""
    _edit_references(miniature, lambda pairs: pairs | {next(iter(pairs)): "no_such_photograph.jpg"})


@_trap("landscapes", "val", r"without a reference: 1725_010bd794ee_b\.png.*label_to_img\.json")
def mask_without_reference(miniature: Miniature) -> None:
    """A mask is not in the file of references."""
    _edit_references(miniature, lambda pairs: dict(list(pairs.items())[1:]))


@_trap("landscapes", "val", r"not a readable JSON file.*label_to_img\.json")
def references_cut(miniature: Miniature) -> None:
    """The file of references ends too early to be JSON."""
    _cut(miniature.root / "label_to_img.json", -20)


def _edit_references(miniature: Miniature, change: Callable[[dict], dict]) -> None:
    path = miniature.root / "label_to_img.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@_trap("celebamask_hq", "train", r"photographs without an index: 0 .*mapping\.txt")
def mapping_wrong(miniature: Miniature) -> None:
    """The mapping file lists a face that is not there, and not one that is."""

    def rename(rows: list[list[str]]) -> None:
        rows[0][0] = "7"

    _edit_mapping(miniature, rename)


@_trap("celebamask_hq", "train", r"stands twice.*mapping\.txt:3")
def mapping_repeats(miniature: Miniature) -> None:
    """The mapping file gives two faces one original."""

    def repeat(rows: list[list[str]]) -> None:
        rows[1][1] = rows[0][1]

    _edit_mapping(miniature, repeat)


def _edit_mapping(miniature: Miniature, change: Callable[[list[list[str]]], None]) -> None:
    """Change the rows below the mapping's first line in place."""
    path = miniature.root / "CelebA-HQ-to-CelebA-mapping.txt"
    first, *rows = (line.split() for line in path.read_text().splitlines())
    change(rows)
    path.write_text("".join(" ".join(row) + "\n" for row in [first, *rows]))


@_trap("celebamask_hq", "train", r"mask of 32x32, those before it of 64x64.*00000_nose\.png")
def part_of_another_size(miniature: Miniature) -> None:
    """One part of a face is smaller than the others."""
    path = _file(miniature, "nose")
    Image.open(path).resize((32, 32)).save(path)


@_trap("celebamask_hq", "train", r"masks in a wrong folder: 0/02000_")
def misplaced_parts(miniature: Miniature) -> None:
    """The parts of face 2000 lie in folder 0, as if folders ended with round numbers."""
    parts = miniature.root / "CelebAMask-HQ-mask-anno"
    for path in sorted(parts.glob("1/02000_*")):
        path.rename(parts / "0" / path.name)


@_trap("celebamask_hq", "train", r"do not fit, the card says 2 times larger.*image 00000")
def shrunken_photograph(miniature: Miniature) -> None:
    """A photograph was brought to the size of the masks."""
    path = _file(miniature, "image")
    Image.open(path).resize((64, 64)).save(path, quality=97)
