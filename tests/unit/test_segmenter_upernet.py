# SPDX-License-Identifier: Apache-2.0
"""The ADE20K judge: options, importer of its two files, sizes, generations, dilated encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from evaluators.nets.csail_resnet import ARCHITECTURES, CsailResnet
from evaluators.nets.upernet import DECODERS, TRAINING_ONLY, decoder
from evaluators.network import Source, fill_seeded
from evaluators.segmenters import upernet
from evaluators.segmenters.upernet import EXTRA, Upernet, load
from sis.errors import SisError

SMALL: dict[str, Any] = {"encoder": "resnet18", "decoder": "c1", "classes": 7, "sizes": [40, 64], "max_size": 90}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Three pictures of smooth colours."""
    coarse = np.random.default_rng(0).integers(0, 256, (3, 5, 6, 3), dtype=np.uint8)
    return np.stack([upernet.pillow_bilinear(image, (50, 61)) for image in coarse])


@pytest.fixture(scope="module")
def judge() -> Upernet:
    return load(SMALL, Source())


def with_options(judge: Upernet, **changes: Any) -> Upernet:
    return Upernet(judge.encoder, judge.decoder, judge.options.model_copy(update=changes))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"imgsizes": [300]}, "'imgsizes'; did you mean 'sizes'"),
        ({"encoder": "resnet34"}, "encoder"),
        ({"decoder": "fpn"}, "decoder"),
        ({"classes": 257}, "classes"),
        ({"sizes": []}, "sizes"),
        ({"sizes": [300, 0]}, "sizes.1"),
        ({"multiple": 0}, "multiple"),
        ({"generation": "rgb"}, "generation"),
        ({"encoder": "resnet18", "fc_dim": 2048}, "resnet18 has 512 channels, not fc_dim 2048"),
        ({"decoder": "ppm", "fpn_dim": 256}, "ppm has no pyramid"),
    ],
)
def test_senseless_options_are_refused_in_one_line(options: dict, words: str) -> None:
    with pytest.raises(SisError) as refusal:
        load(options, Source())
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_answers_depend_neither_on_the_batch_nor_on_its_order(judge: Upernet, images: np.ndarray) -> None:
    together = judge.predict(images)
    assert together.shape == (3, 50, 61) and together.dtype == np.uint8 and len(np.unique(together)) > 1
    np.testing.assert_array_equal(judge.predict(images[::-1]), together[::-1])
    np.testing.assert_array_equal(judge.predict(images[1:2]), together[1:2])
    assert judge.predict(images[:0], (8, 9)).shape == (0, 8, 9)


@pytest.mark.parametrize("size", [None, (50, 61), (23, 90), (200, 31)])
def test_scores_are_enlarged_to_the_labels_before_the_softmax(
    judge: Upernet, images: np.ndarray, size: tuple[int, int] | None
) -> None:
    image, mean = images[0], 0
    with torch.inference_mode():
        for one in judge.sizes(50, 61):
            enlarged = F.interpolate(judge.scores(judge.normalised(image, one)), size or (50, 61), mode="bilinear")
            mean = mean + F.softmax(enlarged, 1) / 2
    assert isinstance(mean, torch.Tensor)
    np.testing.assert_allclose(judge.probabilities(image, size), mean[0], atol=2e-6)
    np.testing.assert_array_equal(judge.predict(images[:1], size)[0], judge.probabilities(image, size).argmax(0))


def test_the_height_of_a_band_changes_nothing(
    judge: Upernet, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = judge.probabilities(images[0])
    monkeypatch.setattr(upernet, "_BAND", 7 * 61 * 3)
    np.testing.assert_allclose(judge.probabilities(images[0]), whole, atol=1e-6)


def test_sizes_are_the_authors(judge: Upernet) -> None:
    stock = with_options(judge, sizes=[300, 375, 450, 525, 600], max_size=1000)
    assert stock.sizes(256, 256) == [(320, 320), (384, 384), (480, 480), (544, 544), (608, 608)]
    assert stock.sizes(512, 683)[0] == (320, 416)  # 683 * 300 / 512 = 400.2
    assert stock.sizes(200, 1000) == [(224, 1024)] * 5  # the long side stops at 1000
    assert stock.sizes(1, 5000) == [(32, 1024)] * 5


def test_the_generations_see_other_numbers(judge: Upernet, images: np.ndarray) -> None:
    image = np.full((4, 4, 3), (10, 20, 30), np.uint8)
    rgb = judge.normalised(image, (32, 32))[0, :, 5, 5]
    np.testing.assert_allclose(rgb, (np.array([10, 20, 30]) / 255 - upernet.MEAN_RGB) / upernet.STD_RGB, rtol=1e-5)
    old = with_options(judge, generation="bgr-2017")
    np.testing.assert_allclose(
        old.normalised(image, (32, 32))[0, :, 5, 5], (30 - 102.9801, 20 - 115.9465, 10 - 122.7717)
    )
    assert (old.predict(images) != judge.predict(images)).any()
    # Shrinking, the older generation samples points and the newer one averages.
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::4] = 255
    spread = [one.normalised(stripes, (16, 64))[0, 0, :, 0].std() for one in (old, judge)]
    assert spread[0] == 0 and spread[1] < 0.1
    assert old.normalised(stripes, (16, 64))[0, 0, 0, 0] == pytest.approx(-102.9801)


def save(judge: Upernet, folder: Path, **more: torch.Tensor) -> list[Path]:
    """Both files as the authors save them, with the buffers of their batch norm."""
    files = []
    for name, module in (("encoder", judge.encoder), ("decoder", judge.decoder)):
        state = dict(module.state_dict())
        state |= {key.replace("running_var", extra): torch.ones(1) for key in state for extra in EXTRA if "_var" in key}
        if name == "decoder":
            state |= {key: torch.ones(1) for key in TRAINING_ONLY} | more
        save_file(state, folder / f"{name}.safetensors")
        files.append(folder / f"{name}.safetensors")
    return files


def test_extra_buffers_of_the_authors_files_are_dropped(judge: Upernet, images: np.ndarray, tmp_path: Path) -> None:
    other = load({**SMALL, "encoder": "resnet18"}, Source())
    fill_seeded(other.encoder, seed=1)
    fill_seeded(other.decoder, seed=1)
    loaded = load({**SMALL, "decoder": "c1_deepsup"}, Source(save(other, tmp_path)))
    np.testing.assert_array_equal(loaded.probabilities(images[0]), other.probabilities(images[0]))
    assert np.abs(loaded.probabilities(images[0]) - judge.probabilities(images[0])).max() > 0.01


def test_files_that_do_not_fit_are_refused_by_name(judge: Upernet, tmp_path: Path) -> None:
    files = save(judge, tmp_path, strange=torch.ones(1))
    with pytest.raises(SisError, match=r"1 unexpected: strange.*decoder\.safetensors"):
        load(SMALL, Source(files))
    with pytest.raises(SisError, match=r"missing: conv1\.weight.*unexpected: cbr\..*decoder\.safetensors"):
        load(SMALL, Source(files[::-1]))
    with pytest.raises(SisError, match="takes two files of weights, encoder and decoder, found 1"):
        load(SMALL, Source(files[:1]))


def test_the_stand_in_is_the_same_every_time(judge: Upernet, images: np.ndarray) -> None:
    again = load(SMALL, Source())
    np.testing.assert_array_equal(again.probabilities(images[0]), judge.probabilities(images[0]))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_dilated_encoder_finds_what_the_strided_one_finds_and_more(name: str) -> None:
    # The points of the coarse grids are computed from the same neighbours with the same weights.
    plain, dilated = CsailResnet(name).eval(), CsailResnet(f"{name}dilated").eval()
    fill_seeded(plain)
    dilated.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        coarse, fine = plain(x), dilated(x)
    assert [m.shape[2:] for m in coarse] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [m.shape[2:] for m in fine] == [(16, 24), (8, 12), (8, 12), (8, 12)]
    for index, step in ((2, 2), (3, 4)):
        apart = (fine[index][..., ::step, ::step] - coarse[index]).abs().max() / coarse[index].std()
        assert apart < 1e-5


@pytest.mark.parametrize("encoder", ARCHITECTURES)
def test_encoders_and_decoders_fit_each_other(encoder: str) -> None:
    with torch.device("meta"):
        network = CsailResnet(encoder).eval()
        maps = network(torch.empty(1, 3, 64, 96))
        channels = ARCHITECTURES[encoder].channels
        assert tuple(m.shape[1] for m in maps) == channels
        for name in DECODERS:
            head = decoder(name, channels, 150, None, (1, 2, 3, 6)).eval()
            finest = maps[0] if name.startswith("upernet") else maps[3]
            assert head(maps).shape == (1, 150, *finest.shape[2:])
    layers = [n for n, w in network.named_parameters() if w.ndim == 4 and "downsample" not in n]
    assert (
        len(layers) == int(encoder.removeprefix("resnet").removesuffix("dilated")) - 1 + 2
    )  # no classifier, long stem
    if encoder == "resnet101":
        both = [*network.parameters(), *decoder("upernet", channels, 150, None, (1, 2, 3, 6)).parameters()]
        assert round(sum(w.numel() for w in both) / 1e6, 1) == 83.2


def test_pyramid_pooling_enlarges_after_its_convolution_in_ppm_and_before_it_in_upernet() -> None:
    maps = [torch.randn(1, c, 6, 6, generator=torch.Generator().manual_seed(c)) for c in (4, 8, 16, 32)]
    for name, order in (("ppm", "after"), ("upernet", "before")):
        head = decoder(name, (4, 8, 16, 32), 3, 8 if name == "upernet" else None, (2,)).eval()
        fill_seeded(head)
        narrow = head.ppm[0][1:] if name == "ppm" else head.ppm_conv[0]
        seen: list[tuple[int, ...]] = []
        narrow[0].register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(tuple(inputs[0].shape[2:])))
        with torch.inference_mode():
            head(maps)
        assert seen == [(2, 2) if order == "after" else (6, 6)]
