# SPDX-License-Identifier: Apache-2.0
"""What the network believes the picture to be, step by step: in sampling, and in training (SDM, Fig. 11)."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sis.data.atomic import write_bytes_atomic, write_text_atomic
from sis.data.contact_sheet import READABLE, Picture, sheet, stacked
from sis.data.images import encode_png
from sis.data.manifest import read_manifest
from sis.data.pair import Pair
from sis.data.pairs import PairSet
from sis.data.provenance import RunRecord
from sis.diffusion import guards
from sis.diffusion.denoiser import Denoiser, Prediction
from sis.diffusion.gaussians import predict_start
from sis.diffusion.noise import Noise
from sis.diffusion.pixels import to_uint8
from sis.diffusion.samplers import start_noise
from sis.errors import SisError
from sis.methods.discovery import method_class
from sis.plan import RunSpec
from sis.sampling.diffusion_model import DiffusionModel, open_diffusion

_MILLISECONDS = 400


@dataclass(frozen=True)
class TraceJob:
    """Which picture of which run to watch. frames: how many steps are shown, the first and the last among them."""

    spec: RunSpec
    pairs: Path
    image_id: str
    out: Path
    model: Path | None = None
    frames: int = 10
    device: str = "cpu"


class Frame(NamedTuple):
    """One step: t of the full schedule, x_t and the x_0 predicted from it, `(3, h, w)` about [-1, 1]."""

    t: int
    noisy: Tensor
    start: Tensor


def trace(job: TraceJob) -> list[Path]:
    """Write `trace.png` (both strips), `sampling.png` (animated) and `trace.json` to a folder.

    Raises SisError for methods that do not denoise pixels, unknown images, fewer than two frames, unfit models.
    """
    run = RunRecord.start(device=job.device)
    if job.frames < 2:
        raise SisError(f"a trace shows at least two steps, not {job.frames}")
    pairs = PairSet.open(job.pairs)
    if pairs.dataset != job.spec.dataset.name:
        raise SisError(f"these are pairs of {pairs.dataset}, the run is of {job.spec.dataset.name}", where=job.pairs)
    pair = pairs.by_id(job.image_id)
    opened = open_diffusion(job.spec, job.model, job.device)
    frames, result = sampled(opened, job, pairs, pair)
    sheets = [_sampling_sheet(job, pairs, pair, frames, len(opened.diffusion.chain()), result)]
    if pair.photograph is not None:
        sheets.append(_training_sheet(job, pair.photograph, in_training(job, pairs, pair)))
    paths = [job.out / name for name in ("trace.png", "sampling.png", "trace.json")]
    write_bytes_atomic(paths[0], encode_png(stacked(sheets)))
    write_bytes_atomic(paths[1], _animation(frames, result))
    facts = {
        "image_id": job.image_id, "split": pairs.split, "dataset": pairs.dataset, "run_name": job.spec.name,
        "sample": job.spec.sample, "seed": job.spec.sample_seed, "steps": [frame.t for frame in frames],
        "model": "" if job.model is None else read_manifest(job.model, "model", verify=False).digest,
        "run": run.finish(),
    }  # fmt: skip
    write_text_atomic(paths[2], json.dumps(facts, indent=1, sort_keys=True) + "\n")
    return paths


@torch.inference_mode()
def sampled(opened: DiffusionModel, job: TraceJob, pairs: PairSet, pair: Pair) -> tuple[list[Frame], Picture]:
    """Steps of the run's own sampler on a label map, and the picture that came of it: sample 0 of the image set.

    The picture equals the image set's up to rounding: that one was drawn in a larger batch.
    """
    noise = Noise(job.spec.sample_seed, ((job.image_id, 0),), job.device)
    chain, frames = opened.diffusion.chain(), list[Frame]()
    wanted = {int(chain.timesteps[i]): i for i in spaced(len(chain), job.frames)}

    def watched(x: Tensor, t: Tensor) -> Prediction:
        answer, step = denoiser(x, t), int(t[0])
        if step in wanted:
            index = torch.full_like(t, wanted[step])
            start = predict_start(chain, x, index, answer.eps, opened.step.clip, opened.step.statistics)
            frames.append(Frame(step, x[0].cpu(), start[0].cpu()))
        return answer

    with guards.fitting(1, pairs.size):
        denoiser = guards.finite(_denoiser(opened, job, pairs, pair), [job.image_id])
        x = opened.diffusion.draw(watched, start_noise(noise, (3, *pairs.size)), noise)
    return frames, _picture(x[0])


@torch.inference_mode()
def in_training(job: TraceJob, pairs: PairSet, pair: Pair) -> list[Frame]:
    """What training sees of a photograph at the same steps: x_t = q(x_t | x_0), and x_0 predicted from it at once.

    Without guidance, which training does not have either.
    """
    knob = {"guidance": 1.0} if "guidance" in method_class(job.spec.method.name).SampleParams.model_fields else None
    opened = open_diffusion(job.spec, job.model, job.device, knob)
    noise = Noise(job.spec.sample_seed, ((job.image_id, 0),), job.device)
    chain, frames = opened.diffusion.chain(), list[Frame]()
    photograph = torch.from_numpy(pair.image.copy()).to(job.device).permute(2, 0, 1)[None].float() / 127.5 - 1
    denoiser = guards.finite(_denoiser(opened, job, pairs, pair), [job.image_id])
    for i in spaced(len(chain), job.frames):
        step, index = int(chain.timesteps[i]), torch.full((1,), i, device=job.device)
        x = chain.q_sample(photograph, index, noise.normal("trace", step, tuple(photograph.shape[1:])))
        answer = denoiser(x, torch.full_like(index, step))
        start = predict_start(chain, x, index, answer.eps, opened.step.clip)
        frames.append(Frame(step, x[0].cpu(), start[0].cpu()))
    return frames


def spaced(steps: int, frames: int) -> list[int]:
    """Evenly spaced chain indices from the noisiest to 0; all of them when there are fewer than `frames`."""
    return [round(i) for i in np.linspace(steps - 1, 0, min(frames, steps))]


def _denoiser(opened: DiffusionModel, job: TraceJob, pairs: PairSet, pair: Pair) -> Denoiser:
    labels = torch.from_numpy(pairs.policy.channels(pair)).long()[None]
    instance = np.zeros(pairs.size, np.int64) if pair.instance is None else pair.instance.astype(np.int64)
    return opened.diffusion.denoiser(labels.to(job.device), torch.from_numpy(instance).to(job.device)[None])


def _picture(x: Tensor) -> NDArray[np.uint8]:
    return to_uint8(x[None], ("",))[0].permute(1, 2, 0).cpu().contiguous().numpy()


def _sampling_sheet(
    job: TraceJob, pairs: PairSet, pair: Pair, frames: list[Frame], steps: int, result: Picture
) -> Picture:
    caption = f"{job.spec.title}; {len(frames)} of the {steps} steps that its sampler visits"
    heads = ["label map", *(f"t = {frame.t}" for frame in frames), "result"]
    first = pairs.labels.palette()[pair.label]
    rows = [[first, *map(_picture, noisy), result] for noisy in _columns(frames)]
    return sheet(f"In sampling: {job.image_id}", caption, heads, ["x_t", "predicted x_0"], rows)


def _training_sheet(job: TraceJob, photograph: Picture, frames: list[Frame]) -> Picture:
    caption = "the photograph with the noise of step t, and x_0 predicted from that in one evaluation, unguided"
    heads = ["photograph", *(f"t = {frame.t}" for frame in frames)]
    rows = [[photograph, *map(_picture, column)] for column in _columns(frames)]
    return sheet(f"In training: {job.image_id}", caption, heads, ["x_t", "predicted x_0"], rows)


def _columns(frames: list[Frame]) -> tuple[list[Tensor], list[Tensor]]:
    return [frame.noisy for frame in frames], [frame.start for frame in frames]


def _animation(frames: list[Frame], result: Picture) -> bytes:
    """x_t and the predicted x_0 side by side, then the result, as an animated PNG."""
    pairs = [np.concatenate([_picture(f.noisy), _picture(f.start)], axis=1) for f in frames]
    pairs.append(np.concatenate([result, result], axis=1))
    factor = max(1, -(-READABLE // min(result.shape[:2])))
    pictures = [Image.fromarray(p.repeat(factor, 0).repeat(factor, 1)) for p in pairs]
    times, encoded = [_MILLISECONDS] * len(frames) + [4 * _MILLISECONDS], io.BytesIO()
    pictures[0].save(encoded, "PNG", save_all=True, append_images=pictures[1:], duration=times, loop=0)
    return encoded.getvalue()
