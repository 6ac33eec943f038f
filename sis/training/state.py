# SPDX-License-Identifier: Apache-2.0
"""Resumable training states: weights, averaged weights and optimiser moments as safetensors, never as pickles."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sis.data.atomic import remove_leftovers
from sis.data.tensors import load_tensors, save_tensors
from sis.errors import SisError

_KEPT = 2


class StateFolder:
    """The states of one training run; the newest whole one is where it resumes."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key

    def save(
        self,
        step: int,
        network: nn.Module,
        average: dict[str, Tensor],
        optimiser: torch.optim.Optimizer,
        log: list,
    ) -> None:
        """Write the state after `step` steps and drop the older ones."""
        tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in average.items()}
        for index, moments in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{k}": v for k, v in moments.items()}
        meta = {"key": self.key, "step": step, "log": log}
        save_tensors(tensors, self.folder / f"state-{step:08d}.safetensors", "model", meta, {"step": step})
        for old in sorted(self.folder.glob("state-*.safetensors"))[:-_KEPT]:
            self._drop(old)

    def resume(
        self, network: nn.Module, average: dict[str, Tensor], optimiser: torch.optim.Optimizer
    ) -> tuple[int, list]:
        """Load the newest whole state of the same run; returns its step and log, (0, []) when there is none.

        A damaged state, or one of another configuration, is removed and the one before it used.
        """
        for path in sorted(self.folder.glob("state-*.safetensors"), reverse=True):
            try:
                tensors, meta = load_tensors(path, "model")
            except SisError:
                self._drop(path)
                continue
            if meta["key"] != self.key:
                self._drop(path)
                continue
            network.load_state_dict(_under("network.", tensors))
            for name, value in _under("average.", tensors).items():
                average[name].copy_(value)
            _load_moments(optimiser, _under("optimiser.", tensors))
            return int(meta["step"]), list(meta["log"])
        return 0, []

    def clear(self) -> None:
        """Remove all states, once the finished model is published, and what a killed run left half-written."""
        remove_leftovers(self.folder)
        for path in self.folder.glob("state-*.safetensors"):
            self._drop(path)

    def _drop(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        path.with_name(path.name + ".manifest.json").unlink(missing_ok=True)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _load_moments(optimiser: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        index, key = name.split(".", 1)
        moments.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
