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
from torch import Tensor

from sis.data.manifest import read_manifest
from sis.data.pairs import PairSet
from sis.data.tensors import load_tensors, save_tensors
from sis.diffusion import samplers
from sis.diffusion.denoiser import Denoiser
from sis.diffusion.noise import Noise
from sis.diffusion.pixels import to_uint8
from sis.errors import SisError
from sis.methods.build import build_method
from sis.methods.contract import MapBatch
from sis.methods.discovery import method_class, method_info, methods
from sis.methods.sdm import SDM
from sis.plan import RunSpec
from sis.project.scaffold import scaffold
from sis.sampling.python_method import batch_maker
from sis.sampling.run import SampleJob, sample_run
from sis.training.prior import compute_prior

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


class AwakeSDM:
    """SDM on four label maps, every weight filled with small numbers: a fresh network would answer zero."""

    def __init__(self, pairs: Path, spec: Callable[..., RunSpec], fit: dict[str, Any]) -> None:
        self.pairs, self.spec, self.fit = PairSet.open(pairs / "val"), spec, fit

    def method(self, **sample: Any) -> SDM:
        spec = self.spec("sdm", fit=SDM.EXAMPLE_FIT | self.fit, sample=SDM.EXAMPLE_SAMPLE | sample)
        built = build_method(spec, "cpu", self.pairs, None)
        assert isinstance(built, SDM)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for weight in built.network.parameters():
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
        return built

    def maps(self) -> MapBatch:
        ids = tuple(self.pairs.ids[:4])
        labels = np.stack([self.pairs.labels.channels(self.pairs.by_id(i).label) for i in ids])
        return MapBatch(ids, (0,) * 4, torch.from_numpy(labels).long(), torch.zeros(labels.shape, dtype=torch.int64))

    @torch.inference_mode()
    def images(self, **sample: Any) -> NDArray[np.int64]:
        maps = self.maps()
        noise = Noise(0, tuple((i, 0) for i in maps.image_ids))
        return self.method(**sample).sample(maps, noise).numpy().astype(np.int64)


@pytest.fixture
def awake(tiny_pairs: Path, tiny_spec: Callable[..., RunSpec]) -> Callable[..., AwakeSDM]:
    """`awake(**fit)`."""
    return lambda **fit: AwakeSDM(tiny_pairs, tiny_spec, fit)


def test_sdm_draws_the_same_images_again_and_every_sampling_option_changes_them(
    awake: Callable[..., AwakeSDM],
) -> None:
    sdm = awake()
    ways: list[dict[str, Any]] = [
        {}, {"steps": 4}, {"steps": "ddim5"}, {"steps": "1,2"}, {"guidance": 1.0}, {"guidance": 3.0}, {"clip": False},
        {"variance": "small"}, {"variance": "large"}, {"channel_statistics": [0, 0, 0, 0.3, 0.3, 0.3]},
        {"sampler": "ddim"}, {"sampler": "ddim", "eta": 0.5}, {"sampler": "dpm_solver"},
    ]  # fmt: skip
    images = [sdm.images(**way) for way in ways]
    assert images[0].shape == (4, 3, 32, 32)
    np.testing.assert_array_equal(images[0], sdm.images())
    for i, one in enumerate(images):
        assert not any(np.array_equal(one, other) for other in images[i + 1 :]), ways[i]


@pytest.mark.parametrize("fit", [{}, {"predict": "v", "patch": 2}, {"conditioning": "concat"}, {"schedule": "cosine"}])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_sdm_with_reuse_draws_the_same_images(
    awake: Callable[..., AwakeSDM], fit: dict[str, Any], guidance: float
) -> None:
    sdm = awake(**fit)
    plain = sdm.images(guidance=guidance, steps=5)
    assert 20 < plain.std() < 120
    for memory in (0, 2048):
        same = sdm.images(guidance=guidance, steps=5, fast="bitwise", reuse_memory=memory)
        np.testing.assert_array_equal(same, plain)
        quick = sdm.images(guidance=guidance, steps=5, fast=True, reuse_memory=memory)
        assert np.abs(quick - plain).max() <= 1 and (quick != plain).mean() < 0.01


def test_sdm_lends_its_denoiser_and_its_chain_to_other_tools(awake: Callable[..., AwakeSDM]) -> None:
    sdm = awake()
    method, maps = sdm.method(sampler="dpm_solver", steps="ddim5"), sdm.maps()
    noise = Noise(0, tuple((i, 0) for i in maps.image_ids))
    assert method.chain().timesteps.tolist() == [0, 10, 20, 30, 40]
    with torch.inference_mode():
        x = samplers.start_noise(noise, (3, 32, 32))
        drawn = samplers.dpm_solver(method.denoiser(maps.labels, maps.instances), method.chain(), x)
        assert torch.equal(to_uint8(drawn, maps.image_ids), method.sample(maps, noise))


def test_a_cosine_schedule_is_another_chain(awake: Callable[..., AwakeSDM]) -> None:
    linear, cosine = (awake(schedule=name).method().chain() for name in ("linear", "cosine"))
    assert linear.timesteps.tolist() == cosine.timesteps.tolist()
    assert np.abs(linear.alphas_cumprod - cosine.alphas_cumprod).max() > 0.1


@pytest.mark.parametrize(
    ("fit", "sample", "message"),
    [
        ({"learn_sigma": False}, {}, "no variance to sample with - set `variance: large`"),
        ({"multipliers": [1] * 7}, {}, "cannot halve 32x32 images .* divisible by 64"),
        ({"patch": 3}, {}, "cannot halve 32x32 .* divisible by 6"),
        ({}, {"channel_statistics": [0.0, 0.0, 0.0]}, "three means and then three positive deviations"),
        ({}, {"channel_statistics": [0.0, 0.0, 0.0, 1.0, 0.0, 1.0]}, "three positive deviations"),
        ({}, {"steps": "fast"}, "steps"),
        ({}, {"steps": 0}, "steps"),
        ({}, {"guidance": 0.5}, "guidance"),
        ({}, {"fast": "yes"}, "fast"),
    ],
)
def test_what_sdm_cannot_do_is_refused_before_it_trains(
    awake: Callable[..., AwakeSDM], fit: dict[str, Any], sample: dict[str, Any], message: str
) -> None:
    with pytest.raises(SisError, match=message):
        awake(**fit).method(**sample)


@pytest.mark.parametrize("sample", [{"variance": "small"}, {"variance": "large"}, {"sampler": "ddim"}])
def test_a_network_without_a_variance_samples_where_none_is_asked_of_it(
    awake: Callable[..., AwakeSDM], sample: dict[str, Any]
) -> None:
    assert awake(learn_sigma=False).images(**sample).std() > 10


def test_a_sample_that_is_not_finite_is_refused_with_step_and_image_and_nothing_is_written(
    tiny_pairs: Path, tiny_spec: Callable[..., RunSpec], tiny_model: Path, tmp_path: Path
) -> None:
    tensors, facts = load_tensors(tiny_model, "model")
    tensors["unet.head.bias"][0] = float("inf")
    save_tensors(tensors, tmp_path / "model.safetensors", "model", facts, {})
    job = SampleJob(tiny_spec("sdm"), tiny_pairs / "val", tmp_path / "images", tmp_path / "model.safetensors")
    with pytest.raises(SisError, match=r"not finite at step t = 49: val-00000, val-00001 - check the model"):
        sample_run(job)
    assert not list((tmp_path / "images").rglob("*.parquet"))


def test_a_batch_that_exceeds_the_memory_is_refused_and_never_made_smaller(
    awake: Callable[..., AwakeSDM], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SDM.denoiser

    def exhausted(self: SDM, labels: Tensor, instances: Tensor | None = None) -> Denoiser:
        if len(labels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, labels, instances)

    sdm = awake()
    monkeypatch.setattr(SDM, "denoiser", exhausted)
    words = "a batch of 4 images of 32x32 does not fit - set the experiment's batch_size to 3, the largest that fits"
    with pytest.raises(SisError, match=words):
        sdm.images()


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
