import sys
from pathlib import Path

from snakemake.utils import min_version

from sis.errors import refusing_in_one_line
from sis.plan import load_plan
from sis.plan_cluster import light, native_resources, prefer_commands, setup

min_version("9.0")

# Settings come from config/config.yaml, read strictly; `snakemake --config key=value` overrides them.
with refusing_in_one_line():
    plan = load_plan(overrides=config)
site = plan.settings.slurm

# The slurm executor asks `sacct` for the states of its jobs; this one answers where Slurm keeps no accounts, too.
prefer_commands(Path(workflow.basedir, "workflow/profiles/slurm/bin"))

# Rules call `sis` and `python` of the environment that Snakemake itself runs in, activated or not.
shell.prefix(
    f'{setup(site)}set -euo pipefail; export PATH="{Path(sys.executable).parent}:$PATH"; '
)


report: "workflow/report/workflow.rst"


wildcard_constraints:
    dataset=r"[a-z0-9_.-]+",
    split=r"[a-z0-9_.-]+",
    protocol=r"[a-z0-9_.-]+",


localrules:
    all,


rule all:
    input:
        plan.published("leaderboard.html"),


include: "workflow/rules/prepare.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/prior.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/publish.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/demo.smk"


# A method with stages of its own is one file here; nothing else needs to know of it.
for rule_file in sorted(Path(workflow.basedir, "workflow/rules/methods").glob("*.smk")):

    include: str(rule_file)
