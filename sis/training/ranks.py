# SPDX-License-Identifier: Apache-2.0
"""The processes of one training: torchrun starts them, each works on its part of every batch, the first one writes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from sis.errors import SisError, first_of

Value = TypeVar("Value")

#: The first process may draw pictures and write states while the others wait.
_PATIENCE = timedelta(hours=2)
#: Seconds that the others let the first one speak before they end: torchrun stops all when one has ended.
_GRACE = 5.0
#: Numbers that are summed over the processes at a time: 128 MiB of float32.
_BUCKET = 2**25


@dataclass(frozen=True)
class Ranks:
    """This process among those of one training; alone, every method is a formality.

    rank: 0-based. device: of the tensors that are exchanged.
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks to people."""
        return self.rank == 0

    def refuse(self, error: SisError) -> NoReturn:
        """Raise an error that all processes have found alike: the first one says it, the others end in silence."""
        if self.first:
            raise error
        time.sleep(_GRACE)
        raise SystemExit(error.exit_code)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What every process does for itself; if some refuse, all end, and the first one says why."""
        mine: list[str] = []
        try:
            yield
        except SisError as error:
            if self.count == 1:
                raise
            mine = [error.what, "" if error.where is None else str(error.where), error.fix]
        if self.count > 1:
            everyone = [json.loads(text) for text in self._texts(json.dumps(mine))]
            failed = [number for number, words in enumerate(everyone) if words]
            if failed:
                what, where, fix = everyone[failed[0]]
                what = what if len(failed) == self.count else f"process {failed[0]}: {what}"
                self.refuse(SisError(what, where=where or None, fix=fix))

    def share(self, value: Value) -> Value:
        """The first process' value, plain JSON data; what the others give is not looked at."""
        if self.count == 1:
            return value
        return json.loads(self._texts(json.dumps(value))[0])

    def agree(self, facts: Mapping[str, str]) -> None:
        """Raise SisError unless all processes have the same facts, naming those that differ."""
        if self.count == 1:
            return
        everyone = [json.loads(text) for text in self._texts(json.dumps(dict(facts)))]
        for number, theirs in enumerate(everyone):
            other = [name for name, value in everyone[0].items() if theirs.get(name) != value]
            if other:
                what = f"process {number} has another {' and another '.join(other)} than process 0"
                self.refuse(SisError(what, fix="start all processes from the same code, configuration and data"))

    def any(self, *mine: bool) -> tuple[bool, ...]:
        """Of each fact, whether it holds in some process: each is told at a moment of its own, all act on one step."""
        if self.count == 1:
            return mine
        told = torch.tensor(mine, dtype=torch.int32, device=self.device)
        self._together(lambda: dist.all_reduce(told))
        return tuple(bool(number) for number in told.tolist())

    def gather(self, values: Tensor) -> Tensor:
        """The values `(k, n)` of all processes one after another, `(k, n count)`."""
        if self.count == 1:
            return values
        everyone = [torch.empty_like(values) for _ in range(self.count)]
        self._together(lambda: dist.all_gather(everyone, values.contiguous()))
        return torch.cat(everyone, dim=1)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all processes."""
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([t.flatten() for t in bucket])
            self._together(lambda flat=flat: dist.all_reduce(flat))
            flat /= self.count
            for tensor, mean in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def spread(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first process' tensors, on the CPU of each; the others give none."""
        if self.count == 1:
            return dict(tensors)
        layout = self.share({n: [str(t.dtype).removeprefix("torch."), *t.shape] for n, t in tensors.items()})
        received: dict[str, Tensor] = {}
        for name, (dtype, *shape) in layout.items():
            there = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
            if self.first:
                there.copy_(tensors[name])
            self._together(lambda there=there: dist.broadcast(there, 0))
            received[name] = there.cpu()
        return received

    def check_same(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise SisError unless all processes hold the same bytes; a checksum stands for each tensor."""
        if self.count == 1:
            return
        sums = [t.detach().contiguous().flatten().view(torch.uint8).sum(dtype=torch.int64) for t in tensors.values()]
        everyone = self.gather(torch.stack([s.to(self.device) for s in sums])[:, None])
        differ = (everyone != everyone[:, :1]).any(1).tolist()
        if any(differ):
            names = first_of(name for name, other in zip(tensors, differ, strict=True) if other)
            fix = "start again with the same hardware and software in every process"
            self.refuse(SisError(f"the processes no longer hold the same weights: {names}", fix=fix))

    def wait(self) -> None:
        """Wait until all processes have come so far."""
        self.share(None)

    def _texts(self, text: str) -> list[str]:
        """A text of every process."""
        data = torch.tensor(list(text.encode()), dtype=torch.uint8, device=self.device)
        sizes = self.gather(torch.tensor([[len(data)]], device=self.device))[0].tolist()
        padded = torch.zeros(1, max(sizes), dtype=torch.uint8, device=self.device)
        padded[0, : len(data)] = data
        rows = self.gather(padded).view(self.count, -1).cpu()
        return [bytes(row[:size].tolist()).decode() for row, size in zip(rows, sizes, strict=True)]

    def _together(self, call: Callable[[], object]) -> None:
        """A call that needs every process. Raises SisError when one of them is gone."""
        try:
            call()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else "no reason given"
            raise SisError(
                f"process {self.rank} lost the others: {reason}", fix="the first error above says why"
            ) from error


ALONE = Ranks()


@contextmanager
def joined(device: str) -> Iterator[tuple[Ranks, str]]:
    """Meet the other processes that torchrun started, if it did; yields this one's place and its device.

    torchrun says RANK, WORLD_SIZE and LOCAL_RANK. They speak through NCCL between GPUs, through gloo between CPUs.
    """
    count = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if count == 1:
        yield ALONE, device
        return
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        if device != "cuda":
            raise SisError(f"{count} processes were started, and all of them on {device}", fix="use --device cuda")
        device = f"cuda:{_local_rank()}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=_PATIENCE)
    yield Ranks(dist.get_rank(), count, device), device
    # Not after an error: it would wait for processes that are gone.
    dist.destroy_process_group()


def _local_rank() -> int:
    rank, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= there:
        fix = f"start torchrun with --nproc-per-node {there}" if there else "use --device cpu"
        raise SisError(f"process {rank} of this machine has no GPU of its own, torch sees {there}", fix=fix)
    return rank


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type in groups of bounded size, in their order."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = bucket and sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET
        if full or (bucket and bucket[0].dtype != tensor.dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
