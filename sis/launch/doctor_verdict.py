# SPDX-License-Identifier: Apache-2.0
"""What a conversation with a tiny job tells about nodes, shared folder, locks and clocks."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

from sis.config.cluster import SlurmSite
from sis.launch.doctor_finding import Finding, bad, note, ok
from sis.launch.doctor_probe import FREED

#: One round: what each process answered by its rank, with `seen`, when the answer was here.
Round = dict[int, dict[str, Any]]
#: Seconds between two clocks that are worth a word.
_SKEW = 1.0


def judge(job: str, gpu: bool, site: SlurmSite, asked: list[float], rounds: list[Round]) -> Iterator[Finding]:
    """Findings of a whole conversation.

    asked: when each question was written here, seconds since 1970; rounds: the answers. The first round is the
    job's own greeting and measures nothing.
    """
    names = {rank: said["node"] for rank, said in rounds[0].items()}
    nodes = ", ".join(names.values())
    yield _python(job, nodes, rounds[0])
    if gpu:
        yield _gpus(job, rounds[0])
    slowest = max(said["seen"] - asked[n] for n in range(1, len(rounds)) for said in rounds[n].values())
    yield _latency(nodes, slowest, len(rounds) - 1, site.patience_seconds)
    yield from _locks(names, rounds)
    for rank, name in names.items():
        yield _clock(name, asked, [r[rank] for r in rounds])


def _python(job: str, nodes: str, said: Round) -> Finding:
    here = platform.python_version()
    others = sorted({s["python"] for s in said.values()} - {here})
    if others:
        text = f"{nodes} run Python {', '.join(others)} where this machine runs {here} (job {job})"
        return bad(text, "put the environment on the shared file system, or install the same on every node")
    return ok(f"Python {here} of this environment starts on {nodes} (job {job})")


def _gpus(job: str, said: Round) -> Finding:
    without = [s["node"] for s in said.values() if not s["gpus"]]
    if without:
        text = f"job {job} asked for a GPU and CUDA_VISIBLE_DEVICES is empty on {', '.join(without)}"
        return bad(text, "ask the administrators for a gres.conf that names the GPUs' files")
    return ok("GPUs handed out: " + ", ".join(f"{s['node']} CUDA_VISIBLE_DEVICES={s['gpus']}" for s in said.values()))


def _latency(nodes: str, seconds: float, count: int, patience: float) -> Finding:
    text = f"shared folder: {nodes} and this machine see each other's new and replaced files;"
    text += f" there and back took at most {seconds * 1000:.0f} ms in {count} times"
    if seconds > patience:
        return bad(text, f"raise `slurm: {{patience_seconds: {2 * seconds:.0f}}}` in config/config.yaml")
    if seconds > patience / 4:
        return note(text, f"`slurm: patience_seconds:` is {patience:g}; keep it well above")
    return ok(text)


def _locks(names: dict[int, str], rounds: list[Round]) -> Iterator[Finding]:
    for rank, name in names.items():
        during = {r[rank]["lock"] for r in rounds[:FREED]}
        after = rounds[FREED][rank]["lock"]
        if during == {"held"} and after == "free":
            yield ok(f"flock: {name} sees the lock of this machine, and its end")
            continue
        saw = "/".join(sorted(during)) if during != {"held"} else f"{after} after it was given up"
        fix = "start Snakemake and `sis` always on the same machine: two of them elsewhere would not see each other"
        yield note(f"flock: {name} does not see the lock of this machine (it saw: {saw})", fix)


def _clock(name: str, asked: list[float], said: list[dict[str, Any]]) -> Finding:
    """Compare clocks as of the quickest answer: what is left unknown is half its round trip."""
    trips = [(s["seen"] - t, s["at"] - (s["seen"] + t) / 2) for t, s in list(zip(asked, said, strict=True))[1:]]
    trip, skew = min(trips)
    text = f"clocks: {name} is {skew:+.3f} s from this machine (known to {trip / 2 * 1000:.0f} ms)"
    if abs(skew) - trip / 2 > _SKEW:
        return note(text, "ask for synchronised clocks: Snakemake makes again what seems older than its inputs")
    return ok(text)
