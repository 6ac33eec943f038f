# SPDX-License-Identifier: Apache-2.0
"""Watching a chain changes nothing in it, and what is shown is what the network said."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sis.cli import main
from sis.data.image_set import ImageSet
from sis.data.images import decode_png
from sis.data.pairs import PairSet
from sis.data.provenance import RunRecord
from sis.data.tensors import save_tensors
from sis.diffusion.noise import Noise
from sis.errors import SisError
from sis.methods.build import build_method
from sis.methods.discovery import method_info
from sis.plan import load_plan
from sis.sampling import trace as traces
from sis.sampling.diffusion_model import open_diffusion
from sis.sampling.run import SampleJob, sample_run
from sis.sampling.trace import Frame, TraceJob, in_training, sampled, spaced, trace

SPEC = load_plan(experiment="tiny").spec("scenes_tiny", "sdm-s1.5")
IMAGE = "train-00005"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of which none is zero."""
    path = tmp_path_factory.mktemp("trace") / "model.safetensors"
    network = build_method(SPEC, "cpu", None, None).network
    generator = torch.Generator().manual_seed(0)
    tensors = {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in network.state_dict().items()}
    save_tensors(tensors, path, "model", {}, RunRecord.start())
    return path


Make = Callable[..., TraceJob]


@pytest.fixture
def job(tiny_pairs: Path, model: Path, tmp_path: Path) -> Make:
    """`job(steps=4, sampler="ddpm", **changes)`: a trace of a training image."""

    def make(**changes: Any) -> TraceJob:
        sample = {k: changes.pop(k) for k in ("steps", "sampler", "guidance") if k in changes}
        spec = dataclasses.replace(SPEC, sample={**SPEC.sample, **sample})
        keys = {"spec": spec, "pairs": tiny_pairs / "train", "out": tmp_path / "out", "model": model, "frames": 3}
        return TraceJob(**{**keys, "image_id": IMAGE, **changes})

    return make


def watched(job: TraceJob) -> tuple[list[Frame], np.ndarray]:
    pairs = PairSet.open(job.pairs)
    return sampled(open_diffusion(job.spec, job.model, "cpu"), job, pairs, pairs.by_id(job.image_id))


def trained(job: TraceJob) -> list[Frame]:
    pairs = PairSet.open(job.pairs)
    return in_training(job, pairs, pairs.by_id(job.image_id))


@pytest.mark.parametrize(
    ("steps", "frames", "expected"),
    [(5, 5, [4, 3, 2, 1, 0]), (10, 4, [9, 6, 3, 0]), (1000, 3, [999, 500, 0]), (3, 8, [2, 1, 0]), (1, 2, [0])],
)
def test_frames_are_evenly_spaced_with_both_ends(steps: int, frames: int, expected: list[int]) -> None:
    assert spaced(steps, frames) == expected


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm_solver"])
def test_the_chain_that_is_watched_ends_in_the_picture_of_the_image_set(
    sampler: str, job: Make, model: Path, tiny_pairs: Path, tmp_path: Path
) -> None:
    chosen = job(sampler=sampler)
    spec = dataclasses.replace(chosen.spec, batch_size=1, samples_per_map=1)
    val = dataclasses.replace(chosen, spec=spec, pairs=tiny_pairs / "val", image_id="val-00003")
    sample_run(SampleJob(spec, val.pairs, tmp_path / "set", model=model))
    frames, picture = watched(val)
    assert np.array_equal(picture, ImageSet.open(tmp_path / "set").get("val-00003", 0))
    assert len(frames) == 3 and [f.t for f in frames] == sorted((f.t for f in frames), reverse=True)


def test_all_steps_are_shown_when_there_are_fewer_than_frames(job: Make) -> None:
    frames, _ = watched(job(steps=4, frames=50))
    assert [f.t for f in frames] == [49, 33, 16, 0]


def test_the_first_state_is_the_noise_and_the_last_prediction_the_picture(job: Make) -> None:
    frames, picture = watched(job())
    noise = Noise(SPEC.sample_seed, ((IMAGE, 0),)).normal("start", 0, (3, 32, 32))
    assert torch.equal(frames[0].noisy, noise[0]) and frames[0].t == 49 and frames[-1].t == 0
    shown = ((frames[-1].start + 1) * 127.5).clamp(0, 255).round().permute(1, 2, 0).numpy()
    assert np.abs(shown - picture).max() <= 1 and all(f.start.abs().max() <= 1 for f in frames)


def test_in_training_x_t_is_the_photograph_with_noise_and_x_0_follows_in_one_step(job: Make) -> None:
    chosen = job(guidance=1.0, steps=5)
    frames, pairs = trained(chosen), PairSet.open(chosen.pairs)
    pair = pairs.by_id(IMAGE)
    photograph = torch.from_numpy(pair.image.copy()).permute(2, 0, 1).float() / 127.5 - 1
    model = open_diffusion(chosen.spec, chosen.model, "cpu")
    labels = torch.from_numpy(pairs.policy.channels(pair)).long()[None]
    denoise, bar = model.diffusion.denoiser(labels, torch.zeros_like(labels)), model.diffusion.chain().alphas_cumprod
    assert [f.t for f in frames] == [49, 24, 0]
    for frame, level in zip(frames, (bar[4], bar[2], bar[0]), strict=True):
        eps = Noise(SPEC.sample_seed, ((IMAGE, 0),)).normal("trace", frame.t, (3, 32, 32))[0]
        noisy = level**0.5 * photograph + (1 - level) ** 0.5 * eps
        torch.testing.assert_close(frame.noisy, noisy, rtol=0, atol=1e-6)
        with torch.inference_mode():
            answer = denoise(frame.noisy[None], torch.tensor([frame.t])).eps[0]
        start = ((frame.noisy - (1 - level) ** 0.5 * answer) / level**0.5).clamp(-1, 1)
        torch.testing.assert_close(frame.start, start, rtol=0, atol=1e-4)


def test_training_is_shown_without_guidance(job: Make) -> None:
    strong, none = job(guidance=3.0), job(guidance=1.0)
    for a, b in zip(trained(strong), trained(none), strict=True):
        assert torch.equal(a.start, b.start)
    assert not torch.equal(watched(strong)[0][0].start, watched(none)[0][0].start)


def test_the_files_hold_both_strips_an_animation_and_the_record(job: Make) -> None:
    strips, animation, record = trace(job())
    assert [p.name for p in (strips, animation, record)] == ["trace.png", "sampling.png", "trace.json"]
    drawn = decode_png(strips.read_bytes())
    assert drawn.shape[0] > 4 * 128 and drawn.shape[1] > 5 * 128
    with Image.open(animation) as moving:
        assert getattr(moving, "n_frames", 1) == 3 + 1
        assert moving.size == (2 * 128, 128)
    facts = json.loads(record.read_text())
    assert facts["steps"] == [49, 33, 0] and facts["image_id"] == IMAGE and facts["split"] == "train"
    assert len(facts["model"]) == 64 and facts["run_name"] == "sdm-s1.5"


def test_a_label_map_without_photograph_has_only_the_strip_of_sampling(
    job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = decode_png(trace(job())[0].read_bytes())
    own = PairSet.by_id
    monkeypatch.setattr(PairSet, "by_id", lambda self, name: dataclasses.replace(own(self, name), photograph=None))
    monkeypatch.setattr(traces, "in_training", None)
    assert decode_png(trace(job())[0].read_bytes()).shape[0] < 0.6 * both.shape[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"frames": 1}, "at least two steps"),
        ({"image_id": "train-0005"}, "no image 'train-0005' in scenes_tiny/train - did you mean"),
        ({"model": None}, "give --model"),
        ({"spec": dataclasses.replace(SPEC, method=method_info("palette"), fit={}, sample={})}, "palette draws no"),
        ({"spec": dataclasses.replace(SPEC, dataset=SPEC.dataset.model_copy(update={"name": "a"}))}, "the run is of a"),
    ],
)
def test_a_trace_that_cannot_be_made_is_refused(changes: dict[str, Any], reason: str, job: Make) -> None:
    chosen = job(**changes)
    with pytest.raises(SisError, match=reason):
        trace(chosen)
    assert not chosen.out.exists()


def test_the_command_traces_and_names_its_files(
    tiny_pairs: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--experiment", "tiny", "--dataset", "scenes_tiny", "--run", "sdm-s1.5", "--device", "cpu"]
    pairs = ["--pairs", str(tiny_pairs / "train" / "manifest.json"), "--image-id", IMAGE]
    words = ["trace", *run, *pairs, "--model", str(model), "--frames", "2"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    names = ["trace.png", "sampling.png", "trace.json"]
    assert capsys.readouterr().out.splitlines() == [f"wrote {tmp_path / 'out' / name}" for name in names]
    assert main([*words, "--frames", "1", "--out", str(tmp_path / "no")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
