# SPDX-License-Identifier: Apache-2.0
"""The Inception network against pytorch-fid's, with stand-in weights that both are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import evaluators  # noqa: F401 - makes torchvision importable, which the peer wants
from evaluators.features import inception
from evaluators.nets import inception as nets
from evaluators.nets.inception import DIMS, Inception
from evaluators.network import Source, fill_seeded
from sis.errors import SisError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 41, 67, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Stand-in weights under the published names, with the layer that features do not need."""
    network = Inception()
    fill_seeded(network)
    return {**network.state_dict(), "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


@pytest.fixture(scope="module")
def file(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "pt_inception.pth"
    torch.save(weights, path)
    return path


def peer(weights: dict[str, Tensor], blocks: list[int], monkeypatch: pytest.MonkeyPatch) -> Any:
    """pytorch-fid's network with these weights in place of its download."""
    import pytorch_fid.inception

    monkeypatch.setattr(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: weights)
    return pytorch_fid.inception.InceptionV3(blocks).eval()


def spread(features: NDArray) -> float:
    return float(np.abs(features).max())


def test_features_of_every_depth_equal_pytorch_fids(
    weights: dict[str, Tensor], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.from_numpy(IMAGES[:1]).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        theirs = [m.mean((2, 3)).numpy() for m in peer(weights, [0, 1, 2, 3], monkeypatch)(x)]
    for dims, expected in zip(DIMS, theirs, strict=True):
        ours = inception.load({"dims": dims}, Source([file])).features(IMAGES[:1])
        assert ours.shape == (1, dims) and ours.dtype == np.float32
        np.testing.assert_allclose(ours, expected, atol=1e-5 * spread(expected))


def test_features_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = inception.load({"dims": 192}, Source())
    together = extractor.features(IMAGES)
    alone = np.concatenate([extractor.features(IMAGES[i : i + 1]) for i in (2, 0, 1)])
    np.testing.assert_allclose(together[[2, 0, 1]], alone, atol=1e-5 * spread(together))
    monkeypatch.setattr(inception, "_TOGETHER", 2)  # more images than go through the network together
    np.testing.assert_allclose(extractor.features(IMAGES), together, atol=1e-5 * spread(together))
    monkeypatch.setattr(nets, "_STEM_TOGETHER", 1)
    np.testing.assert_allclose(extractor.features(IMAGES), together, atol=1e-5 * spread(together))
    assert extractor.features(IMAGES[:0]).shape == (0, 192)


def test_a_folded_network_says_the_same() -> None:
    """Also where torch would choose another convolution for 1x1 kernels: one image, one thread."""
    network = Inception().eval()
    fill_seeded(network)
    x = inception.load({"dims": 64}, Source()).pixels(IMAGES[:1])
    with torch.inference_mode():
        plain = network(x)
        folded = network.fold()(x)
    np.testing.assert_allclose(folded, plain, atol=1e-5 * spread(plain.numpy()))
    assert float(plain.std()) > 0


def test_stand_in_weights_tell_images_apart() -> None:
    found = inception.load({"dims": 768}, Source()).features(IMAGES[:2])
    assert np.abs(found[0] - found[1]).max() > 1e-3 * spread(found)


def test_each_resizer_has_its_range() -> None:
    white = np.full((1, 5, 7, 3), 255, np.uint8)
    for options, brightest in (({}, 1.0), ({"resize": "tf1"}, 127 / 128), ({"resize": "clean"}, 127 / 128)):
        extractor = inception.load({**options, "dims": 64}, Source())
        assert float(extractor.pixels(white).max()) == pytest.approx(brightest, abs=1e-6)
        assert float(extractor.pixels(0 * white).min()) == -1
    squashed = inception.load({"before": "sdm-256", "dims": 64}, Source()).pixels(IMAGES[:1])
    assert squashed.shape == (1, 3, 299, 299)
    assert float(squashed.std()) != pytest.approx(float(extractor.pixels(IMAGES[:1]).std()), rel=1e-3)


def test_files_without_counters_are_read_and_others_refused(
    weights: dict[str, Tensor], file: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old.pth"
    torch.save({k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}, old)
    ours = [inception.load({"dims": 64}, Source([path])).features(IMAGES[:1]) for path in (file, old)]
    np.testing.assert_array_equal(ours[0], ours[1])
    torch.save({k: v for k, v in weights.items() if k != "Mixed_7c.branch_pool.conv.weight"}, old)
    with pytest.raises(SisError, match=r"1 missing: Mixed_7c\.branch_pool\.conv\.weight"):
        inception.load({}, Source([old]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resizer": "clean"}, "unknown option 'resizer' .*did you mean 'resize'"),
        ({"resize": "pytorchfid"}, "unknown resize 'pytorchfid' .*did you mean 'pytorch-fid'"),
        ({"dims": 2000}, "unknown dims 2000"),
        ({"before": "sdm256"}, "unknown before 'sdm256' .*did you mean 'sdm-256'"),
    ],
)
def test_senseless_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(SisError, match=message):
        inception.load(options, Source())


def test_two_files_are_refused(file: Path) -> None:
    with pytest.raises(SisError, match="one file of weights, found 2"):
        inception.load({}, Source([file, file]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
def test_fid_equals_pytorch_fids_script(
    weights: dict[str, Tensor], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both read the same folders of PNGs; more images than features, so that neither covariance is singular."""
    import pytorch_fid.inception
    from pytorch_fid.fid_score import calculate_fid_given_paths

    from evaluators.frechet import Target

    monkeypatch.setattr(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: weights)
    sets = []
    for g, low in enumerate((0, 40)):
        rng = np.random.default_rng(g)
        images = rng.integers(low, 256, (70, 3, 4, 3)).repeat(9, 1).repeat(9, 2).astype(np.uint8)
        (tmp_path / str(g)).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / str(g) / f"{i:03d}.png")
        sets.append(images)
    theirs = calculate_fid_given_paths([str(tmp_path / "0"), str(tmp_path / "1")], 10, "cpu", 64, num_workers=0)
    extractor = inception.load({"dims": 64}, Source([file]))
    ours = Target.of(extractor.features(sets[1])).distance(extractor.features(sets[0]))
    assert ours == pytest.approx(theirs, rel=1e-6)
