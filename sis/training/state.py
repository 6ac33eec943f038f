# SPDX-License-Identifier: Apache-2.0
"""Resumable training states: weights, averaged weights, optimiser moments and log as safetensors, never as pickles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sis.data.atomic import remove_leftovers
from sis.data.tensors import load_tensors, save_tensors
from sis.errors import SisError

_KEPT = 2
#: Where a training may go on although these differ, when it is told to.
ACCEPTABLE = ("code", "device", "processes")


@dataclass(frozen=True)
class State:
    """A training after `step` steps: tensors by dotted names, and plain JSON data."""

    step: int
    tensors: dict[str, Tensor]
    meta: dict

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, without that beginning."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


class StateFolder:
    """The states of one training run; the newest whole one is where it resumes.

    key: hash of everything that decides the weights; made_of: what it was made of, to name what differs.
    accept: go on from a state that differs in nothing but `ACCEPTABLE`.
    """

    def __init__(self, folder: Path, key: str, made_of: dict[str, str] | None = None, accept: bool = False) -> None:
        self.folder, self.key, self.made_of, self.accept = folder, key, made_of or {}, accept

    def save(self, state: State, config: dict) -> None:
        """Write a state and drop the older ones; `config` goes into the file itself."""
        meta = {"key": self.key, "made_of": self.made_of, "step": state.step, **state.meta}
        path = self.folder / f"state-{state.step:08d}.safetensors"
        save_tensors(state.tensors, path, "model", meta, {"step": state.step}, config | {"step": state.step})
        for old in self._files()[:-_KEPT]:
            self._drop(old)

    def newest(self) -> tuple[State, list[str]] | None:
        """The newest whole state and the names of what differs in it from this run; None when there is none.

        A damaged state is removed and the one before it used. Raises SisError for a state of another run, which is
        left alone, and for a folder or a file that cannot be read.
        """
        for path in reversed(self._files()):
            try:
                tensors, meta = load_tensors(path, "model")
            except SisError:
                self._drop(path)
                continue
            except OSError as error:
                raise SisError(f"cannot read a training state: {error.strerror}", where=path) from error
            return State(int(meta["step"]), tensors, meta), self._differences(path, meta)
        return None

    def clear(self) -> None:
        """Remove all states, once the finished model is published, and what a killed run left half-written."""
        remove_leftovers(self.folder)
        (self.folder / "training.parquet").unlink(missing_ok=True)
        for path in self._files():
            self._drop(path)

    def _files(self) -> list[Path]:
        """All states, the oldest first; unlike `glob` this does not take an unreadable folder for an empty one."""
        try:
            found = list(self.folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SisError(f"cannot read the training states: {error.strerror}", where=self.folder) from error
        return sorted(path for path in found if path.match("state-*.safetensors"))

    def _differences(self, path: Path, meta: dict) -> list[str]:
        if meta["key"] == self.key:
            return []
        before: dict[str, str] = meta.get("made_of", {})
        other = [name for name in self.made_of if before.get(name) != self.made_of[name]] or ["configuration"]
        if set(other) <= set(ACCEPTABLE):
            if self.accept:
                return other
            fix = "go back to that, or add --resume-other, or delete this folder to begin anew"
        else:
            fix = "delete this folder to begin anew, or choose another --out"
        what = f"a training state is here that was made with {_listed(other, before, self.made_of)}"
        raise SisError(what, where=path.parent, fix=fix)

    def _drop(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        path.with_name(path.name + ".manifest.json").unlink(missing_ok=True)


def _listed(names: Sequence[str], before: dict[str, str], now: dict[str, str]) -> str:
    """What a state was made with, as far as it differs: "other code and device cpu (now cuda)"."""
    plain = {"code", "data", "model", "configuration"}
    return " and ".join(f"other {n}" if n in plain else f"{n} {before.get(n, 'unknown')} (now {now[n]})" for n in names)
