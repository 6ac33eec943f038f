# SPDX-License-Identifier: Apache-2.0
"""Semantic editing: a photograph is drawn anew where its label map was changed, and nowhere else (SDM, Sec. IV-G)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sis.config.files import label_space
from sis.data.atomic import write_bytes_atomic, write_text_atomic
from sis.data.contact_sheet import draw_sheet
from sis.data.images import encode_png, pixel_sha256
from sis.data.manifest import read_manifest
from sis.data.pair import Pair
from sis.data.policies import policy_of
from sis.data.provenance import RunRecord
from sis.data.raw import read_instance, read_label, read_photograph
from sis.diffusion import guards
from sis.diffusion.denoiser import Denoiser, Prediction
from sis.diffusion.noise import Noise
from sis.diffusion.pixels import to_uint8
from sis.diffusion.repaint import Resampling, evaluations, repaint
from sis.errors import SisError
from sis.plan import RunSpec
from sis.progress import Progress
from sis.sampling.diffusion_model import open_diffusion, refuse_other_methods

#: Pixels that the region is grown by unless somebody says otherwise.
GROW = 3
_ERASED = (0, 200, 80)  # the colour of the region on the sheet; the paper's figure erases in green, too


@dataclass(frozen=True)
class EditJob:
    """What to edit, with which model, and how.

    label, edited_label: grey PNGs of ids of the label table; instance, edited_instance: 16-bit PNGs, only for datasets
    whose instance edges are read from files. grow: pixels in each of the four directions. steps: of the chain, 0 for
    the run's own. seed: of the noise, -1 for the experiment's.
    """

    spec: RunSpec
    image: Path
    label: Path
    edited_label: Path
    out: Path
    model: Path | None = None
    instance: Path | None = None
    edited_instance: Path | None = None
    how: Resampling = field(default_factory=Resampling)
    grow: int = GROW
    steps: int = 0
    seed: int = -1
    samples: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class Scene:
    """A photograph with the label map that it has, the one that it shall have, and where it is drawn for that.

    photograph: uint8 `(h, w, 3)`; before, after: the label maps with their instances; region: bool `(h, w)`.
    """

    photograph: NDArray[np.uint8]
    before: Pair
    after: Pair
    region: NDArray[np.bool_]


def edit(job: EditJob) -> list[Path]:
    """Write the edited picture (`FILE_000.png`, ... for several samples), `FILE-sheet.png` and `FILE.json`.

    Raises SisError before anything is written: a run that cannot edit, pictures that are damaged or of another size,
    unknown ids, label maps that do not differ, a missing or unfit model.
    """
    run = RunRecord.start(device=job.device)
    if job.out.suffix != ".png" or job.samples < 1 or job.grow < 0:
        raise SisError("an edit needs a file called *.png, at least one sample, and a region grown by 0 or more pixels")
    refuse_other_methods(job.spec)
    scene = read_scene(job)
    pictures, facts = _draw(job, scene)
    sheet, record = job.out.with_name(f"{job.out.stem}-sheet.png"), job.out.with_suffix(".json")
    paths = _paths(job.out, job.samples)
    for path, picture in zip(paths, pictures, strict=True):
        write_bytes_atomic(path, encode_png(picture))
    write_bytes_atomic(sheet, _sheet(job, scene, pictures))
    facts |= {"run": run.finish(), "pictures": {p.name: pixel_sha256(x) for p, x in zip(paths, pictures, strict=True)}}
    write_text_atomic(record, json.dumps(facts, indent=1, sort_keys=True) + "\n")
    return [*paths, sheet, record]


def read_scene(job: EditJob) -> Scene:
    """Read and check all pictures of a job. Raises SisError as `edit` says."""
    photograph, _ = read_photograph(job.image, "refuse")
    before, after = _pair(job, job.label, job.instance), _pair(job, job.edited_label, job.edited_instance)
    _refuse_size(job, job.image, photograph.shape[:2])
    region = before.label != after.label
    if before.instance is not None and after.instance is not None:
        region |= before.instance != after.instance
    if not region.any():
        raise SisError("the two label maps do not differ: there is nothing to edit", where=job.edited_label)
    return Scene(photograph, before, after, grown(region, job.grow))


def grown(region: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """The region `(h, w)` and everything at most so many steps up, down, left or right away from it."""
    for _ in range(pixels):
        wider = region.copy()
        wider[1:] |= region[:-1]
        wider[:-1] |= region[1:]
        wider[:, 1:] |= region[:, :-1]
        wider[:, :-1] |= region[:, 1:]
        region = wider
    return region


def _pair(job: EditJob, label_path: Path, instance_path: Path | None) -> Pair:
    """A label map with its instances, of the dataset's size; its channels are checked."""
    card = job.spec.dataset
    label = read_label(label_path, card.files.palette)
    _refuse_size(job, label_path, label.shape)
    if label.dtype != np.uint8:
        raise SisError("label map of 16 bits; ids of a label table have 8", where=label_path)
    needed = card.edges and card.files.instances == "file"
    if needed and instance_path is None:
        fix = "give --instance and --edited-instance"
        raise SisError(f"methods see the instance edges of {card.name}, which label maps do not tell", fix=fix)
    if instance_path is not None and not needed:
        raise SisError(f"no method reads an instance map of {card.name}", where=instance_path, fix="leave it out")
    instance = None if instance_path is None else read_instance(instance_path, 16)
    if instance_path is not None and instance is not None:
        _refuse_size(job, instance_path, instance.shape)
    if card.files.instances == "label":
        instance = label.astype(np.uint16)
    pair = Pair(label_path.name, None, label, instance)
    _channels(job, pair)
    return pair


def _refuse_size(job: EditJob, path: Path, shape: tuple[int, ...]) -> None:
    (h, w), (height, width) = shape, job.spec.dataset.size
    if (h, w) != (height, width):
        fix = "`sis export` writes photographs and label maps of that size"
        raise SisError(f"a picture of {w}x{h}, {job.spec.dataset.name} has {width}x{height}", where=path, fix=fix)


def _channels(job: EditJob, pair: Pair) -> NDArray[np.uint8]:
    card = job.spec.dataset
    return policy_of(card.prepare, (card.size[0], card.size[1]), label_space(card.labels)).channels(pair)


@torch.inference_mode()
def _draw(job: EditJob, scene: Scene) -> tuple[list[NDArray[np.uint8]], dict]:
    """The samples, uint8 `(h, w, 3)`, and everything that decided them."""
    spec, device = job.spec, job.device
    opened = open_diffusion(spec, job.model, device, {"steps": job.steps} if job.steps else None)
    chain, seed = opened.diffusion.chain(), spec.sample_seed if job.seed < 0 else job.seed
    calls = evaluations(len(chain), job.how)
    instance = np.zeros(scene.region.shape, np.int64) if scene.after.instance is None else scene.after.instance
    labels = torch.from_numpy(_channels(job, scene.after)).long().to(device)[None]
    instances = torch.from_numpy(instance.astype(np.int64)).to(device)[None]
    original = torch.from_numpy(scene.photograph.copy()).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1
    region = torch.from_numpy(scene.region).to(device)[None, None]
    image_id, pictures = job.image.stem, []
    size = (scene.region.shape[0], scene.region.shape[1])
    with Progress(f"edit {job.image.name}", calls * job.samples, "evaluations") as progress, guards.fitting(1, size):
        denoiser = guards.finite(opened.diffusion.denoiser(labels, instances), [image_id])
        # One after another: a sample does not depend on how many are asked for, not even in its last bit.
        for sample in range(job.samples):
            noise = Noise(seed, ((image_id, sample),), device)
            x = repaint(_counted(denoiser, progress), chain, original, region, noise, job.how, opened.step)
            pictures.append(to_uint8(x, (image_id,))[0].permute(1, 2, 0).cpu().contiguous().numpy())
    facts = {
        "image_id": image_id, "seed": seed, "steps": chain.timesteps.tolist(), "resampling": asdict(job.how),
        "grow": job.grow, "evaluations": calls, "edited_pixels": int(scene.region.sum()), "dataset": spec.dataset.name,
        "run_name": spec.name, "method": spec.method.name, "sample": spec.sample,
        "model": "" if job.model is None else read_manifest(job.model, "model", verify=False).digest,
        "photograph": pixel_sha256(scene.photograph), "label": pixel_sha256(scene.before.label),
        "edited_label": pixel_sha256(scene.after.label),
    }  # fmt: skip
    return pictures, facts


def _counted(denoiser: Denoiser, progress: Progress) -> Denoiser:
    def denoise(x: Tensor, t: Tensor) -> Prediction:
        answer = denoiser(x, t)
        progress.update(1)
        return answer

    return denoise


def _paths(out: Path, samples: int) -> list[Path]:
    return [out] if samples == 1 else [out.with_name(f"{out.stem}_{sample:03d}.png") for sample in range(samples)]


def _sheet(job: EditJob, scene: Scene, pictures: list[NDArray[np.uint8]]) -> bytes:
    """Photograph, both label maps, the region and all samples in one row."""
    palette = label_space(job.spec.dataset.labels).palette()
    erased = np.where(scene.region[..., None], np.array(_ERASED, np.uint8), scene.photograph)
    heads = ["original", "label map", "edited label map", "region"]
    heads += ["result"] if job.samples == 1 else [f"sample {i}" for i in range(job.samples)]
    given = [scene.photograph, palette[scene.before.label], palette[scene.after.label], erased]
    how = f"{job.how.rounds} rounds, jump {job.how.jump}" if job.how.rounds > 1 else "one round (Eq. 12)"
    caption = f"{job.spec.title}; {how}; region grown by {job.grow} pixels; everything outside it is the original"
    return draw_sheet("Semantic editing", caption, heads, [job.image.stem], [[*given, *pictures]])
