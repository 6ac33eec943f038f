# SPDX-License-Identifier: Apache-2.0
"""A made-up but realistic experiment for the tests of the publish stage: scores, pictures, timings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa

from sis.data.labels import LabelClass, LabelSpace
from sis.data.schemas import SCORES
from sis.data.tables import write_table
from sis.publish.context import DatasetPublish, PublishContext, StageTiming

HOSTILE = "<script>window.hacked = true; alert(1)</script> & 50%_x"
#: metric -> protocol id; every metric has its own
PROTOCOL_IDS = {
    "miou": "524b3306b525b54d",
    "iou": "524b3306b525b54d",
    "accuracy": "fd3ae140d775e6dd",
    "fd-scenes-segmenter": "3c7ac73830ba141f",
    "lpips-alex[stand-in:seeded-random-backbone]": "3701f33c287f43bd",
    "ms-ssim": "540e29e30a63541f",
    "images-per-second": "bd190a8659767f41",
}
REPLICATES = 200

CLASSES = [
    ("sky", [116, 167, 214]),
    ("building", [140, 132, 125]),
    ("road", [86, 86, 92]),
    ("sidewalk", [196, 182, 164]),
    ("vegetation", [87, 130, 71]),
    ("car", [44, 74, 140]),
    ("person", [200, 62, 70]),
    ("pole", [70, 62, 58]),
    ("sign", [232, 186, 60]),
    ("terrain", [160, 178, 112]),
]

#: title, method, kind, role, mIoU %, images/s
RUNS = [
    ("SDM", "sdm", "python", "contestant", 61.8, 0.42),
    ("SDM + categorical prior", "sdm-scp", "python", "contestant", 62.3, 0.41),
    ("IIDM, three priors", "iidm", "python", "contestant", 57.4, 1.9),
    ("ControlNet, latent", "controlnet", "python", "contestant", 54.9, 2.3),
    ("SPADE", "spade", "python", "contestant", 49.6, 118.0),
    ("OASIS, released images", "oasis", "images", "contestant", 56.9, None),
    ("pix2pixHD via container", "pix2pixhd", "command", "contestant", 41.2, 74.0),
    ("Concat baseline", "concat", "python", "contestant", 47.3, 0.9),
    ("Real images", "real", "rule", "control", 78.4, None),
    ("Real images, mismatched", "mismatched", "rule", "control", 12.7, None),
    ("Blurred real", "blurred", "rule", "control", 52.0, None),
    ("Class-mean colour", "class-mean", "rule", "control", 35.1, None),
    ("Palette", "palette", "rule", "control", 9.3, None),
]

#: metric, unit, direction, stand-in, half width, value from (mIoU share, generator)
METRICS = [
    ("miou", "%", "higher", "", 1.1, lambda q, r: 100 * q),
    ("accuracy", "%", "higher", "", 0.6, lambda q, r: 100 * (0.45 + 0.6 * q)),
    ("fd-scenes-segmenter", "", "lower", "", 1.6, lambda q, r: 92 * (0.95 - q) + 6 * r.random()),
    ("lpips-alex[stand-in:seeded-random-backbone]", "", "higher", "seeded-random-backbone", 0.012,
     lambda q, r: 0.12 + 0.3 * r.random()),
    ("ms-ssim", "", "lower", "", 0.02, lambda q, r: 0.25 + 0.4 * r.random()),
]  # fmt: skip


def label_space() -> LabelSpace:
    classes = [LabelClass(id=i, name=name, colour=colour) for i, (name, colour) in enumerate(CLASSES)]
    return LabelSpace(name="scenes", void=255, classes=classes)


def score(**given: Any) -> dict[str, Any]:
    """One row of the scores schema, with defaults for everything that is not given."""
    row = {
        "dataset": "scenes", "protocol": "scenes", "protocol_id": "", "run": "run", "run_id": "run-00000000",
        "method": "method", "title": "Title", "kind": "python", "role": "contestant", "seed": 7, "metric": "miou",
        "class_name": "", "value": 50.0, "low": 49.0, "high": 51.0, "unit": "%", "direction": "higher",
        "n_images": 500, "n_maps": 250, "stand_in": "", "note": "", "replicates": [],
    }  # fmt: skip
    assert not given.keys() - row.keys()
    row |= given
    return row | {"protocol_id": row["protocol_id"] or PROTOCOL_IDS[row["metric"]]}


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as the frame that reading score files gives."""
    return pa.Table.from_pylist(rows, schema=SCORES).to_pandas()


def sampled(value: float, half_width: float, seed: int) -> dict[str, Any]:
    """A value with an interval and replicates around it."""
    shared = np.random.default_rng(11).normal(size=REPLICATES)  # what all runs share: the drawn label maps
    own = np.random.default_rng(seed).normal(size=REPLICATES)
    replicates = value + half_width / 1.96 * (0.8 * shared + 0.6 * own)
    low, high = np.quantile(replicates, [0.025, 0.975])
    return {"value": value, "low": float(low), "high": float(high), "replicates": replicates.tolist()}


def run_id(method: str) -> str:
    return f"{method}-{abs(hash_of(method)):08x}"


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode(), "little") % (1 << 32)


def score_rows(hostile: bool = False, dataset: str = "scenes") -> list[dict[str, Any]]:
    """All numbers of the example; `hostile` puts a script into one title."""
    rows = []
    for number, (title, method, kind, role, miou, speed) in enumerate(RUNS):
        random = np.random.default_rng(number + len(dataset))
        common = {
            "dataset": dataset, "run": method, "run_id": run_id(method), "method": method, "kind": kind, "role": role,
            "title": HOSTILE if hostile and method == "concat" else title, "seed": 0 if kind == "rule" else 7,
        }  # fmt: skip
        for metric, unit, direction, stand_in, half, value in METRICS:
            numbers = sampled(value(miou / 100, random), half, number)
            if metric == "ms-ssim" and role == "control":
                numbers = {"value": None, "low": None, "high": None, "note": "one image a map: no pairs"}
            facts = {"metric": metric, "unit": unit, "direction": direction, "stand_in": stand_in}
            rows.append(score(**common, **facts, **numbers))
        if speed is not None:
            facts = {"metric": "images-per-second", "unit": "images/s", "direction": "higher"}
            rows.append(score(**common, **facts, value=speed, low=None, high=None, note="cpu, 2 threads, batch 16"))
        else:
            facts = {"metric": "images-per-second", "unit": "images/s", "direction": "higher", "value": None}
            rows.append(score(**common, **facts, low=None, high=None, protocol_id="0" * 16, note="nothing was sampled"))
        for name, _ in CLASSES:
            value = float(np.clip(miou + random.normal(0, 14), 1, 97))
            rows.append(score(**common, metric="iou", class_name=name, **sampled(value, 2.0, number)))
    return rows


def with_seeds(methods: tuple[str, ...]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The example with two more training seeds of some methods, and the group of each of their runs by id."""
    rows, groups = score_rows(), {run_id(method): method for method in methods}
    for row in [row for row in rows if row["method"] in methods]:
        for seed in (8, 9):
            own = f"{row['run_id'][:-8]}{seed:08x}"
            groups[own] = row["method"]
            moved = {"run": f"{row['run']}-{seed}", "run_id": own, "seed": seed}
            if row["value"] is not None:
                step = 0.01 * (seed - 7) * row["value"]
                moved |= {"value": row["value"] + step, "replicates": [r + step for r in row["replicates"]]}
            rows.append(row | moved)
    return rows, groups


def write_scores(folder: Path, rows: list[dict[str, Any]]) -> list[Path]:
    """Write one score file a run and dataset."""
    table = frame(rows)
    paths = []
    for _, group in table.groupby(["dataset", "run_id", "protocol"]):
        first = group.iloc[0]
        paths.append(folder / first["dataset"] / first["run_id"] / f"{first['protocol']}.parquet")
        write_table(pa.Table.from_pandas(group, schema=SCORES, preserve_index=False), paths[-1], SCORES)
    return paths


def label_map(seed: int, size: int) -> np.ndarray:
    """A toy street: sky, buildings, trees, road, cars."""
    random = np.random.default_rng(seed)
    label = np.zeros((size, size), np.uint8)
    horizon = int(size * random.uniform(0.45, 0.6))
    x = 0
    while x < size:
        width = int(random.integers(size // 8, size // 3))
        label[int(random.uniform(0.1, 0.4) * size) : horizon, x : x + width] = random.choice([1, 1, 4])
        x += width + int(random.integers(0, size // 10))
    label[horizon:] = 2
    label[horizon : horizon + size // 12] = 3
    for _ in range(3):
        y, x = int(random.integers(horizon, size - 12)), int(random.integers(0, size - 14))
        label[y : y + size // 8, x : x + size // 5] = 5
    label[horizon - size // 4 : horizon + 3, size // 3 : size // 3 + 2] = 7
    return label


def photograph(label: np.ndarray, seed: int, noise: float) -> np.ndarray:
    random = np.random.default_rng(seed)
    tone = random.normal(0, 12, (256, 3))
    palette = label_space().palette()
    picture = palette[label] + tone[label] + random.normal(0, noise, (*label.shape, 3))
    return np.clip(picture, 0, 255).astype(np.uint8)


class FakePairs:
    """A judged split in memory."""

    def __init__(self, count: int, size: int, photographs: bool = True) -> None:
        self.photographs = photographs
        self.ids = [f"scene-{i:04d}" for i in range(count)]
        self.size = (size, size)

    def by_id(self, image_id: str) -> SimpleNamespace:
        seed = self.ids.index(image_id)
        label = label_map(seed, self.size[0])
        return SimpleNamespace(image_id=image_id, label=label, photograph=self._photograph(label, seed))

    def _photograph(self, label: np.ndarray, seed: int) -> np.ndarray | None:
        return photograph(label, seed, 10) if self.photographs else None


@dataclass(frozen=True)
class FakeImages:
    """An image set in memory."""

    pairs: FakePairs
    noise: float
    samples: int
    meta: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    def keys(self) -> list[tuple[str, int]]:
        return [(image_id, index) for image_id in self.pairs.ids for index in range(self.samples)]

    def get(self, image_id: str, sample_index: int) -> np.ndarray:
        seed = 1000 * self.pairs.ids.index(image_id) + sample_index
        return photograph(self.pairs.by_id(image_id).label, seed + int(self.noise), self.noise)


def pictures(count: int = 40, size: int = 64, photographs: bool = True) -> DatasetPublish:
    pairs = FakePairs(count, size, photographs)
    sets = {}
    for number, (_, method, kind, role, _, _) in enumerate(RUNS):
        samples = 1 if role == "control" or kind == "images" else 4
        meta = {"samples_per_map": samples, "batch_size": 16, "sampling_seconds": 61.7 * (number + 1),
                "device": "cpu", "threads": 2}  # fmt: skip
        run = {"host": "node-17", "commit": "0123456789abcdef0123456789abcdef01234567"}
        sets[run_id(method)] = FakeImages(pairs, 6.0 + 5 * number, samples, meta, run)
    return DatasetPublish(cast(Any, pairs), cast(Any, sets), label_space())


def timings() -> list[StageTiming]:
    plan = [("prepare", 2, 21, 0), ("train", 6, 640, 25), ("prior", 3, 44, 520), ("sample", 13, 210, 690),
            ("evaluate", 13, 75, 930), ("publish", 1, 6, 1310)]  # fmt: skip
    found = []
    for stage, jobs, seconds, start in plan:
        for job in range(jobs):
            length = seconds * (0.6 + 0.4 * np.sin(job) ** 2)
            begin = start + job * seconds * 0.15
            found.append(
                StageTiming(stage, f"{stage}-{job}", float(length), _moment(begin), _moment(begin + length),
                            int(4e8 + 2.4e8 * job), "node-17" if job % 2 else "node-18")
            )  # fmt: skip
    return found


def _moment(seconds: float) -> str:
    return (pd.Timestamp("2026-01-05T09:00:00+00:00") + pd.Timedelta(seconds=seconds)).isoformat()


def published() -> pd.DataFrame:
    """Papers' numbers for two of the runs."""
    columns = ["paper", "table", "dataset", "method", "variant", "metric", "value", "direction", "note"]
    rows = [
        ["SDM", "Table I", "scenes", "sdm", "", "mIoU", 63.1, "higher", "made up for this test"],
        ["SDM", "Table I", "scenes", "spade", "", "mIoU", 48.2, "higher", ""],
        ["SDM", "Table I", "elsewhere", "spade", "", "mIoU", 11.0, "higher", ""],
        ["SDM", "Table I", "scenes", "sdm", "", "lpips-alex", 0.5, "higher", ""],
    ]
    return pd.DataFrame(rows, columns=columns)


def protocol(metric: str) -> dict[str, object]:
    return {
        "version": 1,
        "dataset": "scenes",
        "split": "val",
        "pairs_sha256": "9b1f" * 16,
        "label_maps": 250,
        "samples_per_map": 2 if metric.startswith(("lpips", "ms-ssim")) else 1,
        "size": [64, 64],
        "metric": metric,
        "settings": {"class_rule": "union"} if metric == "miou" else {},
        "network": {"name": "scenes-segmenter", "sha256": "77aa" * 16} if metric in ("miou", "accuracy") else None,
        "reference": None,
        "bootstrap": {"replicates": 400, "seed": 20},
    }


def context(datasets: tuple[str, ...] = ("scenes",), with_papers: bool = False) -> PublishContext:
    return PublishContext(
        experiment="scenes-main",
        title="Semantic image synthesis on procedural scenes",
        description="Thirteen ways to turn a label map into an image, judged by one set of evaluators: does the "
        "picture show what the map says, does it look like the data, and do samples differ?",
        datasets={name: pictures() for name in datasets},
        timings=timings(),
        commands={
            run_id(method): f"sis sample --run {method} --dataset scenes --split val --out artefacts/images/scenes/"
            f"{run_id(method)}"
            for _, method, _, role, _, _ in RUNS
            if role == "contestant"
        },
        protocols={protocol_id: protocol(metric) for metric, protocol_id in PROTOCOL_IDS.items() if metric != "iou"},
        published=published() if with_papers else None,
    )
