# SPDX-License-Identifier: Apache-2.0
"""The base of every configuration model: strict types, frozen, no unknown keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

#: A name that is safe in paths, shells, wildcards and HTML ids.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]


class StrictModel(BaseModel):
    """A configuration section: no value is coerced or infinite, no key ignored, no object changed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
