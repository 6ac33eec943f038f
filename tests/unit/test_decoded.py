# SPDX-License-Identifier: Apache-2.0
"""The decoded cache of training pairs: right, reused, and made again when it was altered."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sis.data.decoded import decode_pairs
from sis.data.pairs import PairSet


def test_the_cache_holds_the_pairs_in_order(tiny_pairs: Path, tmp_path: Path) -> None:
    pairs = PairSet.open(tiny_pairs / "val")
    data = decode_pairs(pairs, tmp_path)
    assert data.ids == pairs.ids and len(data) == len(pairs)
    for i, pair in enumerate(pairs):
        assert np.array_equal(data.images[i], pair.image)
        assert np.array_equal(data.instances[i], pair.instance)
        assert np.array_equal(data.labels[i], pairs.labels.channels(pair.label))


def test_a_second_use_reads_what_the_first_wrote(tiny_pairs: Path, tmp_path: Path) -> None:
    pairs = PairSet.open(tiny_pairs / "val")
    decode_pairs(pairs, tmp_path)
    written = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npy")}
    decode_pairs(pairs, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npy")} == written


def test_an_altered_cache_is_decoded_again(tiny_pairs: Path, tmp_path: Path) -> None:
    pairs = PairSet.open(tiny_pairs / "val")
    right = decode_pairs(pairs, tmp_path).images.copy()
    file = next(tmp_path.rglob("images.npy"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    assert np.array_equal(decode_pairs(pairs, tmp_path).images, right)
