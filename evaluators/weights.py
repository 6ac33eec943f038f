# SPDX-License-Identifier: Apache-2.0
"""External weights: found in a folder, checked by their sha256, never downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sis.config.base import Name, StrictModel
from sis.config.strict_yaml import load_yaml, validate
from sis.data.manifest import file_sha256
from sis.errors import SisError, did_you_mean


class WeightCard(StrictModel):
    """One external file (config/weights.yaml)."""

    name: Name = Field(description="what the project calls it")
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] = Field(description="file name in the weights folder")
    url: str = Field(description="where its authors publish it")
    bytes: int | None = Field(description="size, null where the publisher states none")
    sha256_prefix: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")] = Field(description="first digits of the sha256")
    licence: str = Field(description="terms of use")
    purpose: str = Field(description="what it is for")


@dataclass(frozen=True)
class WeightStore:
    """The weights folder together with the list of what may lie in it."""

    folder: Path
    cards: tuple[WeightCard, ...]

    @classmethod
    def open(cls, folder: Path | str, catalogue: Path | str) -> WeightStore:
        """Read the list; the folder need not exist. Raises SisError for a missing or invalid list."""
        data, _ = load_yaml(catalogue)
        if not isinstance(data, list):
            raise SisError("the list of weights must be a YAML list", where=catalogue)
        cards = tuple(validate(WeightCard, entry, f"{catalogue}, entry {i + 1}") for i, entry in enumerate(data))
        return cls(Path(folder), cards)

    def find(self, name: str) -> tuple[Path, str] | None:
        """Path and full sha256 of the file called `name`, None where it is absent.

        Raises SisError for an unknown name and for a file whose sha256 is not the listed one.
        """
        card = next((c for c in self.cards if c.name == name), None)
        if card is None:
            raise SisError(f"unknown weights {name!r}", fix=did_you_mean(name, [c.name for c in self.cards]))
        path = self.folder / card.file
        if not path.is_file():
            return None
        digest = file_sha256(path)
        if not digest.startswith(card.sha256_prefix):
            raise SisError(
                f"sha256 begins with {digest[:8]}, expected {card.sha256_prefix}",
                where=path,
                fix=f"delete it, or fetch it again from {card.url}",
            )
        return path, digest
