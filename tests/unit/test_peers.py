# SPDX-License-Identifier: Apache-2.0
"""The whole path from a folder of PNGs to the score table against the packages that people know, by their own doors.

Both sides read the same files with the same seeded stand-in weights: pytorch-fid two folders, lpips and pytorch-msssim
pictures pair by pair; ours an image set, its partials and `score`. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import evaluators  # noqa: F401 - makes torchvision importable, which the peers want

# isort: split
import lpips
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_msssim import ms_ssim
from torch import Tensor

from evaluators.measure import Networks, measure_images, measure_reference
from evaluators.nets.inception import Inception
from evaluators.network import fill_seeded
from evaluators.score import score
from evaluators.weights import WeightCard, WeightStore
from sis.config.files import label_space, named
from sis.config.protocols import ProtocolCard
from sis.data.image_set import shard_name
from sis.data.manifest import write_manifest
from sis.data.pair import Pair
from sis.data.pairs import ROW_GROUP, pair_row
from sis.data.provenance import RunRecord
from sis.data.schemas import PAIRS
from sis.data.tables import table_writer
from sis.sampling.ingest import Import, export_pictures, import_folder

pytestmark = pytest.mark.slow

NETS = ("alex", "squeeze", "vgg")
#: Smallest side that five scales and a window of eleven leave possible is 161.
SIDES = (164, 168)


def pictures(rng: np.random.Generator, count: int, size: tuple[int, int], low: int) -> NDArray[np.uint8]:
    """Blocks of random colours `(count, h, w, 3)` no darker than `low`, of no regular size."""
    coarse = rng.integers(low, 256, (count, -(-size[0] // 9), -(-size[1] // 12), 3))
    return coarse.repeat(9, 1).repeat(12, 2)[:, : size[0], : size[1]].astype(np.uint8)


def variants(rng: np.random.Generator, count: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Noisy versions of one picture."""
    noise = rng.normal(0, 30, (count, *size, 3))
    return np.clip(pictures(rng, 1, size, 0) + noise, 0, 255).astype(np.uint8)


def write_pairs(folder: Path, split: str, photographs: NDArray[np.uint8]) -> None:
    size = (photographs.shape[1], photographs.shape[2])
    labels = np.zeros((len(photographs), *size), np.uint8)
    rows = [
        pair_row(Pair(f"{split}-{i:05d}", p, m, None, ""), size)
        for i, (p, m) in enumerate(zip(photographs, labels, strict=True))
    ]
    folder.mkdir(parents=True)
    with table_writer(folder / shard_name(0), PAIRS, {}) as append:
        for start in range(0, len(rows), ROW_GROUP):
            append(rows[start : start + ROW_GROUP])
    meta = {"dataset": "scenes_tiny", "split": split, "size": list(size), "prepare": {}, "augmented": False}
    meta |= {"labels": label_space("scenes").model_dump(mode="json"), "edges": False}
    write_manifest(folder, "pairs", [folder / shard_name(0)], meta, RunRecord.start())


def write_folder(folder: Path, images: dict[str, NDArray[np.uint8]]) -> Path:
    folder.mkdir(parents=True)
    for name, image in images.items():
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


def weight(folder: Path, name: str, tensors: dict[str, Tensor]) -> WeightCard:
    """A checked file of weights in the folder, as its publisher would list it."""
    path = folder / f"{name}.pth"
    torch.save(tensors, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    facts: dict[str, Any] = {"url": None, "bytes": path.stat().st_size, "licence": "none", "purpose": "test"}
    return WeightCard(name=name, file=path.name, sha256_prefix=digest, **facts)


def seeded_lpips(net: str) -> lpips.LPIPS:
    """The package's network with a backbone of random weights from a seed that our stand-in does not use."""
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as quiet:
        quiet.setattr("warnings.warn", lambda *_, **__: None)  # "pretrained is deprecated", twice
        torch.manual_seed(77)
        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval().requires_grad_(False)


@dataclass(frozen=True)
class World:
    """Weights that both sides are given, and where ours finds them."""

    root: Path
    store: WeightStore
    inception: dict[str, Tensor]
    lpips: dict[str, lpips.LPIPS]

    def scores(self, name: str, folder: Path, card: ProtocolCard, samples: int = 1) -> dict[str, dict[str, Any]]:
        """Rows of the score table of a folder of PNGs, by metric."""
        pattern = "{image_id}_{sample}.png" if samples > 1 else "{image_id}.png"
        out, val, train = self.root / name, self.root / f"{name}-val", self.root / f"{name}-train"
        names = (name, name, name, name)
        import_folder(Import(folder, val, out / "set", *names, pattern=pattern, samples_per_map=samples))
        networks = Networks(None, self.store)
        measure_images(out / "set", val, card, networks, out / "partials")
        measure_reference(train, card, networks, out / "reference")
        rows = score(out / "partials", out / "reference", card, out / "scores.parquet").to_pylist()
        assert all(row["stand_in"] == "" for row in rows), "the files were found and checked"
        return {row["metric"]: row for row in rows if row["class_name"] == ""}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("peers")
    network = Inception()
    fill_seeded(network, seed=7)
    inception = {**network.state_dict(), "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    cards, nets = [weight(root, "inception-fid", inception)], {}
    for net in NETS:
        nets[net] = seeded_lpips(net)
        # As torchvision publishes a backbone: `features.<i>`, which the package cuts into slices.
        state = {"features." + k.split(".", 1)[1]: v for k, v in nets[net].net.state_dict().items()}
        cards.append(weight(root, f"lpips-{net}", state))
    return World(root, WeightStore(root, tuple(cards)), inception, nets)


def card_of(**facts: Any) -> ProtocolCard:
    whole = named("protocols", "scenes-tiny", ProtocolCard).model_dump(mode="json")
    usual = {"scales": 5, "window": 11}
    return ProtocolCard.model_validate({**whole, "segmenter": None, "ms_ssim": usual, **facts})


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
def test_fid_of_a_folder_equals_pytorch_fids(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """More images than features, so that neither covariance is singular; the last batches are not full."""
    import pytorch_fid.inception
    from pytorch_fid.fid_score import calculate_fid_given_paths

    monkeypatch.setattr(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: world.inception)
    rng = np.random.default_rng(0)
    ours, real = pictures(rng, 75, (40, 56), 40), pictures(rng, 83, (40, 56), 0)
    write_pairs(world.root / "fid-val", "val", pictures(rng, 75, (40, 56), 0))
    write_pairs(world.root / "fid-train", "train", real)
    folder = write_folder(world.root / "made", {f"val-{i:05d}": image for i, image in enumerate(ours)})
    export_pictures(world.root / "fid-train", world.root / "real")
    card = card_of(metrics=["fid"], features={"options": {"dims": 64}}, batch_size=16)
    found = world.scores("fid", folder, card)["fid-64"]
    theirs = calculate_fid_given_paths([str(folder), str(world.root / "real")], 16, "cpu", 64, num_workers=0)
    assert found["value"] == pytest.approx(theirs, rel=1e-6) and found["n_images"] == 75
    assert theirs > 1e-3


@pytest.fixture(scope="module")
def diverse(world: World) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """Scores of a folder with three samples a label map, and the samples of each map as their files hold them."""
    rng, maps, samples = np.random.default_rng(1), 3, 3
    for split in ("val", "train"):
        write_pairs(world.root / f"diverse-{split}", split, pictures(rng, maps, SIDES, 0))
    made = {f"val-{i:05d}_{k}": x for i in range(maps) for k, x in enumerate(variants(rng, samples, SIDES))}
    folder = write_folder(world.root / "many", made)
    metrics = [{"metric": "lpips", "lpips": {"net": net}} for net in NETS]
    card = card_of(metrics=[*metrics, "ms_ssim"], samples={"diversity": samples})
    read = {name: np.asarray(Image.open(folder / f"{name}.png")) for name in made}
    stacks = [np.stack([read[f"val-{i:05d}_{k}"] for k in range(samples)]) for i in range(maps)]
    tensors = {f"val-{i:05d}": torch.from_numpy(s).permute(0, 3, 1, 2).float() for i, s in enumerate(stacks)}
    return world.scores("diverse", folder, card, samples), tensors


def mean_of_pairs(stacks: dict[str, Tensor], compare: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The mean over label maps of the mean over pairs of their samples."""
    with torch.inference_mode():
        means = [
            np.mean([compare(a[None], b[None]).item() for a, b in combinations(samples, 2)])
            for samples in stacks.values()
        ]
    return float(np.mean(means))


@pytest.mark.parametrize("net", NETS)
def test_lpips_of_a_folder_equals_the_packages(
    world: World, diverse: tuple[dict[str, dict[str, Any]], dict[str, Tensor]], net: str
) -> None:
    rows, stacks = diverse
    theirs = mean_of_pairs({k: x / 127.5 - 1 for k, x in stacks.items()}, world.lpips[net])
    assert rows[f"lpips-{net}"]["value"] == pytest.approx(theirs, abs=1e-6) and theirs > 1e-3


def test_ms_ssim_of_a_folder_equals_the_packages(
    diverse: tuple[dict[str, dict[str, Any]], dict[str, Tensor]],
) -> None:
    rows, stacks = diverse
    theirs = mean_of_pairs(stacks, lambda a, b: ms_ssim(a, b, data_range=255))
    assert rows["ms-ssim"]["value"] == pytest.approx(theirs, abs=1e-6) and 0.1 < theirs < 0.99
