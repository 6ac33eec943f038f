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

DATASET = """name: {name}
title: {title}
layout: scenes
labels: scenes
size: [64, 64]
splits:
  train: {{count: 256}}
  val: {{count: 64}}
options:
  seed: 1
licence: Apache-2.0
source: drawn by sis/data/scenes.py
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
