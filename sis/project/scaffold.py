# SPDX-License-Identifier: Apache-2.0
"""`sis new`: writes the shortest working example of a plug-in under a name of your own."""

from __future__ import annotations

import re
from pathlib import Path

from sis.config.files import project_root
from sis.data.atomic import write_text_atomic
from sis.errors import SisError

_HEADER = "# SPDX-License-Identifier: Apache-2.0\n"

PYTHON_METHOD = (
    _HEADER
    + '''"""{title}: one sentence that says what it does."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from sis.config.base import StrictModel
from sis.diffusion.noise import Noise
from sis.diffusion.pixels import to_uint8
from sis.methods.contract import MapBatch, Method


class SampleParams(StrictModel):
    """Parameters that an experiment may set under `sample:`."""

    grain: float = Field(default=0.2, ge=0, description="standard deviation of the noise, image range is [-1, 1]")


class {camel}(Method):
    SampleParams = SampleParams

    def sample(self, maps: MapBatch, noise: Noise) -> Tensor:
        """Turn label maps `(b, h, w)` into uint8 images `(b, 3, h, w)`; all randomness comes from `noise`."""
        colours = noise.uniform("colours", 0, (self.context.labels.width, 3)) * 2 - 1
        b, h, w = maps.labels.shape
        painted = torch.stack([colours[i][maps.labels[i]] for i in range(b)]).permute(0, 3, 1, 2)
        return to_uint8(painted + self.sample_params.grain * noise.normal("grain", 0, (3, h, w)), maps.image_ids)
'''
)

COMMAND_METHOD = """kind: command
title: {title}
command: python examples/segment_noise.py {{labels}} {{out}} {{ids}} {{seed}}
"""

IMAGES_METHOD = """kind: images
title: {title}
path: data/{name}/{{dataset}}
"""

RULE_METHOD = '''"""{title}."""


rule {name}:
    input:
        pairs=plan.pairs("{{dataset}}", "val"),
    output:
        manifest=plan.images("{{dataset}}", "{{run_id}}"),
        folder=temp(directory(f"{{plan.root}}/{name}/{{{{dataset}}}}/{{{{run_id}}}}")),
    wildcard_constraints:
        run_id=plan.pattern(plan.run_ids(method="{name}")),
    log:
        "logs/{name}/{{dataset}}.{{run_id}}.log",
    conda:
        "../../envs/sis.yaml"
    shell:
        "(sis export {{input.pairs}} --out {{output.folder}} &&"
        " sis import {{output.folder}} --pairs {{input.pairs}} --name {name} --run-id {{wildcards.run_id}} --kind rule"
        " --title '{title}' --out {{output.manifest}}) 2>&1 | tee {{log}}"
'''

DATASET = """# Photographs and label maps that share a name (docs/datasets.md). Below data/{name}, or the folder that
# config/config.yaml names under `roots:`, lie train/images/ID.jpg, train/labels/ID.png and the same for val.
# Then: sis data check {name}
name: {name}
title: {title}
layout: folder
labels:
  void: 255                      # value of unlabelled pixels; null: every pixel has a class
  classes:                       # ids 0, 1, 2, ... are the values in the label PNGs
    - {{id: 0, name: background, colour: [70, 130, 180]}}
    - {{id: 1, name: thing, colour: [220, 20, 60]}}
size: [64, 64]                   # height, width of what methods see
prepare: {{policy: sdm}}           # training: random crops, judging: squashed; `exact`: pictures have this size already
splits:                          # how many pairs there are: another number is an error
  train: {{count: 8}}
  val: {{count: 2}}
licence: unknown
source: my own pictures
"""


def scaffold(what: str, name: str, kind: str = "python") -> list[Path]:
    """Write the files of a new plug-in and return them. Raises SisError for bad names and files that exist."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{1,40}", name):
        raise SisError(f"{name!r} is no good name", fix="lower-case letters, digits and '_', beginning with a letter")
    root, title = project_root(), name.replace("_", " ").capitalize()
    camel = "".join(part.capitalize() for part in name.split("_"))
    places = {
        "python": (root / "sis" / "methods" / f"{name}.py", PYTHON_METHOD),
        "command": (root / "config" / "methods" / f"{name}.yaml", COMMAND_METHOD),
        "images": (root / "config" / "methods" / f"{name}.yaml", IMAGES_METHOD),
        "rule": (root / "workflow" / "rules" / "methods" / f"{name}.smk", RULE_METHOD),
        "dataset": (root / "config" / "datasets" / f"{name}.yaml", DATASET),
        "metric": (root / "evaluators" / "metrics" / f"{name}.py", None),
    }
    path, template = places[kind if what == "method" else what]
    if path.exists():
        raise SisError("this file exists already", where=path, fix="choose another name")
    text = _metric_example(root) if template is None else template.format(name=name, title=title, camel=camel)
    write_text_atomic(path, text)
    return [path]


def _metric_example(root: Path) -> str:
    """The shortest real metric, to be edited: pixel accuracy."""
    return (root / "evaluators" / "metrics" / "accuracy.py").read_text()
