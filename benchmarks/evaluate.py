# SPDX-License-Identifier: Apache-2.0
"""The evaluators against the packages they stand for: same inputs, same stand-in weights, equality asserted.

Each part takes turns with its peer in every round, on one thread, and prints for both wall-clock seconds and processor
seconds (medians of the rounds), the median of the rounds' ratios of either clock, and the largest difference of the
results. Goals are judged by the wall clock; where others use the machine, the processor's clock is the steadier one.

The peers: lpips 0.1.4 and pytorch-msssim 1.0.0 pair by pair; pytorch-fid 0.3.0, its Fréchet function and its network as
its script runs it, 50 images a batch, each made a tensor by its own ToTensor (both sides begin with 8-bit images in
memory: nobody decodes a PNG), and with 16, which suits it better; a loop over classes for the confusion matrix. One
pass over 500 images is benchmarks/one_pass.py.

Run: python benchmarks/evaluate.py [PART ...]     parts: lpips ms_ssim frechet inception confusion (default: all)
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluators  # noqa: F401 - makes torchvision importable, which the peers want

# isort: split
import lpips
import numpy as np
import pytorch_fid.inception
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_fid.fid_score import calculate_frechet_distance
from pytorch_msssim import ms_ssim
from torchvision.transforms.functional import to_tensor

from evaluators.confusion import confusions
from evaluators.features import inception
from evaluators.frechet import Target
from evaluators.lpips_backbone import LpipsBackbone, seeded_network
from evaluators.nets.inception import Inception
from evaluators.network import Source, fill_seeded
from evaluators.structural import pairwise_ms_ssim
from sis.config.files import label_space

SAMPLES = 20
PAIRS = [(i, j) for i in range(SAMPLES) for j in range(i + 1, SAMPLES)]
#: Images of a batch of pytorch-fid's script, unless told otherwise.
FID_BATCH = 50
#: Wall-clock and processor seconds of one run.
Seconds = tuple[float, float]


def turns(
    title: str, theirs: Callable[[], NDArray], ours: Callable[[], NDArray], goal: float, limit: float, rounds: int = 3
) -> None:
    """Run both in turn; the results must agree to `limit` of the largest value."""
    seconds: dict[str, list[Seconds]] = {"theirs": [], "ours": []}
    found: dict[str, NDArray] = {}
    for _ in range(rounds):
        for name, function in (("theirs", theirs), ("ours", ours)):
            wall, processor = time.perf_counter(), time.process_time()
            found[name] = np.asarray(function(), np.float64)
            seconds[name].append((time.perf_counter() - wall, time.process_time() - processor))
    gap = float(np.abs(found["ours"] - found["theirs"]).max())
    assert gap <= limit * max(1e-12, float(np.abs(found["theirs"]).max())), f"{title}: differs by {gap}"
    report(title, seconds["theirs"], seconds["ours"], goal, gap)


def report(title: str, theirs: list[Seconds], ours: list[Seconds], goal: float, gap: float) -> None:
    shown, ratios = [], []
    for clock in (0, 1):
        a, b = ([s[clock] for s in side] for side in (theirs, ours))
        ratios.append(statistics.median(x / y for x, y in zip(a, b, strict=True)))
        shown.append(f"{statistics.median(a):8.3f} {statistics.median(b):8.3f} {ratios[-1]:6.2f} x")
    kept = f"goal {goal:g} x" + ("" if ratios[0] >= goal else " NOT REACHED")
    print(f"{title:<34} {shown[0]}   {shown[1]}   {len(ours)} rounds   {kept}   differs by {gap:.1e}", flush=True)


def pictures(count: int, side: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth random pictures `(count, side, side, 3)`."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, side // 8, side // 8, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(x).resize((side, side), Image.Resampling.BICUBIC)) for x in small])


def pairwise_lpips(net: lpips.LPIPS, images: NDArray[np.uint8]) -> NDArray:
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        return np.array([net(x[i : i + 1], x[j : j + 1]).item() for i, j in PAIRS])


def pairwise_structure(images: NDArray[np.uint8]) -> NDArray:
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        return np.array([ms_ssim(x[i : i + 1], x[j : j + 1], data_range=1.0).item() for i, j in PAIRS])


def part_lpips() -> None:
    for name, side in (("alex", 128), ("alex", 256), ("vgg", 64)):
        net, images = seeded_network(name), pictures(SAMPLES, side)
        ours = LpipsBackbone(net)
        turns(f"LPIPS {name} {side} px, 190 pairs", lambda n=net, x=images: pairwise_lpips(n, x),
              lambda o=ours, x=images: o.pairwise(x), 15, 1e-6)  # fmt: skip


def part_ms_ssim() -> None:
    for side in (176, 256):
        images = pictures(SAMPLES, side)
        turns(f"MS-SSIM {side} px, 190 pairs", lambda x=images: pairwise_structure(x),
              lambda x=images: pairwise_ms_ssim(x, 5, 11), 4, 1e-6, rounds=7)  # fmt: skip


def part_frechet() -> None:
    rng = np.random.default_rng(0)
    scale = np.arange(1, 2049) ** -0.5
    for n, goal in ((500, 100.0), (5000, 3.0)):
        one, two = (rng.normal(size=(n, 2048)) * scale + shift for shift in (0.0, 0.01))

        def theirs(a: NDArray = one, b: NDArray = two) -> NDArray:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in (a, b)]
                return np.array([calculate_frechet_distance(*moments[0], *moments[1])])

        turns(
            f"Frechet distance, n = {n:,}",
            theirs,
            lambda a=one, b=two: np.array([Target.of(b).distance(a)]),
            goal,
            1e-4,
        )


def networks(folder: Path) -> tuple[Any, Any]:
    """pytorch-fid's network and ours with the same stand-in weights."""
    made = Inception()
    fill_seeded(made)
    state = {**made.state_dict(), "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save(state, folder / "inception.pth")
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: state  # in place of its download
    return pytorch_fid.inception.InceptionV3([3]).eval(), inception.load({}, Source([folder / "inception.pth"]))


def their_features(net: Any, images: NDArray[np.uint8]) -> NDArray:
    """As pytorch-fid's get_activations takes them."""
    with torch.no_grad():
        return net(torch.stack([to_tensor(image) for image in images]))[0][:, :, 0, 0].numpy()


def part_inception() -> None:
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = networks(Path(folder))
    for count in (FID_BATCH, 16):
        images = pictures(count, 256)
        turns(f"Inception, batch of {count} of 256 px", lambda x=images: their_features(theirs, x),
              lambda x=images: ours.features(x), 1.4, 1e-4, rounds=5)  # fmt: skip


def looped_confusion(labels: NDArray, predicted: NDArray, classes: int) -> NDArray:
    """A row for each class: what is predicted where the label map has it."""
    return np.stack([np.bincount(predicted[labels == i], minlength=classes) for i in range(classes)])


def part_confusion() -> None:
    space, rng = label_space("cityscapes"), np.random.default_rng(0)
    ids = np.array(space.evaluated_ids, np.uint8)
    labels, predicted = (rng.choice(ids, (4, 256, 512)) for _ in range(2))
    place = np.zeros(256, np.int64)
    place[ids] = np.arange(len(ids))
    turns("confusion, 4 maps 256x512", lambda: looped_confusion(place[labels], place[predicted], len(ids)),
          lambda: confusions(labels, predicted, space).sum(0), 5, 0)  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    parts = {name.removeprefix("part_"): f for name, f in globals().items() if name.startswith("part_")}
    unknown = set(sys.argv[1:]) - set(parts)
    if unknown:
        sys.exit(f"no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    print(f"torch {torch.__version__}, one thread; medians of the rounds")
    print(f"{'':<34} {'wall clock, s: peer, ours, ratio':<29}   processor, s: peer, ours, ratio")
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()
