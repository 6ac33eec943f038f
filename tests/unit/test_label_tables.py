# SPDX-License-Identifier: Apache-2.0
"""The shipped label tables and dataset cards say what the datasets' makers and the papers say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sis.config import files
from sis.config.cards import DatasetCard, Split
from sis.data.labels import LabelSpace
from sis.data.one_hot import FAMILIES, family_channels
from sis.errors import SisError

CONFIG = Path(__file__).parents[2] / "config"
#: Classes, channels, evaluated classes.
TABLES = {
    "cityscapes": (34, 35, 19),
    "cityscapes_train_ids": (19, 20, 19),
    "ade20k": (150, 151, 150),
    "coco_stuff": (182, 183, 182),
    "celebamask_hq": (19, 19, 19),
    "landscapes": (29, 29, 29),
}
#: cityscapesScripts: label id to train id.
TRAIN_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
             28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
DEAD = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
ANCHORS = {
    "cityscapes": {0: "unlabeled", 7: "road", 24: "person", 33: "bicycle"},
    "cityscapes_train_ids": {0: "road", 10: "sky", 18: "bicycle"},
    "ade20k": {0: "wall", 2: "sky", 12: "person", 89: "television", 149: "flag"},
    "coco_stuff": {0: "person", 2: "car", 12: "stop sign", 89: "toothbrush", 91: "banner", 150: "roof", 181: "wood"},
    "celebamask_hq": {0: "background", 1: "skin", 5: "r_eye", 13: "hair", 17: "neck", 18: "cloth"},
    "landscapes": {0: "mountain", 1: "sky", 3: "sea", 15: "boat", 28: "other"},
}


def names(space: LabelSpace) -> list[str]:
    return [c.name for c in space.classes]


@pytest.mark.parametrize("name", list(TABLES))
def test_a_table_has_as_many_classes_and_channels_as_its_dataset(name: str) -> None:
    space = files.label_space(name)
    assert (space.count, space.width, len(space.evaluated_ids)) == TABLES[name]
    assert {i: space.classes[i].name for i in ANCHORS[name]} == ANCHORS[name]
    assert len(set(names(space))) == space.count
    assert all((c.evaluator is None) == c.ignored for c in space.classes)


@pytest.mark.parametrize("name", list(TABLES))
def test_evaluated_classes_have_colours_of_their_own(name: str) -> None:
    space = files.label_space(name)
    seen: dict[tuple[int, ...], list[str]] = {}
    for i in space.evaluated_ids:
        seen.setdefault(tuple(space.classes[i].colour), []).append(space.classes[i].name)
    # The official palette of ADE20K gives one grey twice.
    official = [["road", "skyscraper"]] if name == "ade20k" else []
    assert [n for n in seen.values() if len(n) > 1] == official


@pytest.mark.parametrize(("name", "classes", "colour"), [
    ("cityscapes", "car", [0, 0, 142]), ("cityscapes", "dynamic", [111, 74, 0]), ("ade20k", "wall", [120, 120, 120]),
    ("ade20k", "flag", [92, 0, 255]), ("coco_stuff", "person", [128, 0, 0]), ("coco_stuff", "wood", [0, 224, 192]),
    ("celebamask_hq", "skin", [204, 0, 0]), ("celebamask_hq", "cloth", [0, 204, 0]),
])  # fmt: skip
def test_colours_are_the_official_ones(name: str, classes: str, colour: list[int]) -> None:
    space = files.label_space(name)
    assert space.classes[names(space).index(classes)].colour == colour


def test_cityscapes_is_judged_in_train_ids() -> None:
    space, train = files.label_space("cityscapes"), files.label_space("cityscapes_train_ids")
    assert {c.id: c.evaluator for c in space.classes if not c.ignored} == TRAIN_IDS
    judged = [space.classes[i] for i in space.evaluated_ids]
    assert [(c.name, c.colour) for c in judged] == [(c.name, c.colour) for c in train.classes]


@pytest.mark.parametrize("name", ["cityscapes_train_ids", "ade20k", "coco_stuff", "celebamask_hq", "landscapes"])
def test_other_tables_are_judged_in_their_own_ids(name: str) -> None:
    space = files.label_space(name)
    assert space.evaluated_ids == list(range(space.count))


def test_dead_ids_keep_their_channels() -> None:
    space = files.label_space("coco_stuff")
    assert [c.id for c in space.classes if c.dead] == DEAD
    assert [names(space)[i] for i in (11, 44, 70, 90)] == ["street sign", "plate", "door", "hair brush"]
    np.testing.assert_array_equal(space.channels(np.array([DEAD], np.uint8)), [DEAD])
    assert not any(c.dead for table in set(TABLES) - {"coco_stuff"} for c in files.label_space(table).classes)


@pytest.mark.parametrize(("name", "values", "ids"), [
    ("cityscapes", [0, 7, 33], [0, 7, 33]), ("cityscapes_train_ids", [0, 18, 255], [0, 18, 255]),
    ("ade20k", [0, 1, 150], [255, 0, 149]), ("coco_stuff", [0, 181, 255], [0, 181, 255]),
    ("celebamask_hq", [0, 18], [0, 18]), ("landscapes", [0, 28], [0, 28]),
])  # fmt: skip
def test_values_of_official_files_become_ids_and_back(name: str, values: list[int], ids: list[int]) -> None:
    space, wide = files.label_space(name), np.array([values], np.uint16)
    for stored in (wide.astype(np.uint8), wide):
        np.testing.assert_array_equal(space.from_file(stored), [ids])
    np.testing.assert_array_equal(space.to_file(space.from_file(wide)), [values])


@pytest.mark.parametrize(("name", "value", "known"), [
    # No official file of Cityscapes holds the void id; train ids in its place are the likely mistake.
    ("cityscapes", 255, r"0\.\.33 are"), ("cityscapes", 34, r"0\.\.33 are"), ("ade20k", 151, r"1\.\.150, 0 \(void\)"),
    ("ade20k", 255, r"1\.\.150, 0 \(void\)"), ("coco_stuff", 182, r"0\.\.181, 255 \(void\)"),
    ("celebamask_hq", 255, r"0\.\.18 are"), ("landscapes", 29, r"0\.\.28 are"), ("landscapes", 256, r"0\.\.28 are"),
])  # fmt: skip
def test_other_values_are_refused_with_the_known_ones(name: str, value: int, known: str) -> None:
    found = np.array([[1, value]], np.uint16)
    with pytest.raises(SisError, match=rf"outside the table '{name}': {value} \[x\.png\].*{known}"):
        files.label_space(name).from_file(found, where="x.png")


def test_only_faces_know_left_and_right() -> None:
    space = files.label_space("celebamask_hq")
    mirrored = [names(space)[i] for i in space.mirror_channels()]
    exchange = {"l": "r", "r": "l"}
    paired = {f"{side}_{part}" for side in "lr" for part in ("eye", "brow", "ear")}
    assert mirrored == [exchange[n[0]] + n[1:] if n in paired else n for n in names(space)]
    for name in set(TABLES) - {"celebamask_hq"}:
        table = files.label_space(name)
        np.testing.assert_array_equal(table.mirror_channels(), np.arange(table.width))


@pytest.mark.parametrize("layout", sorted(set(FAMILIES.values())))
@pytest.mark.parametrize("name", ["ade20k", "coco_stuff"])
def test_every_family_keeps_every_channel(name: str, layout: str) -> None:
    space = files.label_space(name)
    assert sorted(family_channels(space, layout)) == list(range(space.width))


@pytest.mark.parametrize("family", ["spade", "sdm", "iidm"])
def test_spade_and_its_forks_have_our_order(family: str) -> None:
    for name in TABLES:
        space = files.label_space(name)
        np.testing.assert_array_equal(family_channels(space, FAMILIES[family]), np.arange(space.width))


def test_oasis_puts_unlabelled_pixels_first() -> None:
    ade, coco = files.label_space("ade20k"), files.label_space("coco_stuff")
    # OASIS one-hot encodes the values of ADE20K's files as they are: its channel is our file value.
    ids = np.arange(150, dtype=np.uint8)
    channels = family_channels(ade, FAMILIES["oasis"])
    np.testing.assert_array_equal(channels[:150], ade.to_file(ids))
    assert channels[150] == 0
    np.testing.assert_array_equal(family_channels(coco, "unknown_first"), [*range(1, 183), 0])


def test_scgan_puts_the_background_of_faces_last() -> None:
    channels = family_channels(files.label_space("celebamask_hq"), FAMILIES["scgan_celeba"])
    np.testing.assert_array_equal(channels, [18, *range(18)])
    with_void = family_channels(files.label_space("cityscapes_train_ids"), "background_last")
    np.testing.assert_array_equal(with_void, [18, *range(18), 19])


def test_a_channel_order_that_cannot_be_is_refused() -> None:
    with pytest.raises(SisError, match="'celebamask_hq' has no unlabelled pixels, layout unknown_first needs them"):
        family_channels(files.label_space("celebamask_hq"), "unknown_first")
    with pytest.raises(SisError, match=r"unknown one-hot layout 'unknown_frist'.*did you mean 'unknown_first'"):
        family_channels(files.label_space("ade20k"), "unknown_frist")


#: Train and val pairs, (height, width), policy, fidelity, instances, edges.
CARDS: dict[str, tuple[int, int, list[int], str, str, str, bool]] = {
    "cityscapes": (2975, 500, [256, 512], "sdm_aspect", "paper", "file", True),
    "cityscapes_release": (2975, 500, [256, 512], "sdm_aspect", "release", "file", True),
    "cityscapes_512": (2975, 500, [512, 1024], "scp", "paper", "none", False),
    "cityscapes_1024": (2975, 500, [1024, 2048], "exact", "paper", "none", False),
    "cityscapes_512_release": (3475, 3475, [512, 1024], "scp", "release", "none", False),
    "ade20k": (20210, 2000, [256, 256], "sdm", "paper", "none", False),
    "ade20k_512": (20210, 2000, [512, 512], "scp", "paper", "none", False),
    "ade20k_512_release": (20210, 2000, [512, 512], "scp", "release", "none", False),
    "coco_stuff": (118287, 5000, [256, 256], "sdm", "paper", "none", False),
    "coco_stuff_inst": (118287, 5000, [256, 256], "sdm", "paper", "file", True),
    "coco_stuff_384": (118287, 5000, [384, 512], "scp", "paper", "none", False),
    "coco_stuff_384_release": (118287, 5000, [384, 512], "scp", "release", "none", False),
    "celebamask_hq": (28000, 2000, [256, 256], "sdm", "paper", "label", True),
    "landscapes": (10000, 1000, [384, 512], "exact", "paper", "none", False),
    "landscapes_256": (10000, 1000, [256, 256], "sdm", "paper", "none", False),
    "cityscapes_mini": (8, 4, [32, 64], "sdm_aspect", "paper", "file", True),
    "ade20k_mini": (8, 4, [32, 32], "sdm", "paper", "none", False),
    "coco_stuff_mini": (8, 4, [32, 32], "sdm", "paper", "none", False),
    "celebamask_hq_mini": (8, 4, [32, 32], "sdm", "paper", "label", True),
    "landscapes_mini": (8, 4, [48, 64], "exact", "paper", "none", False),
}


def shipped() -> list[str]:
    return sorted(p.stem for p in (CONFIG / "datasets").glob("*.yaml") if not p.stem.startswith("scenes"))


def raw(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIG / "datasets" / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", shipped())
def test_a_card_has_the_official_counts_and_the_papers_settings(name: str) -> None:
    card = files.dataset_card(name)
    found = (card.splits["train"].count, card.splits["val"].count, card.size, card.prepare.policy,
             card.prepare.fidelity, card.files.instances, card.edges)  # fmt: skip
    assert found == CARDS[name]


@pytest.mark.parametrize("name", shipped())
def test_the_authors_defects_carry_the_name_release(name: str) -> None:
    card = files.dataset_card(name)
    assert (card.prepare.fidelity == "release") == name.endswith("_release")
    assert (card.prepare.void_becomes is not None) == (name == "coco_stuff_384_release")
    mixed = [s for s in card.splits.values() if isinstance(s.label, list)]
    assert bool(mixed) == (name == "cityscapes_512_release")


@pytest.mark.parametrize("name", [n for n in shipped() if "like" in raw(n)])
def test_a_variant_gives_only_what_differs(name: str) -> None:
    own = raw(name)
    assert not repeated(own, files.dataset_card(own["like"]).model_dump(exclude_unset=True))


def repeated(own: dict[str, Any], base: dict[str, Any], at: str = "") -> list[str]:
    """The keys of `own` that say again what `base` says already."""
    found = []
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            found += repeated(value, base[key], f"{at}{key}.")
        elif key in base and base[key] == value:
            found.append(f"{at}{key}")
    return found


@pytest.mark.parametrize("name", [n for n in shipped() if n.endswith("_mini")])
def test_a_miniature_has_all_the_ways_of_its_dataset(name: str) -> None:
    card, whole = files.dataset_card(name), files.dataset_card(name.removesuffix("_mini"))
    assert (card.root, card.subset) == (f"mini/{whole.name}", "mini") and card.shown.endswith("[subset: mini]")
    # What differs is a size, a place or words; and a few small pictures ask a cluster for less.
    changed = {"name", "like", "title", "description", "root", "size", "splits", "subset", "licence", "source"}
    changed |= {"cluster"}
    assert card.model_dump(exclude=changed) == whole.model_dump(exclude=changed)
    for split, facts in whole.splits.items():
        assert card.splits[split].model_dump(exclude={"count"}) == facts.model_dump(exclude={"count"})


def patterns(split: Split, kind: str) -> list[str]:
    given = getattr(split, kind)
    return [given] if isinstance(given, str) else given


@pytest.mark.parametrize("name", shipped())
def test_every_split_names_the_files_that_its_card_needs(name: str) -> None:
    card = files.dataset_card(name)
    for split in card.splits.values():
        needed = {"label"} | ({"image"} if split.photographs else set())
        needed |= {"instance"} if card.files.instances == "file" else set()
        if card.layout == "folder":
            assert all("{id}" in p for kind in needed for p in patterns(split, kind))
            assert split.photographs or (not split.image and split.references)
        else:
            assert not any(p for kind in ("image", "label", "instance") for p in patterns(split, kind))


@pytest.mark.parametrize("name", ["cityscapes", "ade20k", "coco_stuff", "celebamask_hq", "landscapes"])
def test_every_dataset_has_a_whole_miniature_experiment(name: str) -> None:
    experiment = files.experiment(f"mini_{name}")
    assert {d: use.protocol for d, use in experiment.datasets.items()} == {f"{name}_mini": f"mini_{name}"}
    controls = {"palette", "class_mean"} | (set() if name == "landscapes" else {"real", "mismatched_real"})
    assert {run.method for run in experiment.runs.values()} == {"sdm"} | controls


def test_licences_are_those_of_the_pictures() -> None:
    drawn = [n for n in shipped() if n.endswith("_mini")]
    assert {files.dataset_card(n).licence for n in drawn} == {"Apache-2.0"}
    for name in ("cityscapes_512_release", "celebamask_hq", "ade20k_512"):
        assert "non-commercial" in files.dataset_card(name).licence


def variant(project: Path, name: str, **own: Any) -> DatasetCard:
    """A card of that name beside the shipped ones."""
    path = project / "config" / "datasets" / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "title": "T", **own}))
    return files.dataset_card(name)


def test_a_card_fills_in_what_it_does_not_say(project_copy: Path) -> None:
    base = files.dataset_card("cityscapes_512")
    card = variant(project_copy, "wide", like="cityscapes_512", prepare={"policy": "exact"}, size=[64, 128])
    assert (card.prepare.policy, card.size, card.title, card.root) == ("exact", [64, 128], "T", "cityscapes")
    assert (card.splits, card.files, card.labels, card.licence) == (base.splits, base.files, base.labels, base.licence)
    elsewhere = variant(project_copy, "elsewhere", like="cityscapes", root="other")
    assert (elsewhere.root, elsewhere.edges) == ("other", True)


def test_cards_that_are_like_each_other_are_refused(project_copy: Path) -> None:
    with pytest.raises(SisError, match="no dataset called 'two'"):
        variant(project_copy, "one", like="two")
    with pytest.raises(SisError, match=r"this card is like itself \[.*two\.yaml\]"):
        variant(project_copy, "two", like="one")
    with pytest.raises(SisError, match="this card is like itself"):
        variant(project_copy, "alone", like="alone")
    with pytest.raises(SisError, match=r"no dataset called 'cityscape'.*did you mean 'cityscapes'"):
        variant(project_copy, "near", like="cityscape")


def test_a_part_of_a_dataset_says_so_in_its_name(project_copy: Path) -> None:
    part = {"like": "cityscapes", "splits": {"val": {"count": 100}}}
    with pytest.raises(SisError, match=r"split val has 100 pairs, cityscapes has 500 .*give `subset:`"):
        variant(project_copy, "cityscapes_few", **part)
    with pytest.raises(SisError, match="call it cityscapes_few_part"):
        variant(project_copy, "cityscapes_few", subset="part", **part)
    card = variant(project_copy, "cityscapes_few", subset="few", **part)
    assert (card.splits["val"].count, card.splits["train"].count, card.shown) == (100, 2975, "T [subset: few]")


def test_a_variant_of_a_part_is_a_part(project_copy: Path) -> None:
    with pytest.raises(SisError, match=r"ade20k_mini is a part \(mini\) .*give `subset:`"):
        variant(project_copy, "ade20k_small", like="ade20k_mini", size=[16, 16])
    assert variant(project_copy, "small_mini", like="ade20k_mini", subset="mini", size=[16, 16]).size == [16, 16]


@pytest.mark.parametrize(("own", "reason"), [
    ({"prepare": {"void_becomes": 150}}, "needs `fidelity: release`"),
    ({"splits": {"train": {"photographs": False}}}, "train must have photographs"),
    ({"splits": {"val": {"label": "labels/val.png"}}}, "must contain {id} once"),
    ({"splits": {"val": {"label": "{id}/label.png"}}}, "in the file's name"),
    ({"splits": {"val": {"label": "../{id}.png"}}}, "must stay inside the dataset's root"),
    ({"splits": {"val": {"image": ["/data/{id}.png"]}}}, "must stay inside the dataset's root"),
    ({"splits": {"val": {"image": "**/{id}.png"}}}, "must stay inside the dataset's root"),
])  # fmt: skip
def test_a_card_that_cannot_be_meant_is_refused(project_copy: Path, own: dict[str, Any], reason: str) -> None:
    with pytest.raises(SisError) as caught:
        variant(project_copy, "other", like="ade20k", **own)
    assert reason in str(caught.value)
