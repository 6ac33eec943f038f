# SPDX-License-Identifier: Apache-2.0
"""DINOv2 features from a tiny network of the same kind."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evaluators.features import dinov2
from evaluators.network import Source, fill_seeded
from sis.errors import SisError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 20, 33, 3)).astype(np.uint8)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variant that takes no time: width 12, 2 layers, 3 heads, positions for 28 pixels."""
    pytest.importorskip("transformers")
    monkeypatch.setitem(dinov2.VARIANTS, "tiny14", (12, 2, 3))
    monkeypatch.setattr(dinov2, "_TRAINED_SIDE", 28)


@pytest.mark.usefixtures("tiny")
def test_features_are_the_normed_class_token_of_the_prepared_image() -> None:
    from evaluators.resizers import resize

    extractor = dinov2.load({"variant": "tiny14", "size": 42}, Source())
    found = extractor.features(IMAGES)
    assert found.shape == (3, extractor.dims) == (3, 12) and found.dtype == np.float32
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # of ImageNet
    x = (resize(IMAGES, "clean", 42).numpy() / 255 - mean[:, None, None]) / deviation[:, None, None]
    with torch.inference_mode():
        tokens = extractor.network(pixel_values=torch.from_numpy(x).float()).last_hidden_state
    np.testing.assert_allclose(found, tokens[:, 0].numpy(), atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.usefixtures("tiny")
def test_features_do_not_depend_on_the_batch() -> None:
    extractor = dinov2.load({"variant": "tiny14", "size": 28}, Source())
    alone = np.concatenate([extractor.features(IMAGES[i : i + 1]) for i in (2, 0, 1)])
    np.testing.assert_allclose(extractor.features(IMAGES)[[2, 0, 1]], alone, atol=1e-5)


@pytest.mark.usefixtures("tiny")
def test_weights_come_from_a_local_file_by_name(tmp_path: Path) -> None:
    network = dinov2.build(12, 2, 3, 28)
    fill_seeded(network, seed=1)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    options = {"variant": "tiny14", "size": 28}
    found = dinov2.load(options, Source([tmp_path / "model.safetensors"])).features(IMAGES)
    assert np.abs(found - dinov2.load(options, Source()).features(IMAGES)).max() > 1e-3
    weights = network.state_dict()
    del weights["layernorm.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(SisError, match=r"1 missing: layernorm\.bias"):
        dinov2.load(options, Source([tmp_path / "model.safetensors"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "vitl"}, "unknown variant 'vitl' .*did you mean 'vitl14'"),
        ({"size": 225}, "size must be a multiple of 14, found 225"),
        ({"resize": "bicubic"}, "unknown resize 'bicubic'"),
        ({"dims": 3}, "unknown option 'dims'"),
    ],
)
def test_senseless_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(SisError, match=message):
        dinov2.load(options, Source())


def test_without_transformers_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SisError, match=r"DINOv2 features need the package transformers - pip install .*\[sd\]"):
        dinov2.load({}, Source())
