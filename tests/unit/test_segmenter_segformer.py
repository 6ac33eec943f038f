# SPDX-License-Identifier: Apache-2.0
"""SegFormer through transformers: published files of weights, sizes of the paper, batches, an absent package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from evaluators.network import Source
from evaluators.segmenters.segformer import VARIANTS, Options, SegformerSegmenter, build, file_name, load
from sis.data.weight_files import write_weights
from sis.errors import SisError

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="the extra `sd` is not installed"
)


@pytest.fixture(scope="module")
def judge() -> SegformerSegmenter:
    return load({"classes": 7}, Source())


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, 37, 50, 3), dtype=np.uint8)


@needs_transformers
def test_a_file_that_transformers_wrote_brings_its_numbers(images: NDArray[np.uint8], tmp_path: Path) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig()
    config.num_labels = 7
    theirs = SegformerForSemanticSegmentation(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load({"classes": 7}, Source([tmp_path / "model.safetensors"]))
    with torch.inference_mode():
        x = ours.prepare(images)
        assert torch.equal(ours.network(pixel_values=x).logits, theirs(pixel_values=x).logits)


@needs_transformers
def test_weights_have_the_names_of_published_files(judge: SegformerSegmenter, tmp_path: Path) -> None:
    names = judge.network.state_dict()
    for name in (
        "segformer.encoder.patch_embeddings.0.proj.weight",
        "segformer.encoder.block.0.1.attention.self.sr.weight",
        "segformer.encoder.block.3.0.layer_norm_2.bias",
        "segformer.encoder.block.1.0.attention.output.dense.weight",
        "segformer.encoder.layer_norm.3.weight",
        "decode_head.linear_c.0.proj.weight",
        "decode_head.batch_norm.running_mean",
    ):
        assert name in names and file_name(name) == name
    write_weights({k: v for k, v in names.items() if not k.endswith("classifier.bias")}, tmp_path / "a.pth")
    with pytest.raises(SisError, match=r"1 missing: decode_head\.classifier\.bias"):
        load({"classes": 7}, Source([tmp_path / "a.pth"]))


@needs_transformers
def test_the_variants_have_the_sizes_of_the_paper() -> None:
    found = []
    for variant in VARIANTS:
        with torch.device("meta"):
            network = build(Options.model_validate({"variant": variant, "classes": 150}))
        found.append(round(sum(p.numel() for p in network.parameters()) / 1e6, 1))
    assert found == [3.8, 13.7, 27.5, 47.3, 64.1, 84.7], "millions of parameters, with ADE20K's 150 classes"


@needs_transformers
def test_answers_do_not_depend_on_the_batch_and_come_at_the_size_asked_for(
    judge: SegformerSegmenter, images: NDArray[np.uint8]
) -> None:
    together = judge.predict(images, (20, 31))
    assert together.shape == (3, 20, 31) and together.dtype == np.uint8 and len(np.unique(together)) > 1
    for image, answer in zip(images, together, strict=True):
        np.testing.assert_array_equal(judge.predict(image[None], (20, 31))[0], answer)
    with torch.inference_mode():
        logits = judge.network(pixel_values=judge.prepare(images)).logits
    planes = F.interpolate(logits, (37, 50), mode="bilinear", align_corners=False)
    np.testing.assert_array_equal(judge.predict(images), planes.argmax(1).numpy())


@needs_transformers
def test_a_picture_is_fed_less_imagenet_s_mean_over_its_spread(judge: SegformerSegmenter) -> None:
    red = np.zeros((1, 1, 1, 3), np.uint8)
    red[..., 0] = 255
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    np.testing.assert_allclose(judge.prepare(red).numpy().ravel(), expected, rtol=1e-6)


def test_without_transformers_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SisError, match="needs the package transformers - install the extra `sd`") as caught:
        load({}, Source())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"variant": "b6"}, "variant: should be 'b0'"), ({"clases": 5}, "did you mean 'classes'")],
)
def test_senseless_options_are_refused_in_one_line(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SisError, match=message):
        load(wrong, Source())
