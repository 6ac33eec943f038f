# SPDX-License-Identifier: Apache-2.0
"""Cards: one small file a dataset, one a method."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sis.config.base import Name, StrictModel

Scalar = bool | int | float | str
Side = Annotated[int, Field(ge=16, le=4096)]


class Split(StrictModel):
    """One split of a dataset."""

    count: int = Field(ge=1, description="expected number of pairs; another number is an error")


class DatasetCard(StrictModel):
    """A dataset (config/datasets/<name>.yaml)."""

    name: Name = Field(description="name of the dataset, equal to the file's stem")
    title: str = Field(description="name in tables")
    description: str = Field(default="", description="one paragraph for the dataset card")
    layout: Name = Field(description="how the files lie on disk: a module of sis/data/layouts")
    labels: Name = Field(description="label table: a file of config/labels")
    size: Annotated[list[Side], Field(min_length=2, max_length=2)] = Field(description="[height, width] in pixels")
    splits: dict[Name, Split] = Field(description="splits with their expected counts")
    options: dict[str, Scalar] = Field(default={}, description="settings of the layout")
    subset: str = Field(default="", description="what part this is, if it is not the whole dataset")
    licence: str = Field(description="licence of images and labels")
    source: str = Field(description="where the data come from")

    @model_validator(mode="after")
    def _has_both_splits(self) -> DatasetCard:
        if not {"train", "val"} <= set(self.splits):
            raise ValueError("splits must name at least train and val")
        return self


class MethodCard(StrictModel):
    """A method that needs no Python, or the bibliography of one that does (config/methods/<name>.yaml)."""

    kind: Literal["python", "command", "images"] = Field(description="the door through which images come")
    title: str = Field(description="name in tables")
    role: Literal["contestant", "control"] = Field(default="contestant", description="controls are never ranked")
    paper: str = Field(default="", description="title of the paper")
    venue: str = Field(default="", description="where and when it appeared")
    licence: str = Field(default="", description="licence of the upstream code or images")
    upstream: str = Field(default="", description="repository and commit")
    notes: str = Field(default="", description="anything a reader should know")
    command: str = Field(default="", description="kind command: template with {labels} {out} {ids} {seed}")
    conda: str = Field(default="", description="kind command: name of a conda environment")
    container: str = Field(default="", description="kind command: container image by digest")
    timeout_minutes: float = Field(default=60.0, gt=0, description="kind command: limit for one shard")
    path: str = Field(default="", description="kind images: folder of pictures, may contain {dataset}")
    pattern: str = Field(default="{image_id}.png", description="kind images: file name, with {image_id} {sample}")

    @model_validator(mode="after")
    def _door_is_complete(self) -> MethodCard:
        if self.kind == "command" and not {"{labels}", "{out}"} <= set(_fields(self.command)):
            raise ValueError("a command method needs `command:` with at least {labels} and {out}")
        if self.kind == "images" and not self.path:
            raise ValueError("an images method needs `path:`, the folder of its pictures")
        if self.kind == "images" and "{image_id}" not in self.pattern:
            raise ValueError("`pattern:` must contain {image_id}")
        if self.container and "@sha256:" not in self.container:
            raise ValueError("`container:` must name an image by digest (...@sha256:...)")
        return self


def _fields(template: str) -> list[str]:
    import string

    return ["{" + field + "}" for _, field, _, _ in string.Formatter().parse(template) if field]
