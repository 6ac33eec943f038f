# SPDX-License-Identifier: Apache-2.0
"""The list of weights: complete, true to the networks, read strictly, and what its documentation says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluators.network import Source
from evaluators.weights import WeightCard, WeightStore, read_catalogue
from evaluators.weights_cli import markdown
from sis.config.strict_yaml import load_yaml
from sis.errors import SisError

ROOT = Path(__file__).parents[2]
LISTED = ROOT / "config" / "weights.yaml"
CARDS = read_catalogue(LISTED)
VALID = "- {name: a, file: a.pth, url: null, bytes: null, sha256_prefix: null, licence: MIT, purpose: test}\n"


def _file(card: WeightCard) -> str:
    return card.published_as or card.file


def test_every_judge_of_the_papers_is_listed() -> None:
    names = {c.name for c in CARDS}
    assert names >= {"drn-d-105", "csail-encoder", "csail-decoder", "deeplabv2-coco-stuff", "face-unet", "nima"}
    assert names >= {"segformer-landscapes", "inception-fid", "dinov2-small", "dinov2-base", "dinov2-large"}
    assert names >= {f"lpips-{net}" for net in ("alex", "vgg", "squeeze")}


def test_hashes_that_stand_in_file_names_are_listed_and_no_others() -> None:
    hashed = {c.name: c.sha256_prefix for c in CARDS if c.sha256_prefix}
    assert set(hashed) == {"inception-fid", "lpips-alex", "lpips-vgg", "lpips-squeeze"}
    for card in CARDS:
        assert bool(re.search(r"-[0-9a-f]{8}\.pth$", card.file)) == (card.name in hashed)
        assert card.sha256_prefix is None or f"-{card.sha256_prefix}.pth" in card.file


def test_a_direct_link_ends_in_the_published_name() -> None:
    for card in CARDS:
        last = (card.url or "/").rsplit("/", 1)[1]
        assert "." not in last or last in (_file(card), "v1.0"), card.name
        assert card.url or card.fetch, f"{card.name}: nobody says where to get it"


def test_every_column_and_size_is_stated() -> None:
    assert all(card.columns for card in CARDS)
    assert [c.name for c in CARDS if c.megabytes is None] == ["segformer-landscapes"]


def _slowly(card: WeightCard) -> Any:
    """DINOv2 comes with transformers, whose import takes seconds."""
    marks = [pytest.mark.slow] if card.name.startswith("dinov2") else []
    return pytest.param(card, id=card.name, marks=marks)


@pytest.mark.parametrize("card", [_slowly(c) for c in CARDS if c.fits])
def test_the_network_of_a_card_exists_and_takes_its_options(card: WeightCard) -> None:
    assert card.fits is not None
    folder, _, stem = card.fits.network.partition("/")
    if folder == "lpips":
        assert card.name == f"lpips-{stem}"
        return
    if importlib.util.find_spec(f"evaluators.{folder}.{stem}") is None:
        pytest.skip(f"{card.fits.network} is not part of this release")
    module = importlib.import_module(f"evaluators.{folder}.{stem}")
    files = [Path("no-such-file.pth")] * len(card.fits.files or [card.name])
    with torch.device("meta"), pytest.raises(SisError, match=r"no such file.*no-such-file\.pth"):
        module.load(card.fits.options, Source(files))


@pytest.mark.parametrize("path", sorted((ROOT / "config/segmenters").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_presets_of_segmenters_name_listed_files_of_their_network(path: Path) -> None:
    data, _ = load_yaml(path)
    cards = {c.name: c for c in CARDS}
    for name in data["weights"]:
        fits = cards[name].fits
        assert fits is None or (fits.network, fits.files or [name]) == (
            f"segmenters/{data['network']}",
            data["weights"],
        )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: b\n", "must be a YAML list"),
        ("- 3\n", "entry 1: .*yaml:1"),
        ("- {name: x, fil: y}\n", r"entry 1 \(x\): unknown key 'fil'; did you mean 'file'.*yaml:1"),
        (VALID + "- name: b\n  file: b.pth\n  url: ftp://x\n", r"entry 2 \(b\): url: .*yaml:4"),
        (VALID + VALID.replace("a.pth", "../a.pth").replace("name: a", "name: b"), r"entry 2 \(b\): file: .*yaml:2"),
        (VALID + VALID.replace("a.pth", "..").replace("name: a", "name: b"), r"entry 2 \(b\): file: "),
        (VALID.replace("sha256_prefix: null", "sha256_prefix: XYZ"), r"entry 1 \(a\): sha256_prefix"),
        (VALID.replace("sha256_prefix: null", "sha256_prefix: 12345678"), r"sha256_prefix.*12345678 \(int\)"),
        (VALID.replace("bytes: null", "bytes: 0"), r"entry 1 \(a\): bytes: .*found 0"),
        (VALID.replace("licence: MIT, ", ""), r"entry 1 \(a\): missing key 'licence'"),
        (VALID.replace("purpose: test", "purpose: test, fits: {network: nets/x}"), r"fits\.network: "),
        (VALID.replace("purpose: test", "purpose: test, fits: {network: features/x, files: [b]}"), "names 'b'"),
        (VALID + VALID, r"entry 2 \(a\): the name 'a' is listed twice.*yaml:2"),
        (VALID + VALID.replace("name: a", "name: b"), r"entry 2 \(b\): the file 'a\.pth' is listed twice.*yaml:2"),
        (VALID + "- {name: b, name: c}\n", "duplicate key 'name'.*yaml:2"),
        ("- {name: a\n", r"not valid YAML.*yaml:"),
    ],
)
def test_an_invalid_list_names_entry_and_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "weights.yaml").write_text(text)
    with pytest.raises(SisError, match=words) as caught:
        WeightStore.open(tmp_path, tmp_path / "weights.yaml")
    assert "\n" not in str(caught.value)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(SisError, match=r"no such configuration file.*weights\.yaml"):
        WeightStore.open(tmp_path, tmp_path / "weights.yaml")


def test_the_page_has_the_tables_that_the_list_gives() -> None:
    page = (ROOT / "docs" / "weights.md").read_text()
    for table in markdown(CARDS).strip().split("\n\n"):
        assert table in page, "run: sis weights list --markdown, and put both tables into docs/weights.md"
