# SPDX-License-Identifier: Apache-2.0
"""What to sample and where everything lies; which shards there are and which of them are missing.

Nothing here loads torch: the launcher of a cluster asks the same questions while its jobs do the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sis.data.manifest import read_manifest, stable_hash
from sis.data.pairs import PairSet
from sis.data.tables import table_metadata
from sis.errors import SisError
from sis.notice import NEVER, Notice
from sis.plan import RunSpec
from sis.sampling.shards import Cut, all_keys, cut


@dataclass(frozen=True)
class SampleJob:
    """What to sample and where everything lies.

    shards: number of equal shards, 0 for shards of the experiment's size. only: indices of the shards to make, none for
    all. uses: the models of other methods, by role. styles: pairs that reference photographs come from. notice: looked
    at between batches.
    """

    spec: RunSpec
    pairs: Path
    out: Path
    model: Path | None = None
    prior: Path | None = None
    device: str = "cpu"
    shards: int = 0
    only: Sequence[int] = ()
    uses: dict[str, Path] = field(default_factory=dict)
    styles: Path | None = None
    notice: Notice = NEVER

    def open_pairs(self) -> PairSet:
        """The pairs whose label maps are drawn; raises SisError for those of another split."""
        pairs = PairSet.open(self.pairs)
        found, wanted = (pairs.dataset, pairs.split), (self.spec.dataset.name, self.spec.protocol.split)
        if found != wanted:
            raise SisError(f"these are the pairs of {'/'.join(found)}, the run needs {'/'.join(wanted)}")
        return pairs

    def inputs(self) -> list[str]:
        """What is inside the artefacts of other stages."""
        others = {f"uses {role}": path for role, path in sorted(self.uses.items())}
        others |= {"styles": self.styles} if self.styles else {}
        return [_digest(path) for path in (self.pairs, self.model, self.prior, *others.values())]

    @property
    def key(self) -> str:
        """Name of everything that decides the pictures, but the device."""
        return stable_hash([self.spec.run_id, self.inputs()], 16)

    def parts(self, pairs: PairSet, device: str) -> list[Cut]:
        """Every shard of the set, with its key on a device, given by name."""
        # The device is part of what fixes the bits, so shards of another device are not continued.
        key = stable_hash([self.spec.run_id, self.inputs(), device], 16)
        return cut(all_keys(pairs.ids, self.spec.samples_per_map), self.spec.shard_size, self.shards, key)

    def chosen(self, parts: list[Cut]) -> list[Cut]:
        """The shards that were asked for."""
        beyond = [index for index in self.only if index >= len(parts)]
        if beyond:
            raise SisError(f"shard {beyond[0]} was asked for, there are {len(parts)} (0..{len(parts) - 1})")
        return [parts[index] for index in sorted(set(self.only))] if self.only else parts

    def missing(self, pairs: PairSet) -> list[int]:
        """Indices of the shards that no device has finished yet; pictures are not looked at."""
        devices = sorted(set(self.devices(pairs).values()))
        made = {p.index for device in devices for p in self.parts(pairs, device) if is_made(self.out, p)}
        return [part.index for part in self.parts(pairs, "") if part.index not in made]

    def devices(self, pairs: PairSet) -> dict[int, str]:
        """The device that each shard was made on, of those that can be read."""
        named = {part.index: _device(self.out / part.name) for part in self.parts(pairs, "")}
        return {index: device for index, device in named.items() if device}


def is_made(folder: Path, part: Cut) -> bool:
    """Whether a shard was written by this very run; `shard_is_good` looks at every picture, too."""
    return _metadata(folder / part.name).get("key") == part.key


def _device(shard: Path) -> str:
    return str(_metadata(shard).get("run", {}).get("device", ""))


def _metadata(shard: Path) -> dict:
    try:
        return table_metadata(shard) if shard.is_file() else {}
    except SisError:
        return {}


def _digest(path: Path | None) -> str:
    return read_manifest(path, verify=False).digest if path else ""
