# SPDX-License-Identifier: Apache-2.0
"""Pictures of a training: fixed maps and noise, the averaged weights, numbers in the log, and not one bit changed."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_training
import torch
from small_training import StoppedError, same, train
from torch import Tensor

from sis.config.recipe import Recipe
from sis.data.images import decode_png
from sis.data.pairs import PairSet
from sis.data.schemas import TRAINING_LOG
from sis.data.split_facts import spread
from sis.data.tables import read_table
from sis.data.tensors import load_tensors
from sis.diffusion.noise import Noise
from sis.errors import SisError
from sis.methods.build import build_method, load_weights
from sis.methods.contract import MapBatch
from sis.plan import RunSpec
from sis.training.monitor import Monitor
from sis.training.preview import preview_sampler
from sis.training.train import train_model

RECIPE = Recipe(
    steps=7, finetune_steps=5, batch_size=4, learning_rate=0.01, ema=0.8, checkpoint_every=2, preview_every=3,
    preview_images=3,
)  # fmt: skip
STEPS = [3, 6, 7, 9, 12]
COLUMNS = [name for name in TRAINING_LOG.names if name.startswith(("sample_", "data_"))]

Weights = dict[str, Tensor]


def painter(weights: Weights, maps: MapBatch, noise: Noise) -> Tensor:
    """A picture of one of the weights."""
    level = noise.uniform("x", 0, (3, 8, 8)) * 50 + 100 * weights["0.weight"][0, 0, 0, 0].abs()
    return level.clamp(0, 255).to(torch.uint8)


def watched(folder: Path, **how: Any) -> small_training.TrainingRun:
    return train(folder / "work", RECIPE, sampler=how.pop("sampler", painter), previews=folder / "previews", **how)


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "previews").iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, small_training.TrainingRun]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, watched(folder)


def test_there_is_a_picture_every_few_steps_at_the_end_of_each_stage_and_over_time(whole: tuple) -> None:
    folder, run = whole
    assert list(pictures(folder)) == ["over_time.png", *(f"step-{n:06d}.png" for n in STEPS)]
    assert [r["step"] + 1 for r in run.log if r["sample_mean_red"] is not None] == STEPS
    assert [r["step"] for r in run.log] == [0, 2, 5, 6, 8, 10, 11]


def test_a_picture_shows_label_map_photograph_and_sample(whole: tuple) -> None:
    folder, _ = whole
    pixels, data, indices = small_training.RandomPixels(), small_training.data(), spread(10, 3)
    picture = decode_png(pictures(folder)["step-000003.png"], mode="RGB")
    assert picture.shape == (3 * 8 + 2 * 2, 3 * 8 + 2 * 2, 3)
    noise = Noise(0, tuple((f"train-{i}", 0) for i in indices)).uniform("x", 0, (3, 8, 8)).numpy()
    for column, index in enumerate(indices):
        cells = [picture[10 * row : 10 * row + 8, 10 * column : 10 * column + 8] for row in range(3)]
        assert (cells[0] == data.labels.palette()[index % 4]).all() and (cells[1] == pixels.images[index]).all()
        sample = cells[2].transpose(2, 0, 1) - noise[column] * 50
        assert np.ptp(sample) <= 1.001 and sample.mean() > 0, "the same noise, and the weights"
    assert (picture[8:10] == 255).all() and (picture[:, 8:10] == 255).all()


def test_pictures_change_no_bit_of_the_training_and_draw_no_global_number(whole: tuple, tmp_path: Path) -> None:
    def randomness() -> list[object]:
        return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]

    plain = train(tmp_path / "plain", RECIPE.model_copy(update={"preview_every": 0}))
    before = randomness()
    again = watched(tmp_path)
    assert randomness() == before
    assert all(torch.equal(again.average[k], plain.average[k]) for k in plain.average)
    assert same(again, whole[1])


def test_samples_are_of_the_averaged_weights(whole: tuple, tmp_path: Path) -> None:
    seen: list[Weights] = []

    def note(weights: Weights, maps: MapBatch, noise: Noise) -> Tensor:
        seen.append({k: v.clone() for k, v in weights.items()})
        return painter(weights, maps, noise)

    run = watched(tmp_path, sampler=note)
    assert len(seen) == 5 and all(torch.equal(seen[-1][k], v) for k, v in run.average.items())
    assert not torch.equal(seen[0]["0.weight"], seen[1]["0.weight"])


@pytest.mark.parametrize("stop", [1, 4, 6, 7, 9, 11])
def test_a_run_stopped_anywhere_has_the_same_pictures_and_the_same_log(whole: tuple, tmp_path: Path, stop: int) -> None:
    with pytest.raises(StoppedError):
        watched(tmp_path, stop=stop)
    assert same(watched(tmp_path), whole[1])
    assert pictures(tmp_path) == pictures(whole[0])


def test_a_run_stopped_while_it_draws_has_the_same_pictures(whole: tuple, tmp_path: Path) -> None:
    count = [0]

    def stopped(weights: Weights, maps: MapBatch, noise: Noise) -> Tensor:
        count[0] += 1
        if count[0] == 3:
            raise StoppedError
        return painter(weights, maps, noise)

    with pytest.raises(StoppedError):
        watched(tmp_path, sampler=stopped)
    assert len(pictures(tmp_path)) == 2
    assert same(watched(tmp_path), whole[1])
    assert pictures(tmp_path) == pictures(whole[0])


def test_pictures_of_an_earlier_training_are_removed_and_lost_ones_left_out(tmp_path: Path, whole: tuple) -> None:
    (tmp_path / "previews").mkdir()
    (tmp_path / "previews" / "step-999999.png").touch()
    watched(tmp_path)
    assert pictures(tmp_path) == pictures(whole[0])
    for name, damage in (("step-000003.png", b""), ("step-000006.png", None)):
        path = tmp_path / "previews" / name
        path.unlink() if damage is None else path.write_bytes(damage)
    watched(tmp_path)  # is finished already: only the strip is drawn anew
    strips = [decode_png(pictures(folder)["over_time.png"], mode="RGB") for folder in (whole[0], tmp_path)]
    assert strips[0].shape[0] - strips[1].shape[0] == 2 * (128 + 6) and strips[0].shape[1] == strips[1].shape[1]


def test_a_long_training_has_a_dozen_rows_at_most(tmp_path: Path) -> None:
    recipe = Recipe(steps=40, batch_size=1, preview_every=1, preview_images=1)
    train(tmp_path / "work", recipe, sampler=painter, previews=tmp_path / "previews")
    strip = decode_png(pictures(tmp_path)["over_time.png"], mode="RGB")
    assert len(pictures(tmp_path)) == 41
    rows = round((strip.shape[0] - 120) / (128 + 6))
    assert rows == 2 + 12


def test_the_log_has_mean_and_deviation_of_each_channel_of_samples_and_photographs(whole: tuple) -> None:
    folder, run = whole
    row = next(r for r in run.log if r["step"] + 1 == 9)
    picture = decode_png(pictures(folder)["step-000009.png"], mode="RGB").astype(np.float64)
    cells = [np.concatenate([picture[y : y + 8, x : x + 8] for x in (0, 10, 20)]).reshape(-1, 3) for y in (10, 20)]
    for what, pixels in zip(("data", "sample"), cells, strict=True):
        for channel, colour in enumerate(("red", "green", "blue")):
            assert row[f"{what}_mean_{colour}"] == pytest.approx(pixels[:, channel].mean())
            assert row[f"{what}_std_{colour}"] == pytest.approx(pixels[:, channel].std())
    assert len(COLUMNS) == 12 and all(row[name] is not None for name in COLUMNS)
    assert all(run.log[0][name] is None for name in COLUMNS)


def test_a_tint_is_the_largest_difference_of_means_and_contrast_the_ratio_of_deviations(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, small_training.data(), RECIPE, 0, "cpu", painter)
    assert monitor.shown() == {}
    monitor.columns = dict.fromkeys(COLUMNS, 50.0) | {"sample_mean_green": 20.0, "sample_mean_red": 60.0}
    assert monitor.shown() == {"tint": -30.0, "contrast": 1.0}
    monitor.columns |= {"sample_std_red": 0.0, "sample_std_green": 25.0, "sample_std_blue": 50.0}
    assert monitor.shown()["contrast"] == 0.5


def test_the_progress_line_shows_the_tint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sis.progress.LINE_INTERVAL", 0.0)
    watched(tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train title: ")]
    assert "tint" not in lines[0] and "loss" in lines[0]
    assert ", tint " in lines[2] and ", contrast " in lines[2]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SisError("out of memory: a batch of 3 images"), "out of memory: a batch of 3 images"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "out of memory"),
    ],
)
def test_a_picture_that_cannot_be_drawn_stops_the_training_with_words(
    tmp_path: Path, error: Exception, words: str
) -> None:
    def fails(weights: Weights, maps: MapBatch, noise: Noise) -> Tensor:
        raise error

    with pytest.raises(SisError, match=f"no picture of the training after 3 steps: {words} - lower preview_images"):
        watched(tmp_path, sampler=fails)


# With the method itself.


@pytest.fixture(scope="module")
def drawn(
    tiny_pairs: Path, tiny_spec: Callable[..., RunSpec], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunSpec]:
    """A model of SDM, trained with pictures."""
    fit = tiny_spec("sdm").fit | {"preview_every": 4, "preview_images": 2, "preview_steps": 2}
    spec = tiny_spec("sdm", fit=fit, sample={"steps": 9, "guidance": 2.0})
    out = tmp_path_factory.mktemp("drawn") / "model.safetensors"
    train_model(spec, tiny_pairs / "train", out, "cpu")
    return out, spec


def test_a_method_trained_with_pictures_has_the_same_weights(drawn: tuple[Path, RunSpec], tiny_model: Path) -> None:
    one, two = load_tensors(drawn[0], "model")[0], load_tensors(tiny_model, "model")[0]
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert list(pictures(drawn[0].parent)) == ["over_time.png", "step-000004.png", "step-000006.png"]
    log = read_table(drawn[0].with_name("training.parquet"), TRAINING_LOG)
    assert log.column("step").to_pylist() == [0, 3, 5] and log.column("sample_std_blue").null_count == 1


def test_the_last_picture_shows_what_the_finished_model_samples(
    drawn: tuple[Path, RunSpec], tiny_pairs: Path, tiny_spec: Callable[..., RunSpec]
) -> None:
    pairs = PairSet.open(tiny_pairs / "train")
    method = build_method(tiny_spec("sdm", sample={"steps": 2, "guidance": 2.0}), "cpu", None, None)
    load_weights(method, drawn[0])
    method.network.eval()
    chosen = [pairs.get(i) for i in spread(48, 2)]
    labels = torch.from_numpy(np.stack([pairs.labels.channels(p.label) for p in chosen])).long()
    ids = tuple(p.image_id for p in chosen)
    with torch.inference_mode():
        images = method.sample(
            MapBatch(ids, (0, 0), labels, torch.zeros_like(labels)), Noise(0, tuple((i, 0) for i in ids))
        )
    picture = decode_png(pictures(drawn[0].parent)["step-000006.png"], mode="RGB")
    for column, image in enumerate(images):
        assert np.array_equal(picture[68:100, 34 * column : 34 * column + 32], image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("given", "used"),
    [({}, 25), ({"steps": 1000}, 25), ({"steps": 7}, 7), ({"steps": "ddim50"}, 25), ({"steps": "5,6,7"}, "5,6,7")],
)
def test_pictures_take_few_steps_of_the_run_s_own_sampling(
    tiny_spec: Callable[..., RunSpec], tiny_pairs: Path, monkeypatch: pytest.MonkeyPatch, given: dict, used: object
) -> None:
    spec = tiny_spec("sdm", fit=tiny_spec("sdm").fit | {"preview_every": 1}, sample={"guidance": 3.0, **given})
    method, pairs = build_method(spec, "cpu", None, None), PairSet.open(tiny_pairs / "train")
    sampler, built = preview_sampler(spec, method, pairs, "cpu"), []
    assert sampler is not None

    def sample(self: Any, maps: MapBatch, noise: Noise) -> Tensor:
        built.append(self)
        return torch.zeros(0)

    monkeypatch.setattr(type(method), "sample", sample)
    state = torch.get_rng_state()
    sampler(method.network.state_dict(), None, None)  # type: ignore[arg-type]
    assert torch.equal(state, torch.get_rng_state())
    assert built[0] is not method and built[0].network is not method.network and not built[0].network.training
    assert (built[0].sample_params.steps, built[0].sample_params.guidance) == (used, 3.0)


def test_no_sampler_is_made_for_a_recipe_without_pictures_or_a_method_with_a_prior(
    tiny_spec: Callable[..., RunSpec], tiny_pairs: Path
) -> None:
    pairs, plain = PairSet.open(tiny_pairs / "train"), tiny_spec("sdm")
    assert preview_sampler(plain, build_method(plain, "cpu", None, None), pairs, "cpu") is None
    spec = tiny_spec("sdm", fit=plain.fit | {"preview_every": 1})
    spec = dataclasses.replace(spec, method=dataclasses.replace(spec.method, has_prior=True))
    with pytest.raises(SisError, match="samples with a prior: no pictures - set preview_every to 0"):
        preview_sampler(spec, build_method(spec, "cpu", None, None), pairs, "cpu")
