# SPDX-License-Identifier: Apache-2.0
"""Cards: one small file a dataset, one a method."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from sis.config.base import Name, StrictModel
from sis.config.cluster import CLUSTER_TEXT, Cluster
from sis.data.labels import LabelSpace

Scalar = bool | int | float | str
Patterns = str | list[str]
Side = Annotated[int, Field(ge=16, le=4096)]


class Split(StrictModel):
    """One split of a dataset. Patterns are relative to the dataset's root; `*` stays inside one folder name."""

    count: int = Field(ge=1, description="expected number of pairs; another number is an error")
    image: Patterns = Field(default="", description="photographs, e.g. images/train/{id}.jpg; layouts of files only")
    label: Patterns = Field(default="", description="label maps, e.g. labels/train/{id}.png")
    instance: Patterns = Field(default="", description="instance maps, where `instances: file`")
    references: str = Field(default="", description="JSON file: label map's file name to a training photograph's")
    photographs: bool = Field(default=True, description="false: the split has label maps only")

    @field_validator("image", "label", "instance")
    @classmethod
    def _names_each_file_once(cls, patterns: str | list[str]) -> str | list[str]:
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            parts = pattern.split("/")
            if pattern and (pattern.count("{id}") != 1 or "{id}" not in parts[-1]):
                raise ValueError(f"{pattern!r} must contain {{id}} once, in the file's name")
            if pattern.startswith("/") or ".." in parts or "**" in pattern:
                raise ValueError(f"{pattern!r} must stay inside the dataset's root, one folder name a `*`")
        return patterns


class Preparation(StrictModel):
    """How raw pictures come to the dataset's size."""

    policy: Name = Field(default="exact", description="a module of sis/data/policies")
    fidelity: Literal["paper", "release"] = Field(
        default="paper", description="paper: our fixes; release: what the authors' code does, defects included"
    )
    void_becomes: Annotated[int, Field(ge=0, le=255)] | None = Field(
        default=None, description="release only: unlabelled pixels become this id"
    )

    @model_validator(mode="after")
    def _defects_are_named(self) -> Preparation:
        if self.void_becomes is not None and self.fidelity != "release":
            raise ValueError("void_becomes is a defect of released code, it needs `fidelity: release`")
        return self


class RawFiles(StrictModel):
    """What the raw files of a dataset may be; everything else is refused."""

    palette: Literal["refuse", "indices"] = Field(
        default="refuse", description="label PNGs with a palette: refuse them, or read their indices as values"
    )
    exif: Literal["refuse", "ignore", "apply"] = Field(
        default="refuse", description="photographs with an EXIF rotation: refuse, show as stored, or rotate"
    )
    instances: Literal["none", "file", "label"] = Field(
        default="none", description="where instances come from: nowhere, a file of their own, or the label map"
    )
    instance_bits: Literal[8, 16] = Field(default=16, description="bits of an instance file")
    label_scale: int = Field(default=1, ge=1, le=8, description="photographs are so many times larger than label maps")


class DatasetCard(StrictModel):
    """A dataset (config/datasets/<name>.yaml)."""

    name: Name = Field(description="name of the dataset, equal to the file's stem")
    like: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_.-]*$")] = Field(
        default="", description="another dataset whose card fills in everything that this one does not say"
    )
    title: str = Field(description="name in tables")
    description: str = Field(default="", description="one paragraph for the dataset card")
    root: str = Field(default="", description="its folder below the data root; empty: the dataset's name")
    layout: Name = Field(description="how the files lie on disk: a module of sis/data/layouts")
    labels: Name | LabelSpace = Field(description="label table: a file of config/labels, or the table itself")
    size: Annotated[list[Side], Field(min_length=2, max_length=2)] = Field(description="[height, width] in pixels")
    prepare: Preparation = Field(default=Preparation(), description="how raw pictures come to that size")
    files: RawFiles = Field(default=RawFiles(), description="what the raw files may be")
    edges: bool = Field(default=False, description="true: instance edges are an input of the methods")
    splits: dict[Name, Split] = Field(description="splits with their expected counts and files")
    options: dict[str, Scalar] = Field(default={}, description="settings of the layout")
    known_overlap: list[str] = Field(
        default=[], description="ids whose photographs the official files hold in another split, too: reported, allowed"
    )
    subset: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]*$")] = Field(
        default="", description="what part this is, if not the whole dataset; the name must end in _<subset>"
    )
    licence: str = Field(description="licence of images and labels")
    source: str = Field(description="where the data come from")
    cluster: Cluster = Field(default={}, description=CLUSTER_TEXT)

    @model_validator(mode="after")
    def _has_both_splits(self) -> DatasetCard:
        if not {"train", "val"} <= set(self.splits):
            raise ValueError("splits must name at least train and val")
        if not self.splits["train"].photographs:
            raise ValueError("the split train must have photographs")
        if self.subset and not self.name.endswith(f"_{self.subset}"):
            raise ValueError(f"a subset carries it in its name: call it {self.name}_{self.subset}")
        return self

    def identity(self) -> dict[str, Any]:
        """Everything that decides the prepared pairs: the card without its words and without where its jobs run."""
        return self.model_dump(exclude={"title", "description", "licence", "source", "like", "cluster"})

    @property
    def shown(self) -> str:
        """The title, with the subset if it is one."""
        return f"{self.title} [subset: {self.subset}]" if self.subset else self.title


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
    cluster: Cluster = Field(default={}, description=CLUSTER_TEXT)

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

    def identity(self) -> dict[str, Any]:
        """What the ids of its runs rest on: the card without where its jobs run."""
        return self.model_dump(exclude={"cluster"})


def _fields(template: str) -> list[str]:
    import string

    return ["{" + field + "}" for _, field, _, _ in string.Formatter().parse(template) if field]
