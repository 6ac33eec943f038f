# SPDX-License-Identifier: Apache-2.0
"""Writes miniatures: `python tests/miniatures --out data/mini [--dataset NAME] [--trap TRAP]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from miniatures import COUNTS, DATASETS, write
from miniatures.traps import TRAPS, spring
from sis.errors import refusing_in_one_line


def main() -> None:
    """Write all five miniatures below --out, or one of them, or one with a trap in it."""
    known = "\n".join(f"  {name:<24}{trap.dataset}: {trap.story}" for name, trap in TRAPS.items())
    parser = argparse.ArgumentParser(
        prog="python tests/miniatures", description=__doc__, epilog=f"traps:\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder in which each dataset gets a folder")
    parser.add_argument("--dataset", choices=DATASETS, help="only this one")
    parser.add_argument("--trap", choices=TRAPS, metavar="TRAP", help="alter the one file that this trap is about")
    parser.add_argument("--train", type=int, default=COUNTS["train"], help="training pairs")
    parser.add_argument("--val", type=int, default=COUNTS["val"], help="validation pairs")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="size of photographs")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other pictures")
    chosen = parser.parse_args()
    if chosen.trap and chosen.dataset not in (None, TRAPS[chosen.trap].dataset):
        parser.error(f"the trap {chosen.trap} is one of {TRAPS[chosen.trap].dataset}")
    only = TRAPS[chosen.trap].dataset if chosen.trap else chosen.dataset
    size = (chosen.size[0], chosen.size[1]) if chosen.size else None
    for name in [only] if only else DATASETS:
        counts = {"train": chosen.train, "val": chosen.val}
        miniature = write(name, chosen.out / name, counts, size, chosen.seed)
        if chosen.trap:
            spring(chosen.trap, miniature)
        written = ", ".join(f"{len(samples)} {split}" for split, samples in miniature.samples.items())
        sys.stdout.write(f"{miniature.root}: {written}\n")


if __name__ == "__main__":
    with refusing_in_one_line():
        main()
