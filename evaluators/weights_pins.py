# SPDX-License-Identifier: Apache-2.0
"""Pins: the sha256 of files whose publishers state none, kept by whoever checked them in `weights/pins.yaml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sis.config.base import Name, StrictModel
from sis.config.strict_yaml import load_yaml, validate
from sis.data.atomic import write_text_atomic
from sis.errors import SisError, did_you_mean

#: Name of the file in the weights folder.
PINS = "pins.yaml"


class Pin(StrictModel):
    """One line of the file."""

    name: Name = Field(description="a name of config/weights.yaml")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="of the file as its authors publish it"
    )


def read_pins(folder: Path, known: Sequence[str]) -> dict[str, str]:
    """The pinned sha256 by name, in the file's order; empty without a file.

    Raises SisError, with the line, for anything but a list of pins of `known` names, each once.
    """
    path = folder / PINS
    if not path.is_file():
        return {}
    data, lines = load_yaml(path)
    if not isinstance(data, list):
        raise SisError("the pins must be a YAML list", where=path)
    pins: dict[str, str] = {}
    for i, entry in enumerate(data):
        pin = validate(Pin, entry, path, {at[1:]: line for at, line in lines.items() if at[:1] == (i,)})
        where = f"{path}:{lines[(i,)]}"
        if pin.name not in known:
            raise SisError(f"pin of unknown weights {pin.name!r}", where=where, fix=did_you_mean(pin.name, known))
        if pin.name in pins:
            raise SisError(f"{pin.name} is pinned twice", where=where, fix="keep one of them")
        pins[pin.name] = pin.sha256
    return pins


def write_pins(folder: Path, pins: Mapping[str, str]) -> Path:
    """Write the file, whole or not at all; returns its path. Raises SisError where the folder cannot be written.

    There is no comment in it: one flipped bit could make a line part of it.
    """
    path = folder / PINS
    lines = [f'- {{name: {name}, sha256: "{pins[name]}"}}\n' for name in sorted(pins)]
    write_text_atomic(path, "".join(lines))
    return path
