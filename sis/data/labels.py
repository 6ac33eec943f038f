# SPDX-License-Identifier: Apache-2.0
"""Label spaces: which ids exist, what files call them, how they are drawn, which count in a score."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sis.config.base import Name, StrictModel
from sis.errors import SisError, first_of

Byte = Annotated[int, Field(ge=0, le=255)]
_NONE = 65535


class LabelClass(StrictModel):
    """One class of a label map."""

    id: Byte = Field(description="the value stored in label maps, and the channel of its one-hot map")
    name: Annotated[str, Field(min_length=1)] = Field(description="the class' name in tables")
    colour: Annotated[list[Byte], Field(min_length=3, max_length=3)] = Field(description="RGB, for pictures")
    ignored: bool = Field(default=False, description="true: an input of the methods that no score counts")
    evaluator: Byte | None = Field(
        default=None, description="id that segmenters use; empty: position among the classes that are not ignored"
    )
    dead: bool = Field(default=False, description="true: the id exists but no official label map holds it")
    mirror: Byte | None = Field(default=None, description="id it becomes in a mirrored picture; empty: its own")


class LabelSpace(StrictModel):
    """The label table of a dataset (config/labels/<name>.yaml)."""

    name: Name = Field(description="name of the table, equal to the file's stem")
    void: Byte | None = Field(
        description="id of unlabelled pixels, which no class owns and no score counts; null: every pixel has a class"
    )
    file_offset: int = Field(default=0, ge=0, le=255, description="value in the dataset's label files minus id")
    file_void: list[Byte] | None = Field(
        default=None, description="values of the dataset's label files that mean unlabelled; empty: the void id itself"
    )
    classes: Annotated[list[LabelClass], Field(min_length=1, max_length=254)] = Field(
        description="classes with ids 0, 1, 2, ..."
    )

    @model_validator(mode="after")
    def _ids_are_a_range(self) -> LabelSpace:
        ids = [c.id for c in self.classes]
        if ids != list(range(len(ids))):
            raise ValueError(f"class ids must be 0, 1, 2, ... in order, found {ids}")
        if self.void in ids:
            raise ValueError(f"void id {self.void} is also a class id")
        if self.file_void and self.void is None:
            raise ValueError("file_void names unlabelled values, but void is null")
        if any(self.file_offset <= v < self.file_offset + len(ids) for v in self.void_values):
            raise ValueError(f"values {self.void_values} of unlabelled pixels are also values of classes")
        if self.file_offset + len(ids) > 256:
            raise ValueError(f"file_offset {self.file_offset} puts classes above 255")
        return self

    @model_validator(mode="after")
    def _evaluator_ids_are_a_range(self) -> LabelSpace:
        given = [c.evaluator for c in self.classes if c.evaluator is not None]
        counted = [c for c in self.classes if not c.ignored]
        if given and (len(given) != len(counted) or sorted(given) != list(range(len(given)))):
            raise ValueError("evaluator ids must be 0, 1, 2, ..., each once, on exactly the classes not ignored")
        if any(
            c.mirror is not None and (c.mirror >= self.count or self._mirrored(c.mirror) != c.id) for c in self.classes
        ):
            raise ValueError("mirror ids must name classes in pairs: a becomes b and b becomes a")
        return self

    def _mirrored(self, class_id: int) -> int:
        other = self.classes[class_id].mirror
        return class_id if other is None else other

    @property
    def count(self) -> int:
        """Number of classes, void not counted."""
        return len(self.classes)

    @property
    def void_values(self) -> list[int]:
        """Values of the dataset's label files that mean unlabelled."""
        if self.file_void is None:
            return [] if self.void is None else [self.void]
        return self.file_void

    @property
    def width(self) -> int:
        """Number of channels of a one-hot map: the classes, then one channel for void if the table has one."""
        return self.count + (self.void is not None)

    @property
    def evaluated_ids(self) -> list[int]:
        """Ids that scores count, in the order of the segmenters' own ids."""
        counted = [c for c in self.classes if not c.ignored]
        if any(c.evaluator is not None for c in counted):
            counted.sort(key=lambda c: c.evaluator or 0)
        return [c.id for c in counted]

    @cached_property
    def _channel_table(self) -> NDArray[np.uint8]:
        table = np.full(256, 255, np.uint8)
        table[: self.count] = np.arange(self.count)
        if self.void is not None:
            table[self.void] = self.count
        return table

    @cached_property
    def _file_table(self) -> NDArray[np.uint16]:
        table = np.full(65536, _NONE, np.uint16)
        table[self.file_offset : self.file_offset + self.count] = np.arange(self.count)
        table[self.void_values] = 0 if self.void is None else self.void
        return table

    def from_file(self, values: NDArray, where: object = None) -> NDArray[np.uint8]:
        """Turn the values of a label file, uint8 or uint16 `(h, w)`, into ids. Raises SisError on unknown values."""
        ids = self._file_table[values]
        if (ids == _NONE).any():
            unknown = sorted(int(v) for v in np.unique(values[ids == _NONE]))
            last = self.file_offset + self.count - 1
            known = f"{self.file_offset}..{last}" + "".join(f", {v} (void)" for v in self.void_values)
            raise SisError(
                f"label values outside the table {self.name!r}: {first_of(unknown)}",
                where=where,
                fix=f"{known} are allowed",
            )
        return ids.astype(np.uint8)

    def to_file(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn ids back into the values of the dataset's label files; void becomes its first file value."""
        values = labels.astype(np.int64) + self.file_offset
        if self.void is not None:
            values[labels == self.void] = (self.void_values or [self.void])[0]
        return values.astype(np.uint8)

    def channels(self, labels: NDArray, where: object = None) -> NDArray[np.uint8]:
        """Map stored ids `(..., h, w)` to one-hot channels 0..width-1 (void last). Raises SisError on unknown ids."""
        channels = self._channel_table[labels]
        if (channels == 255).any():
            unknown = sorted(int(v) for v in np.unique(labels[channels == 255]))
            void = "" if self.void is None else f" and void {self.void}"
            raise SisError(
                f"label ids outside the table {self.name!r}: {first_of(unknown)}",
                where=where,
                fix=f"ids 0..{self.count - 1}{void} are allowed",
            )
        return channels

    def check(self, labels: NDArray, where: object = None) -> None:
        """Raise SisError naming the ids of `labels` that the table does not know."""
        self.channels(labels, where)

    def mirror_channels(self) -> NDArray[np.uint8]:
        """The channel that each channel becomes in a mirrored picture, uint8 `(width,)`."""
        table = np.arange(self.width, dtype=np.uint8)
        for entry in self.classes:
            table[entry.id] = self._mirrored(entry.id)
        return table

    def palette(self) -> NDArray[np.uint8]:
        """Colours by id, uint8 `(256, 3)`; void and unknown ids are black."""
        table = np.zeros((256, 3), np.uint8)
        for entry in self.classes:
            table[entry.id] = entry.colour
        return table
