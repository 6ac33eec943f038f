# SPDX-License-Identifier: Apache-2.0
"""External weights: what may lie in the weights folder, and which of it is there and right; nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, JsonValue

from evaluators.weights_bytes import hash_file, is_there, silent, size_of
from evaluators.weights_converted import converted_path, read_origin
from evaluators.weights_pins import PINS, read_pins
from sis.config.base import Name, StrictModel
from sis.config.strict_yaml import load_yaml, validate
from sis.errors import SisError, did_you_mean

_Text = Annotated[str, Field(min_length=1)]
_Link = Annotated[str, Field(pattern=r"^https?://[^\s/]+(/\S*)?$")]
_File = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class Fit(StrictModel):
    """The network that a file must fit, as `check` builds it."""

    network: Annotated[str, Field(pattern=r"^(segmenters|features)/[a-z0-9_]+$|^lpips/[a-z]+$")] = Field(
        description="segmenters/STEM or features/STEM of evaluators, or lpips/NET"
    )
    options: dict[str, JsonValue] = Field(default={}, description="options of that network")
    files: list[Name] = Field(default=[], description="all its files in the network's order; empty: this one")


class WeightCard(StrictModel):
    """One external file (config/weights.yaml)."""

    name: Name = Field(description="what the project calls it")
    file: _File = Field(description="file name in the weights folder")
    url: _Link | None = Field(description="where its authors publish it; null: nobody does")
    fetch: str = Field(default="", description="how to get the file where the link alone does not tell")
    published_as: _File | None = Field(default=None, description="its authors' file name, where ours is another")
    bytes: Annotated[int, Field(ge=1)] | None = Field(description="size, null where the publisher states none")
    megabytes: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="about so many MB, by the number of weights; to plan a download, never checked"
    )
    sha256_prefix: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")] | None = Field(
        description="first digits of the sha256, or all 64; null where the publisher states none"
    )
    licence: _Text = Field(description="terms of use, in a word")
    terms: str = Field(default="", description="what else there is to know of them")
    purpose: _Text = Field(description="what it is for")
    columns: list[_Text] = Field(default=[], description="numbers that are stand-ins, or undefined, without it")
    fits: Fit | None = Field(default=None, description="network that `check` loads it into")


@dataclass(frozen=True)
class Found:
    """A file that is there and is what it should be.

    path: file to load; sha256: of the file as its authors published it, also where `path` is converted from it;
    verified: its publisher states a hash and this is it; pinned: `pins.yaml` states it.
    """

    card: WeightCard
    path: Path
    sha256: str
    verified: bool
    pinned: bool
    converted: bool

    @property
    def state(self) -> str:
        """What tables say: "present" (published hash), "pinned" (your own) or "unverified" (no hash at all)."""
        return "present" if self.verified else "pinned" if self.pinned else "unverified"


@dataclass(frozen=True)
class WeightStore:
    """The weights folder together with the list of what may lie in it.

    pins: full sha256 by name, of files whose publisher states none (`weights/pins.yaml`).
    """

    folder: Path
    cards: tuple[WeightCard, ...]
    pins: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | str, catalogue: Path | str) -> WeightStore:
        """Read the list, and the folder's pins; the folder need not exist.

        Raises SisError, with file, line and entry, for a missing or invalid list, and for invalid pins.
        """
        folder = Path(folder)
        if os.path.lexists(folder) and not folder.is_dir():
            raise SisError("the weights folder is not a folder", where=folder)
        cards = read_catalogue(catalogue)
        return cls(folder, cards, read_pins(folder, [c.name for c in cards]))

    def card(self, name: str) -> WeightCard:
        """The card called `name`. Raises SisError for an unknown one."""
        for card in self.cards:
            if card.name == name:
                return card
        raise SisError(f"unknown weights {name!r}", fix=did_you_mean(name, [c.name for c in self.cards]))

    def find(self, name: str) -> tuple[Path, str] | None:
        """Path and full sha256 of the file called `name`, None where it is absent; see `look`."""
        found = self.look(name)
        return None if found is None else (found.path, found.sha256)

    def look(self, name: str, advance: Callable[[int], None] = silent) -> Found | None:
        """The file called `name`, None where it is absent; every byte is read each time.

        A converted file (`<file>.safetensors`, see weights_converted) comes before the one it was made from.
        advance: called with the bytes that were read. Raises SisError for an unknown name, for what is not a readable
        file, and for a file of another size or sha256 than listed or pinned.
        """
        card = self.card(name)
        original, converted = self.folder / card.file, converted_path(self.folder / card.file)
        if is_there(converted):
            origin = read_origin(converted, advance)
            self._compare(card, origin.sha256, converted, "it was made from a file whose sha256")
            if not (card.sha256_prefix or name in self.pins) and is_there(original):
                self._compare_pair(origin.sha256, original, converted, advance)
            return self._found(card, converted, origin.sha256, converted=True)
        if not is_there(original):
            return None
        return self._found(card, original, self.digest(card, advance))

    def digest(self, card: WeightCard, advance: Callable[[int], None] = silent) -> str:
        """The sha256 of the file that a card names. Raises SisError where it is not the one listed or pinned."""
        path = self.folder / card.file
        size = size_of(path)
        if size == 0:
            raise SisError("the file is empty", where=path, fix=_again(card))
        if card.bytes is not None and size != card.bytes:
            state = "truncated" if size < card.bytes else "another file"
            raise SisError(f"{state}: {size:,} of {card.bytes:,} bytes", where=path, fix=_again(card))
        digest = hash_file(path, advance)
        self._compare(card, digest, path, "sha256")
        return digest

    def advice(self, name: str) -> str:
        """One line for a missing file: what to fetch, to where, and which columns are not real until then."""
        card = self.card(name)
        size = f" ({card.megabytes:,} MB)" if card.megabytes else ""
        source = f"fetch {card.url}" if card.url else "bring your own, nobody publishes it"
        hint = f" ({card.fetch})" if card.fetch else ""
        columns = "; ".join(card.columns)
        until = f"; not real until then: {columns}" if columns else ""
        return f"{name}{size}: {source}{hint}, save it as {self.folder / card.file}{until}"

    def _found(self, card: WeightCard, path: Path, digest: str, converted: bool = False) -> Found:
        return Found(card, path, digest, card.sha256_prefix is not None, card.name in self.pins, converted)

    def _compare(self, card: WeightCard, digest: str, path: Path, what: str) -> None:
        """Hold a sha256 against the published digits and against the pin."""
        listed, pin = card.sha256_prefix, self.pins.get(card.name)
        if listed and not digest.startswith(listed):
            found = digest[: len(listed)]
            raise SisError(f"{what} begins with {found}, expected {listed}", where=path, fix=_again(card))
        if pin is not None and digest != pin:
            fix = f"{_again(card)}, or delete its line in {PINS} if you replaced it on purpose"
            raise SisError(f"{what} begins with {digest[:16]}, {PINS} has {pin[:16]}", where=path, fix=fix)

    def _compare_pair(self, digest: str, original: Path, converted: Path, advance: Callable[[int], None]) -> None:
        """Nothing states a hash: then the converted file must be of the original beside it."""
        if hash_file(original, advance) != digest:
            raise SisError(
                f"it was not made from {original.name} beside it", where=converted, fix="delete one of the two"
            )


def read_catalogue(path: Path | str) -> tuple[WeightCard, ...]:
    """Read a list of weights. Raises SisError that names file, line and entry."""
    data, lines = load_yaml(path)
    if not isinstance(data, list):
        raise SisError("the list of weights must be a YAML list", where=path)
    cards: list[WeightCard] = []
    for i, entry in enumerate(data):
        label = f"entry {i + 1}" + (f" ({entry['name']})" if isinstance(entry, dict) and "name" in entry else "")
        card = _card(entry, label, path, {at[1:]: line for at, line in lines.items() if at[:1] == (i,)})
        for other in cards:
            if card.name == other.name or card.file == other.file:
                what = f"name {card.name!r}" if card.name == other.name else f"file {card.file!r}"
                raise SisError(f"{label}: the {what} is listed twice", where=f"{path}:{lines[(i,)]}")
        cards.append(card)
    for card in cards:
        for name in card.fits.files if card.fits else []:
            if name not in [c.name for c in cards]:
                known = did_you_mean(name, [c.name for c in cards])
                raise SisError(f"entry {card.name}: fits.files names {name!r}", where=path, fix=known)
    return tuple(cards)


def _card(entry: Any, label: str, path: Path | str, lines: dict) -> WeightCard:
    try:
        return validate(WeightCard, entry, path, lines)
    except SisError as error:
        raise SisError(f"{label}: {error.what}", where=error.where, fix=error.fix) from error


def _again(card: WeightCard) -> str:
    return f"delete it, or fetch it again from {card.url}" if card.url else "delete it, or bring the right one"
