# SPDX-License-Identifier: Apache-2.0
"""Single flipped bits in files of weights, in converted ones and in pins: all caught, whatever size and time say."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
import torch
from bit_flips import Flipper
from safetensors.torch import save_file

from evaluators.weights import WeightCard, WeightStore
from evaluators.weights_check import check_files, convert
from evaluators.weights_pins import read_pins, write_pins
from sis.errors import SisError

FLIPS = 1000


def _store(folder: Path, file: str, prefix: str | None = None, pin: str | None = None) -> WeightStore:
    card = WeightCard(name="net", file=file, url=None, bytes=None, sha256_prefix=prefix, licence="none", purpose="test")
    return WeightStore(folder, (card,), {} if pin is None else {"net": pin})


def _write(path: Path) -> str:
    weights = {f"layer{i}.weight": torch.randn(16, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)}
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=path.stem != "old")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _passed(store: WeightStore, flipper: Flipper, places: list[tuple[int, int]], check: bool) -> list[tuple[int, int]]:
    """The flips that `look` (what jobs use) or `check` did not see."""
    passed = []
    for position, bit in places:
        flipper.flip(position, bit)
        assert flipper.path.stat().st_mtime_ns == flipper.times.st_mtime_ns
        try:
            store.look("net")
            passed.append((position, bit))
        except SisError as error:
            assert flipper.path.name in str(error) and "\n" not in str(error)
        if check and [state.state for state in check_files(store)] != ["wrong"]:
            passed.append((position, bit))
        flipper.mend(position)
    assert store.look("net") is not None, "the mended file is good again"
    return passed


@pytest.mark.parametrize("known", ["8 digits", "64 digits", "pin"])
@pytest.mark.parametrize("file", ["net.pth", "old.pth", "net.safetensors", "converted"])
def test_a_thousand_flipped_bits_of_a_weight_file_are_all_caught(tmp_path: Path, file: str, known: str) -> None:
    name = "net.pth" if file == "converted" else file
    digest = _write(tmp_path / name)
    prefix = {"8 digits": digest[:8], "64 digits": digest, "pin": None}[known]
    store = _store(tmp_path, name, prefix, digest if known == "pin" else None)
    damaged = convert(store, "net") if file == "converted" else tmp_path / name
    flipper, rng = Flipper(damaged), random.Random(file + known)
    size = len(flipper.whole)
    assert size > 2000
    places = [(rng.randrange(size), rng.randrange(8)) for _ in range(FLIPS)]
    assert _passed(store, flipper, places, check=True) == []


def test_a_converted_file_guards_itself_where_nothing_else_is_known(tmp_path: Path) -> None:
    """Every bit of the header, the digest's own digits among them, and a thousand of the weights'."""
    _write(tmp_path / "net.pth")
    store = _store(tmp_path, "net.pth")
    flipper, rng = Flipper(convert(store, "net")), random.Random(1)
    (tmp_path / "net.pth").unlink()
    header = 8 + int.from_bytes(flipper.whole[:8], "little")
    places = [(position, bit) for position in range(header) for bit in range(8)]
    places += [(rng.randrange(header, len(flipper.whole)), rng.randrange(8)) for _ in range(FLIPS)]
    assert len(places) > 5000
    assert _passed(store, flipper, places, check=False) == []


def test_no_flipped_bit_of_the_pins_unpins_a_file(tmp_path: Path) -> None:
    """All of them: an invalid list, or a pin that the file no longer fits; never a file without its pin."""
    known = ["celeba", "drn-d-105", "net"]
    digest = _write(tmp_path / "net.pth")
    path = write_pins(tmp_path, {"celeba": digest, "drn-d-105": digest, "net": digest})
    flipper, harmless = Flipper(path), 0
    for position in range(len(flipper.whole)):
        for bit in range(8):
            flipper.flip(position, bit)
            try:
                pins = read_pins(tmp_path, known)
            except SisError:
                pins = None
            if pins is not None:
                assert set(pins) == set(known), (position, bit)
                wrong = [name for name in known if pins[name] != digest]
                harmless += not wrong
                for name in wrong:
                    with pytest.raises(SisError, match=r"pins\.yaml has "):
                        _store(tmp_path, "net.pth", pin=pins[name]).look("net")
            flipper.mend(position)
    assert harmless < 100
    assert read_pins(tmp_path, known) == dict.fromkeys(known, digest)
