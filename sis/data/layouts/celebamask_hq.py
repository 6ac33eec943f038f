# SPDX-License-Identifier: Apache-2.0
"""Layout of CelebAMask-HQ: one mask a part of the face, and a split by the order of the original CelebA.

Files (switchablenorms/CelebAMask-HQ @3f6c45d): `CelebA-HQ-img/<idx>.jpg`, `CelebAMask-HQ-mask-anno/<idx // 2000>/
<idx, five digits>_<part>.png`, absent where the part is, and `CelebA-HQ-to-CelebA-mapping.txt`. The split val is the
part with the highest original indices, which CelebA tests on; option `rule: index` takes CelebA-HQ's own instead.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from sis.config.cards import DatasetCard
from sis.data.images import pixel_sha256
from sis.data.layouts import Entry, checked_options
from sis.data.layouts.folder import label_table
from sis.data.pair import Origin, Pair
from sis.data.patterns import file_below, matches
from sis.data.raw import read_mask, read_photograph
from sis.errors import SisError, did_you_mean, first_of

OPTIONS = {"rule": str}
RULES = ("original_index", "index")
MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
#: Words at the end of a mask's name; their classes are 1, 2, 3, ..., and a later part covers an earlier one.
PARTS = (
    "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip", "l_lip", "hair",
    "hat", "ear_r", "neck_l", "neck", "cloth",
)  # fmt: skip

_HEADER = ["idx", "orig_idx", "orig_file"]
_NUMBER, _MASK = re.compile(r"0|[1-9][0-9]{0,8}"), re.compile(r"([0-9]{5})_(.+)")
_PER_FOLDER = 2000


def entries(card: DatasetCard, split: str, root: Path) -> list[Entry]:
    """The pairs of a split, sorted by id (five digits), none of them opened.

    Raises SisError for a mapping that does not fit the photographs, for masks of unknown parts, in a wrong folder or
    without a photograph, and for photographs without any mask.
    """
    checked_options(card, OPTIONS)
    rule = str(card.options.get("rule", RULES[0]))
    if rule not in RULES:
        raise SisError(f"unknown rule {rule!r}", where=card.name, fix=did_you_mean(rule, RULES))
    if set(card.splits) != {"train", "val"}:
        raise SisError("this layout has the splits train and val", where=card.name)
    original = _original_indices(file_below(root, MAPPING))
    photographs = _photographs(root)
    _refuse(sorted(set(photographs) - set(original)), "photographs without an index", root / MAPPING)
    _refuse(sorted(set(original) - set(photographs)), "indices without a photograph", root / MAPPING)
    masks = _masks(root)
    _refuse(sorted(set(masks) - set(photographs)), "numbers of masks without a photograph", root)
    _refuse(sorted(set(photographs) - set(masks)), "photographs without any mask", root)
    order = sorted(original, key=lambda i: i if rule == "index" else original[i])
    count = card.splits["val"].count
    if count >= len(order):
        fault = f"{len(order):,} photographs in all, {count:,} of them for val: none is left for train"
        raise SisError(fault, where=root, fix="a part of the dataset is a card of its own, with `subset:`")
    chosen = order[-count:] if split == "val" else order[:-count]
    return [Entry(f"{i:05d}", split, {"photograph": photographs[i], **masks[i]}) for i in sorted(chosen)]


def read(card: DatasetCard, entry: Entry) -> Pair:
    """One pair at its raw size, the masks painted over one another. Raises SisError naming the file that is unfit."""
    path = entry.files["photograph"]
    photo, mode = read_photograph(path, card.files.exif)
    values: np.ndarray | None = None
    for value, part in enumerate(PARTS, 1):
        if part not in entry.files:
            continue
        mask = read_mask(entry.files[part])
        values = np.zeros(mask.shape, np.uint8) if values is None else values
        if mask.shape != values.shape:
            sizes = f"{mask.shape[1]}x{mask.shape[0]}, those before it of {values.shape[1]}x{values.shape[0]}"
            raise SisError(f"mask of {sizes}", where=entry.files[part], fix="the masks of a photograph have one size")
        values[mask] = value
    if values is None:
        raise SisError("photograph without any mask", where=path)
    origin = Origin(photo.shape[1], photo.shape[0], mode, pixel_sha256(photo))
    return Pair(entry.image_id, photo, label_table(card).from_file(values, where=path), origin=origin)


def _original_indices(path: Path) -> dict[int, int]:
    """CelebA's index of each CelebA-HQ index, from the mapping file."""
    try:
        lines = path.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SisError(f"cannot read the mapping: {error}", where=path) from error
    rows = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows or rows[0][1] != _HEADER:
        raise SisError(f"the mapping must begin with the line {' '.join(_HEADER)!r}", where=path)
    found: dict[int, int] = {}
    originals: set[int] = set()
    for number, row in rows[1:]:
        if len(row) != len(_HEADER) or not all(_NUMBER.fullmatch(n) for n in row[:2]):
            raise SisError("expected two whole numbers and a file name", where=f"{path}:{number}")
        index, original = int(row[0]), int(row[1])
        if index in found or original in originals:
            raise SisError(f"index {index} or original index {original} stands twice", where=f"{path}:{number}")
        found[index] = original
        originals.add(original)
    return found


def _photographs(root: Path) -> dict[int, Path]:
    found = matches(root, "CelebA-HQ-img/{id}.jpg")
    strange = [path.name for name, path in found.items() if not _NUMBER.fullmatch(name)]
    _refuse(strange, "photographs without a number for a name", root)
    return {int(name): path for name, path in found.items()}


def _masks(root: Path) -> dict[int, dict[str, Path]]:
    """The masks of each number, by part."""
    found: dict[int, dict[str, Path]] = {}
    unknown, misplaced = [], []
    for name, path in matches(root, "CelebAMask-HQ-mask-anno/*/{id}.png").items():
        fits = _MASK.fullmatch(name)
        if fits is None or fits[2] not in PARTS:
            unknown.append(path.name)
            continue
        index = int(fits[1])
        if path.parent.name != str(index // _PER_FOLDER):
            misplaced.append(f"{path.parent.name}/{path.name}")
        found.setdefault(index, {})[fits[2]] = path
    _refuse(unknown, "masks that are not called <five digits>_<part>.png", root, f"parts: {', '.join(PARTS)}")
    _refuse(misplaced, "masks in a wrong folder", root, f"folder = number // {_PER_FOLDER}")
    return found


def _refuse(names: list, what: str, where: Path, fix: str = "") -> None:
    if names:
        raise SisError(f"{len(names):,} {what}: {first_of(names)}", where=where, fix=fix)
