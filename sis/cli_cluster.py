# SPDX-License-Identifier: Apache-2.0
"""The commands around a cluster: is this site's Slurm fit for the work, what will it cost, what is left over."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sis.cli_words import Commands, add_command
from sis.errors import SisError


def add_cluster_commands(commands: Commands) -> None:
    """`sis doctor`, `sis plan` and `sis gc`."""
    _add_plan(commands)
    _add_gc(commands)
    doctor = add_command(commands, "doctor", _doctor, "check whether this site's Slurm does what experiments need")
    doctor.add_argument("--slurm", action="store_true", required=True, help="check Slurm (docs/slurm.md)")
    doctor.add_argument("--experiment", default="", help="name or file of the experiment (default: the configured one)")
    doctor.add_argument("--no-jobs", action="store_true", help="look only; submit no tiny jobs to the nodes")
    doctor.add_argument(
        "--wait", type=float, default=120.0, metavar="SECONDS", help="for the tiny jobs to end (default: 120)"
    )


def _add_plan(commands: Commands) -> None:
    plan = add_command(commands, "plan", _plan, "say what an experiment costs on a cluster; submits nothing")
    plan.add_argument("experiment", help="name or file of the experiment")
    plan.add_argument("--artefacts", default="", help="root of the artefacts (default: by config/config.yaml)")
    plan.add_argument("--json", action="store_true", help="print every piece of unfinished work as JSON")


def _add_gc(commands: Commands) -> None:
    gc = add_command(commands, "gc", _gc, "remove what dead runs left below the artefacts, after asking")
    gc.add_argument("--artefacts", default="", help="root of the artefacts (default: by config/config.yaml)")
    gc.add_argument("--dry-run", action="store_true", help="list what would go; remove nothing")
    gc.add_argument("--yes", action="store_true", help="remove without asking")
    text = "keep temporary files, and work that no experiment names, that changed within so many hours (default: 24)"
    gc.add_argument("--hours", type=float, default=24.0, help=text)


def _doctor(arguments: argparse.Namespace) -> int:
    from sis.launch.doctor import examine
    from sis.plan import load_plan

    plan = load_plan(experiment=arguments.experiment)
    worst = "ok"
    for finding in examine(plan, jobs=not arguments.no_jobs, wait=arguments.wait, say=_say):
        print(finding.line(), flush=True)  # noqa: T201
        worst = "bad" if finding.level == "bad" else worst
    return 2 if worst == "bad" else 0


def _plan(arguments: argparse.Namespace) -> None:
    import json

    from sis.plan import load_plan
    from sis.project.cost import cost_plan
    from sis.project.cost_text import plan_data, plan_text

    overrides = {"artefacts": arguments.artefacts} if arguments.artefacts else None
    found = cost_plan(load_plan(overrides, arguments.experiment))
    print(json.dumps(plan_data(found), indent=1) if arguments.json else plan_text(found))  # noqa: T201


def _gc(arguments: argparse.Namespace) -> None:
    from sis.config.files import project_root, settings
    from sis.project.cost_text import format_size
    from sis.project.garbage import Collector
    from sis.project.garbage_named import named_work

    root = Path(arguments.artefacts) if arguments.artefacts else project_root() / settings().artefacts
    if not root.is_dir():
        raise SisError("no such folder", where=root, fix="give --artefacts")
    collector = Collector(root, named_work(), _Alive(), arguments.hours)
    survey = collector.survey()
    for path, why in survey.kept:
        print(f"  kept      {path}: {why}")  # noqa: T201
    for one in survey.leftovers:
        several = f" ({len(one.paths):,} files and folders)" if len(one.paths) > 1 else ""
        print(f"  {format_size(one.size):>8}  {one.place}: {one.why}{several}")  # noqa: T201
    count = f"{format_size(survey.size)} of leftovers"
    if not survey.leftovers or arguments.dry_run:
        print(count)  # noqa: T201
        return
    if not arguments.yes and not _agreed(f"{count}: remove them? [y/N] "):
        print("nothing was removed")  # noqa: T201
        return
    freed = sum(collector.remove(one) for one in survey.leftovers)
    print(f"removed {format_size(freed)} of {format_size(survey.size)}")  # noqa: T201


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise SisError("this is no terminal, nobody can be asked", fix="add --yes, or --dry-run to look only")
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


class _Alive:
    """Whether jobs are alive; a queue that did not answer once is not asked again, it takes its time to say nothing."""

    def __init__(self) -> None:
        self._silent: set[str] = set()

    def __call__(self, launcher: str, job: str) -> bool | None:
        from sis.launch.local_queue import LocalQueue
        from sis.launch.queue import ENDED
        from sis.launch.slurm_queue import SlurmQueue

        if launcher in self._silent:
            return None
        states = (LocalQueue() if launcher == "local" else SlurmQueue()).states(job)
        if states is None:
            self._silent.add(launcher)
            return None
        return any(state.state not in ENDED for state in states.values())


def _say(text: str) -> None:
    """Progress, apart from the findings."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201
