# SPDX-License-Identifier: Apache-2.0
"""One pass of the evaluators over 500 images against the sum of one script for each peer, values compared.

25 label maps, 20 samples each, 176x176: FID, LPIPS (AlexNet) and MS-SSIM of all pairs. The scripts are what people run:
pytorch-fid over a folder, lpips and pytorch-msssim pair by pair; each reads and decodes the PNGs for itself. Ours reads
an image set and writes its partials to disk. Same stand-in weights; one thread; the Fréchet distance itself is left out
on both sides (benchmarks/evaluate.py has it).

Run: python benchmarks/one_pass.py
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from evaluate import networks, pairwise_lpips, pairwise_structure, pictures, report, their_features
from numpy.typing import NDArray
from PIL import Image

from evaluators.lpips_backbone import seeded_network
from evaluators.measure import measure
from evaluators.networks import Networks
from evaluators.sources import open_images
from evaluators.weights import WeightStore
from sis.config.files import label_space, project_root
from sis.config.protocols import ProtocolCard
from sis.data.image_set import ImageSetMeta, finish_image_set, images_table, shard_name, write_shard
from sis.data.manifest import write_manifest
from sis.data.pair import Pair
from sis.data.pairs import pair_row
from sis.data.provenance import RunRecord
from sis.data.schemas import PAIRS as PAIR_SCHEMA
from sis.data.tables import write_table

MAPS, SAMPLES, SIDE = 25, 20, 176
CARD = ProtocolCard.model_validate(
    {
        "name": "one-pass",
        "title": "One pass",
        "dataset": "scenes",
        "split": "val",
        "reference": {"split": "train"},
        "samples": {"diversity": SAMPLES, "distribution": SAMPLES},
        "metrics": ["fid", "lpips", "ms_ssim"],
        "bootstrap": {"replicates": 10, "seed": 0},
        "version": 1,
    }
)


def write_sets(folder: Path, images: NDArray[np.uint8]) -> None:
    """The same pictures as an image set, as pairs with label maps, and as PNGs."""
    import pyarrow as pa

    ids = [f"map-{i:03d}" for i in range(MAPS)]
    keys = [(name, k) for name in ids for k in range(SAMPLES)]
    label = np.zeros((SIDE, SIDE), np.uint8)
    rows = [pair_row(Pair(name, images[i], label, None, ""), (SIDE, SIDE)) for i, name in enumerate(ids)]
    (folder / "pairs").mkdir()
    shard = folder / "pairs" / shard_name(0)
    write_table(pa.Table.from_pylist(rows, schema=PAIR_SCHEMA), shard, PAIR_SCHEMA)
    space = label_space("scenes")
    meta = {"dataset": "scenes", "split": "val", "size": [SIDE, SIDE], "labels": space.model_dump(mode="json")}
    write_manifest(folder / "pairs", "pairs", [shard], {**meta, "prepare": {}, "augmented": False, "edges": False},
                   RunRecord.start())  # fmt: skip
    write_shard(images_table(keys, images, 0), folder / "set" / shard_name(0), {})
    facts = {"dataset": "scenes", "split": "val", "run": "r", "run_id": "r-0", "method": "m", "title": "t",
             "kind": "images", "role": "contestant", "labels": "scenes", "size": [SIDE, SIDE], "seed": 0,
             "samples_per_map": SAMPLES, "sample_seed": 0, "batch_size": 1, "device": "cpu", "threads": 1,
             "sampling_seconds": None}  # fmt: skip
    finish_image_set(folder / "set", [shard_name(0)], ImageSetMeta.model_validate(facts), RunRecord.start(), {})
    (folder / "png").mkdir()
    for (name, k), image in zip(keys, images, strict=True):
        Image.fromarray(image).save(folder / "png" / f"{name}_{k:02d}.png")


def decoded(folder: Path) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted((folder / "png").iterdir())])


def groups(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images.reshape(MAPS, SAMPLES, SIDE, SIDE, 3)


def one_pass(folder: Path) -> dict[str, NDArray]:
    store = WeightStore.open(folder / "weights", project_root() / "config" / "weights.yaml")
    rows = measure(open_images(folder / "set", folder / "pairs", CARD), CARD, Networks(None, store), folder / "out")
    columns = {name.partition("-")[0]: r.columns for name, r in rows.items()}
    return {"fid": columns["fid"]["features"], **{k: columns[k]["pairs"] for k in ("lpips", "ms_ssim")}}


def scripts(folder: Path) -> dict[str, Callable[[], NDArray]]:
    """What people run for each number."""
    net, lpips_net = networks(folder)[0], seeded_network("alex")
    return {
        "fid": lambda: np.concatenate([their_features(net, x) for x in np.split(decoded(folder), 10)]),
        "lpips": lambda: np.stack([pairwise_lpips(lpips_net, x) for x in groups(decoded(folder))]),
        "ms_ssim": lambda: np.stack([pairwise_structure(x) for x in groups(decoded(folder))]),
    }


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_sets(folder, pictures(MAPS * SAMPLES, SIDE))
        theirs, seconds = {}, {}
        for name, script in scripts(folder).items():
            start = time.perf_counter()
            theirs[name] = script()
            seconds[name] = time.perf_counter() - start
            print(f"script for {name:<10} {seconds[name]:8.1f} s", flush=True)
        start = time.perf_counter()
        ours = one_pass(folder)
        taken = time.perf_counter() - start
    worst = 0.0
    for name, limit in (("fid", 1e-4), ("lpips", 1e-6), ("ms_ssim", 1e-6)):
        unit = np.abs(theirs[name]).max() if name == "fid" else 1.0
        gap = float(np.abs(ours[name].reshape(theirs[name].shape) - theirs[name]).max() / unit)
        assert gap <= limit, f"{name} differs by {gap}"
        worst = max(worst, gap)
    report("500 images, all three", sum(seconds.values()), taken, 2.5, worst)


if __name__ == "__main__":
    main()
