# SPDX-License-Identifier: Apache-2.0
"""The constant prompts of a dataset: what Stable Diffusion is told while it is fine-tuned, and while it is sampled."""

from __future__ import annotations

from pydantic import Field

from sis.config.base import Name, StrictModel
from sis.config.files import dataset_card, named, project_root
from sis.errors import SisError


class Prompts(StrictModel):
    """Three texts; none depends on the image."""

    train: str = Field(description="in training")
    positive: str = Field(description="in sampling")
    negative: str = Field(description="of guidance's other branch; empty: no words")


class PromptCard(StrictModel):
    """The prompts of a dataset (config/prompts/<name>.yaml)."""

    name: Name = Field(description="name of the dataset, equal to the file's stem; it serves datasets like it, too")
    source: str = Field(description="who says so")
    paper: Prompts = Field(description="as the paper prints them")
    release: Prompts = Field(description="as the released code has them")


def prompt_card(dataset: str) -> PromptCard:
    """The prompts of a dataset, or of the nearest one that its card is `like`. Raises SisError where there are none."""
    folder, name = project_root() / "config" / "prompts", dataset
    while name and not (folder / f"{name}.yaml").is_file():
        name = dataset_card(name).like
    if not name:
        fix = f"write {dataset}.yaml there, or give --prompts FILE"
        raise SisError(f"no prompts for the dataset {dataset}", where=folder, fix=fix)
    return named("prompts", name, PromptCard)
