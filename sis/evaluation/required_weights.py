# SPDX-License-Identifier: Apache-2.0
"""Whether the weights that a protocol asks for are here: who named no protocol is not served with stand-ins."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from sis.config.files import project_root, settings
from sis.config.protocols import ProtocolCard
from sis.errors import SisError


def require_weights(protocol: ProtocolCard, metrics: Sequence[str], samples: int, local: str) -> None:
    """Ask the evaluators, which this package never imports, what the protocol lacks here.

    Args:
        metrics: those that were asked for, by file stem; empty: all.
        samples: images of a label map; a metric that needs more has no value anyway.
        local: protocol of a judge that is trained here, "" without.

    Raises SisError that names the columns without their weights and every way on.
    """
    asked = [c for c in _columns(protocol) if (not metrics or c["metric"] in metrics) and c["samples"] <= samples]
    lacking = [column for column in asked if column["missing"]]
    if not lacking:
        return
    names = list(dict.fromkeys(name for column in lacking for name in column["missing"]))
    told = ", ".join(column["name"] for column in lacking)
    stems = list(dict.fromkeys(column["metric"] for column in lacking))
    whole = list(dict.fromkeys(c["metric"] for c in asked if c["metric"] not in stems))
    ways = ["fetch them (`sis weights check` says whence)"]
    ways += [f"--metrics {' '.join(whole)} (complete without them)"] if whole else []
    ways += [f"--protocol {local} (a local judge, trained here)"] if local else []
    ways += [f"--protocol {protocol.name} (with stand-ins that mean nothing)"]
    fault = f"{protocol.name} has {len(lacking)} of {len(asked)} columns without their weights ({', '.join(names)})"
    raise SisError(f"{fault}: {told}", where=project_root() / settings().weights, fix="; or ".join(ways))


def _columns(protocol: ProtocolCard) -> list[dict]:
    command = [sys.executable, "-m", "evaluators", "columns", "--protocol", protocol.name, "--json"]
    command += ["--weights", settings().weights]
    done = subprocess.run(command, cwd=project_root(), capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.splitlines() or ["the evaluators did not start"])[-1]
        raise SisError(last.removeprefix("error: "))
    return json.loads(done.stdout)
