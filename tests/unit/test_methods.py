# SPDX-License-Identifier: Apache-2.0
"""Methods: the controls do what they say, and discovery reads a file without importing it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sis.data.manifest import read_manifest
from sis.data.pairs import PairSet
from sis.data.tensors import load_tensors
from sis.errors import SisError
from sis.methods.build import build_method
from sis.methods.discovery import method_class, method_info, methods
from sis.plan import RunSpec
from sis.project.scaffold import scaffold
from sis.sampling.python_method import batch_maker
from sis.training.train import compute_prior

Paint = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def paint(tiny_pairs: Path, tiny_spec: Callable[..., RunSpec]) -> Paint:
    """`paint(method, prior=None, **changes)`: the val images of a method, in the order of the ids."""

    def make(method: str, prior: Any = None, **changes: Any) -> NDArray[np.uint8]:
        pairs = PairSet.open(tiny_pairs / "val")
        built = build_method(tiny_spec(method, **changes), "cpu", pairs, prior)
        return batch_maker(built, pairs, len(pairs), 0, "cpu")([(i, 0) for i in pairs.ids])

    return make


@pytest.fixture
def val(tiny_pairs: Path) -> PairSet:
    return PairSet.open(tiny_pairs / "val")


def test_real_shows_the_photographs(paint: Paint, val: PairSet) -> None:
    np.testing.assert_array_equal(paint("real"), np.stack([p.image for p in val]))


def test_mismatched_real_shows_every_photograph_once_and_none_for_its_own_map(paint: Paint, val: PairSet) -> None:
    real = [p.image.tobytes() for p in val]
    shown = [i.tobytes() for i in paint("mismatched_real")]
    assert sorted(shown) == sorted(real)
    assert not any(a == b for a, b in zip(shown, real, strict=True))


def test_palette_shows_the_legend_and_black_for_void(paint: Paint, val: PairSet) -> None:
    expected = np.stack([val.labels.palette()[p.label] for p in val])
    np.testing.assert_array_equal(paint("palette"), expected)
    void = np.stack([p.label for p in val]) == val.labels.void
    assert void.any() and not expected[void].any()


def test_blurred_real_keeps_the_mean_and_loses_detail(paint: Paint, val: PairSet) -> None:
    real, blurred = np.stack([p.image for p in val]).astype(float), paint("blurred_real").astype(float)
    assert abs(real.mean() - blurred.mean()) < 1.5
    roughness = [np.abs(np.diff(x, axis=2)).mean() for x in (real, blurred)]
    assert roughness[1] < 0.8 * roughness[0]
    stronger = paint("blurred_real", sample={"radius": 0.2}).astype(float)
    assert np.abs(np.diff(stronger, axis=2)).mean() < 0.5 * roughness[1]


def test_class_mean_shows_the_mean_training_colour_of_each_class(
    paint: Paint, val: PairSet, tiny_pairs: Path, tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    path = tmp_path / "prior.safetensors"
    compute_prior(tiny_spec("class_mean"), tiny_pairs / "train", path, "cpu")
    assert read_manifest(path, "prior").meta["count"] == 48
    train = PairSet.open(tiny_pairs / "train")
    images = np.stack([p.image for p in train]).reshape(-1, 3).astype(float)
    labels = np.stack([p.label for p in train]).reshape(-1)
    colours = np.zeros((256, 3))
    for label in np.unique(labels):
        colours[label] = images[labels == label].mean(0)
    found = paint("class_mean", prior=load_tensors(path, "prior")[0]).astype(float)
    expected = np.stack([colours[p.label] for p in val])
    assert np.abs(found - expected).max() <= 0.5 + 1e-9


def test_all_four_kinds_are_found_with_what_the_workflow_must_know() -> None:
    found = methods()
    assert {m.kind for m in found.values()} == {"python", "command", "images", "rule"}
    assert found["sdm"].trains and not found["sdm"].has_prior and found["sdm"].role == "contestant"
    assert found["class_mean"].has_prior and found["class_mean"].role == "control"
    assert found["real"].deterministic and not found["sdm"].deterministic
    assert "contract" not in found and "discovery" not in found


@pytest.mark.parametrize("name", [n for n, m in methods().items() if m.kind == "python"])
def test_what_discovery_reads_is_what_the_class_says(name: str) -> None:
    from sis.methods.contract import Method

    info, chosen = method_info(name), method_class(name)
    assert (info.role, info.deterministic, info.version) == (chosen.ROLE, chosen.DETERMINISTIC, chosen.VERSION)
    assert info.trains == (chosen.fit is not Method.fit)
    assert info.has_prior == (chosen.prior is not Method.prior)


def test_an_unknown_method_is_answered_with_the_nearest() -> None:
    with pytest.raises(SisError, match=r"no method called 'palet'.*did you mean 'palette'"):
        method_info("palet")
    with pytest.raises(SisError, match="of kind command, not python"):
        method_class("segment_noise")


def test_a_card_of_kind_python_without_its_file_is_refused(project_copy: Path) -> None:
    (project_copy / "config" / "methods" / "ghost.yaml").write_text("kind: python\ntitle: Ghost\n")
    with pytest.raises(SisError, match=r"needs its file.*write sis/methods/ghost\.py"):
        methods()


def test_a_python_file_is_read_and_not_run(project_copy: Path) -> None:
    text = '"""Trap: x."""\nraise SystemExit("imported")\n\n\nclass Trap:\n    ROLE = "control"\n    VERSION = 3\n'
    (project_copy / "sis" / "methods" / "trap.py").write_text(text)
    info = methods()["trap"]
    assert (info.title, info.role, info.version, info.trains) == ("Trap", "control", 3, False)


def test_sdm_draws_other_samples_from_other_seeds_and_guidance(paint: Paint) -> None:
    torch.manual_seed(0)
    one = paint("sdm")
    assert one.shape == (16, 32, 32, 3) and one.dtype == np.uint8
    np.testing.assert_array_equal(one, paint("sdm"))
    assert not np.array_equal(one, paint("sdm", sample={"steps": 3, "sampler": "ddim"}))


@pytest.mark.parametrize("kind", ["python", "command", "images", "rule"])
def test_a_new_method_is_discovered_at_once(project_copy: Path, kind: str) -> None:
    written = scaffold("method", "my_method", kind)
    assert [p.is_file() for p in written] == [True]
    info = methods()["my_method"]
    assert (info.kind, info.title) == (kind, "My method")


def test_a_new_dataset_card_loads(project_copy: Path) -> None:
    from sis.config.files import dataset_card

    scaffold("dataset", "my_pairs")
    card = dataset_card("my_pairs")
    assert (card.layout, card.splits["val"].count, card.prepare.policy) == ("folder", 2, "sdm")


def test_a_new_file_never_overwrites_another(project_copy: Path) -> None:
    with pytest.raises(SisError, match="exists already"):
        scaffold("method", "palette")


@pytest.mark.parametrize("name", ["../x", "A", "a-b", "1a", "", "a b", "a;b", "x" * 42])
def test_bad_names_of_new_files_are_refused(project_copy: Path, name: str) -> None:
    with pytest.raises(SisError, match="no good name"):
        scaffold("method", name)
