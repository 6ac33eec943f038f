# SPDX-License-Identifier: Apache-2.0
"""Arrays of a case on their way through the real thing: raw files, the dataset's card, `prepare`, a shard's row."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from numpy.typing import NDArray

from sis.config.cards import DatasetCard, Split
from sis.config.files import dataset_card
from sis.data.images import encode_png
from sis.data.pair import Pair
from sis.data.pairs import decode_row
from sis.data.prepare import Preparer, checked_entries
from sis.data.resize import Size

#: What a raw file holds, and its folder in the plain layout of files.
FOLDERS = {"photograph": "images", "label": "labels", "instance": "instances"}


def card_of_one_pair(name: str, size: Size, split: str, raw: dict[str, NDArray], edges: bool) -> DatasetCard:
    """A dataset's own card, for one pair in plain folders, at the case's size."""
    card = dataset_card(name)
    source = "file" if "instance" in raw else card.files.instances if edges else "none"
    scale = max(1, len(raw.get("photograph", raw["label"])) // len(raw["label"]))
    changes = {
        "layout": "folder",
        "options": {},
        "size": list(size),
        "edges": edges,
        "splits": {split: Split(count=1, photographs="photograph" in raw)},
        "files": card.files.model_copy(update={"instances": source, "label_scale": scale}),
    }
    return card.model_copy(update=changes)


def prepared(card: DatasetCard, raw: dict[str, NDArray]) -> tuple[Preparer, Pair]:
    """Write the raw arrays as files and prepare them; the pair is what its shard's row gives back."""
    (split,) = card.splits
    with TemporaryDirectory() as root:
        for kind, array in raw.items():
            path = Path(root, split, FOLDERS[kind], "golden.png")
            path.parent.mkdir(parents=True)
            path.write_bytes(encode_png(array))
        preparer = Preparer(card, split)
        (entry,) = checked_entries(card, split, Path(root))
        row, _ = preparer.row(entry)
    return preparer, decode_row(row, "golden case")
