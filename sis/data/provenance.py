# SPDX-License-Identifier: Apache-2.0
"""The run record: who made an artefact, from what, on which host, how long it took."""

from __future__ import annotations

import hashlib
import platform
import resource
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("sis-bench", "torch", "numpy", "pillow", "pyarrow", "snakemake")


@dataclass
class RunRecord:
    """Facts about the process that writes an artefact; taken on the job's own host, never on the submitting one."""

    argv: list[str]
    seeds: dict[str, int]
    device: str
    started: str
    _clock: float = field(repr=False, default=0.0)

    @classmethod
    def start(
        cls, argv: list[str] | None = None, *, seeds: dict[str, int] | None = None, device: str = "cpu"
    ) -> RunRecord:
        """Begin the record; call `finish` when the artefact's content is ready."""
        return cls(list(argv or _command()), dict(seeds or {}), device, _now(), time.perf_counter())

    def finish(self) -> dict[str, object]:
        """Return the record as plain JSON data. Seconds are wall time, memory is the process' peak in bytes."""
        return {
            "argv": self.argv,
            "commit": _commit(),
            "lock_sha256": _lock_sha256(),
            "host": socket.gethostname(),
            "cpu": _cpu(),
            "device": device_name(self.device),
            "started": self.started,
            "ended": _now(),
            "seconds": round(time.perf_counter() - self._clock, 3),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "threads": _threads(),
            "python": platform.python_version(),
            "versions": {name: _version(name) for name in _PACKAGES},
            "seeds": self.seeds,
        }


def device_name(device: str) -> str:
    """Spell out a torch device, e.g. `cuda:0 NVIDIA H100`; torch is asked only if it is already loaded."""
    torch = sys.modules.get("torch")
    if torch is not None and device.startswith("cuda"):
        return f"{device} {torch.cuda.get_device_name(device)}"
    return device


def _command() -> list[str]:
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _project_root() -> Path:
    return Path(__file__).resolve().parents[2]


def _commit() -> str:
    """The commit the code was run from, with `+dirty` when tracked files differ; `unknown` outside git."""
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+dirty", "--exclude=*"],
            cwd=_project_root(),
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return out.stdout.strip() or "unknown"


def _lock_sha256() -> str:
    lock = _project_root() / "constraints.txt"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _threads() -> int:
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else 1


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
