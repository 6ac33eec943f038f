# SPDX-License-Identifier: Apache-2.0
"""Label spaces: which ids exist, what they are called, how they are drawn, which count in a score."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sis.config.base import Name, StrictModel
from sis.errors import SisError, first_of

Byte = Annotated[int, Field(ge=0, le=255)]


class LabelClass(StrictModel):
    """One class of a label map."""

    id: Byte = Field(description="the value stored in label maps")
    name: Annotated[str, Field(min_length=1)] = Field(description="the class' name in tables")
    colour: Annotated[list[Byte], Field(min_length=3, max_length=3)] = Field(description="RGB, for pictures")
    ignored: bool = Field(default=False, description="true: an input of the methods that no score counts")


class LabelSpace(StrictModel):
    """The label table of a dataset (config/labels/<name>.yaml)."""

    name: Name = Field(description="name of the table, equal to the file's stem")
    void: Byte = Field(description="id of unlabelled pixels: outside every class, ignored by every score")
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
        return self

    @property
    def count(self) -> int:
        """Number of classes, void not counted."""
        return len(self.classes)

    @property
    def width(self) -> int:
        """Number of channels of a one-hot map: the classes, then one channel for void."""
        return self.count + 1

    @property
    def evaluated_ids(self) -> list[int]:
        """Ids that scores count."""
        return [c.id for c in self.classes if not c.ignored]

    @cached_property
    def _channel_table(self) -> NDArray[np.uint8]:
        table = np.full(256, 255, np.uint8)
        table[: self.count] = np.arange(self.count)
        table[self.void] = self.count
        return table

    def channels(self, labels: NDArray, where: object = None) -> NDArray[np.uint8]:
        """Map stored ids `(..., h, w)` to one-hot channels 0..width-1 (void last). Raises SisError on unknown ids."""
        channels = self._channel_table[labels]
        if (channels == 255).any():
            unknown = sorted(int(v) for v in np.unique(labels[channels == 255]))
            raise SisError(
                f"label ids outside the table {self.name!r}: {first_of(unknown)}",
                where=where,
                fix=f"ids 0..{self.count - 1} and void {self.void} are allowed",
            )
        return channels

    def check(self, labels: NDArray, where: object = None) -> None:
        """Raise SisError when `labels` holds an id that is neither a class nor void."""
        self.channels(labels, where)

    def palette(self) -> NDArray[np.uint8]:
        """Colours by id, uint8 `(256, 3)`; void and unknown ids are black."""
        table = np.zeros((256, 3), np.uint8)
        for entry in self.classes:
            table[entry.id] = entry.colour
        return table
