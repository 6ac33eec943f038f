# SPDX-License-Identifier: Apache-2.0
"""The plan of one procedural street scene: what stands where, and in what light, before any pixel is drawn.

Lengths are in units of the image height: y runs from 0 (top) to 1 (bottom), x from 0 to the aspect w / h.
`nearness` runs from 0 (horizon) to 1 (bottom edge). Only uniform draws and + - * / are used, so a plan is
the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SKY, BUILDING, TREE, GRASS, ROAD, SIDEWALK, CAR, PERSON, POLE, SIGN = range(10)
VOID = 255
THINGS = (CAR, PERSON, POLE, SIGN)

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Style:
    """The light of a whole picture; colours are linear RGB factors in 0..1 (illumination may exceed 1)."""

    name: str
    sky_top: Colour
    sky_low: Colour
    light: Colour
    contrast: float
    haze: float
    lit: float  # share of lit windows
    autumn: float  # chance that leaves are orange or red


STYLE_TABLE = (
    Style("noon", (0.22, 0.46, 0.90), (0.68, 0.84, 1.00), (1.08, 1.05, 1.00), 1.12, 0.04, 0.20, 0.25),
    Style("overcast", (0.56, 0.60, 0.66), (0.80, 0.82, 0.85), (0.84, 0.88, 0.93), 0.85, 0.12, 0.30, 0.25),
    Style("dusk", (0.33, 0.22, 0.48), (1.00, 0.55, 0.30), (1.02, 0.70, 0.62), 1.05, 0.10, 0.55, 0.30),
    Style("night", (0.03, 0.04, 0.13), (0.13, 0.14, 0.30), (0.44, 0.49, 0.72), 1.10, 0.05, 0.60, 0.20),
    Style("haze", (0.72, 0.72, 0.68), (0.86, 0.83, 0.75), (0.95, 0.92, 0.86), 0.80, 0.42, 0.20, 0.25),
    Style("golden", (0.45, 0.62, 0.84), (1.00, 0.86, 0.58), (1.14, 0.94, 0.68), 1.08, 0.10, 0.30, 0.80),
)


class Dice:
    """Uniform draws from one stream, in words."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator

    def between(self, low: float, high: float) -> float:
        """Draw a number in [low, high)."""
        return low + (high - low) * self.generator.random()

    def chance(self, probability: float) -> bool:
        """Answer yes with the given probability."""
        return self.generator.random() < probability

    def count(self, low: int, high: int) -> int:
        """Draw an integer in low..high, both included."""
        return low + int(self.generator.random() * (high - low + 1))

    def tones(self) -> tuple[float, ...]:
        """Draw the eight numbers in [0, 1) that fix how one object looks."""
        return tuple(self.generator.random(8).tolist())


@dataclass(frozen=True)
class Item:
    """One object: its class id, its box (height units) and the numbers that fix its look."""

    kind: int
    x0: float
    y0: float
    x1: float
    y1: float
    tones: tuple[float, ...]


@dataclass(frozen=True)
class Ground:
    """The perspective ground plane: horizon, vanishing point and half widths at the bottom edge."""

    aspect: float
    horizon: float
    vanish: float
    road: tuple[float, float]  # road half width left and right of the vanishing point
    walk: tuple[float, float]  # width of the sidewalk beyond the road, left and right
    tones: tuple[float, ...]

    def spread(self, nearness: float) -> float:
        """Scale of widths at a nearness; not zero at the horizon, where the road still has a width."""
        return 0.08 + 0.92 * nearness

    def row(self, nearness: float) -> float:
        """The y coordinate of a nearness."""
        return self.horizon + (1.0 - self.horizon) * nearness


@dataclass(frozen=True)
class Layout:
    """A whole plan; `items` stand before the buildings, far to near; `oddments` and `hood` become void."""

    ground: Ground
    buildings: tuple[Item, ...]
    items: tuple[Item, ...]
    oddments: tuple[Item, ...]
    hood: Item | None
    kerb_is_void: bool


def draw_layout(dice: Dice, aspect: float) -> Layout:
    """Draw the plan of one scene for an image whose width is `aspect` times its height."""
    ground = _draw_ground(dice, aspect)
    buildings = _draw_buildings(dice, ground)
    far = [_wall_sign(dice, ground)] if dice.chance(0.35) else []
    standing = [*_draw_trees(dice, ground), *_draw_persons(dice, ground), *_draw_cars(dice, ground)]
    groups: list[tuple[Item, ...]] = [(item,) for item in standing] + _draw_poles(dice, ground)
    groups.sort(key=lambda group: group[0].y1)  # nearer objects stand lower and are drawn later
    near = [item for group in groups for item in group]
    hood = None
    if dice.chance(0.45):
        shift = dice.between(-0.1, 0.1) * aspect
        hood = Item(VOID, shift, 1.0 - dice.between(0.05, 0.11), aspect + shift, 1.04, dice.tones())
    oddments = tuple(_oddment(dice, ground) for _ in range(dice.count(1, 3)))
    return Layout(ground, tuple(buildings), (*far, *near), oddments, hood, dice.chance(0.5))


def _draw_ground(dice: Dice, aspect: float) -> Ground:
    walk = [dice.between(0.16, 0.42), dice.between(0.16, 0.42)]
    if dice.chance(0.15):
        walk[dice.count(0, 1)] = 0.0
    return Ground(
        aspect=aspect,
        horizon=dice.between(0.36, 0.5),
        vanish=aspect * dice.between(0.25, 0.75),
        road=(dice.between(0.16, 0.52), dice.between(0.16, 0.52)),
        walk=(walk[0], walk[1]),
        tones=dice.tones(),
    )


def _draw_buildings(dice: Dice, ground: Ground) -> list[Item]:
    buildings = []
    x = -dice.between(0.0, 0.15)
    while x < ground.aspect:
        if dice.chance(0.78):
            width, top = dice.between(0.2, 0.38), dice.between(0.04, ground.horizon - 0.14)
            base = ground.horizon + dice.between(0.0, 0.03)
            buildings.append(Item(BUILDING, x, top, x + width, base, dice.tones()))
            x += width
        else:
            x += dice.between(0.08, 0.24)
    return buildings


def _wall_sign(dice: Dice, ground: Ground) -> Item:
    width, height = dice.between(0.16, 0.26), dice.between(0.11, 0.15)
    x, y = dice.between(0.0, ground.aspect - width), ground.horizon - dice.between(0.16, 0.24)
    return Item(SIGN, x, y, x + width, y + height, dice.tones())


def _beside(dice: Dice, ground: Ground, nearness: float, depth: tuple[float, float]) -> float:
    """An x on a random side; `depth` 0..1 spans the sidewalk, beyond 1 lies the grass. Kept in view."""
    side = dice.count(0, 1)
    across = ground.road[side] + max(ground.walk[side], 0.1) * dice.between(*depth)
    x = ground.vanish + (across if side else -across) * ground.spread(nearness)
    if not 0.03 <= x <= ground.aspect - 0.03:  # this side is out of view here: mirror to the other one
        x = 2.0 * ground.vanish - x
    return min(max(x, 0.04), ground.aspect - 0.04)


def _draw_trees(dice: Dice, ground: Ground) -> list[Item]:
    trees = []
    for _ in range(dice.count(0, 2 + round(ground.aspect))):
        nearness = dice.between(0.02, 0.3)
        x, base = _beside(dice, ground, nearness, (0.9, 3.0)), ground.row(nearness)
        height = dice.between(0.26, 0.38) + 0.6 * nearness
        half = height * dice.between(0.32, 0.46)
        trees.append(Item(TREE, x - half, base - height, x + half, base, dice.tones()))
    return trees


def _draw_persons(dice: Dice, ground: Ground) -> list[Item]:
    persons = []
    for _ in range(dice.count(0, 2 + round(ground.aspect))):
        nearness = dice.between(0.15, 0.7)
        height = (0.14 + 0.36 * nearness) * dice.between(0.9, 1.1)
        x, base, half = _beside(dice, ground, nearness, (0.1, 0.95)), ground.row(nearness), 0.21 * height
        persons.append(Item(PERSON, x - half, base - height, x + half, base, dice.tones()))
    return persons


def _draw_cars(dice: Dice, ground: Ground) -> list[Item]:
    cars = []
    for _ in range(dice.count(0, 3)):
        nearness, lane = dice.between(0.08, 0.62), dice.between(-0.75, 0.75)
        cars.append(_car(dice, ground, nearness, lane * ground.road[int(lane > 0)]))
        if dice.chance(0.4):  # a second car partly in front of the first, so touching instances exist
            aside = dice.between(0.1, 0.2) * (-1.0 if lane > 0 else 1.0)
            cars.append(_car(dice, ground, nearness + dice.between(0.03, 0.1), lane * 0.3 + aside))
    return cars


def _car(dice: Dice, ground: Ground, nearness: float, across: float) -> Item:
    width = (0.11 + 0.42 * nearness) * dice.between(0.92, 1.1)
    height = width * dice.between(0.72, 0.9)
    x, base = ground.vanish + across * ground.spread(nearness), ground.row(nearness)
    return Item(CAR, x - width / 2, base - height, x + width / 2, base, dice.tones())


def _draw_poles(dice: Dice, ground: Ground) -> list[tuple[Item, ...]]:
    """Poles at the kerb; most carry a sign, which is drawn right after its pole."""
    groups: list[tuple[Item, ...]] = []
    for _ in range(dice.count(0, 2 + round(0.5 * ground.aspect))):
        nearness = dice.between(0.05, 0.55)
        x, base = _beside(dice, ground, nearness, (0.0, 0.3)), ground.row(nearness)
        height, half = dice.between(0.34, 0.5) + 0.35 * nearness, 0.013 + 0.012 * nearness
        pole = Item(POLE, x - half, base - height, x + half, base, dice.tones())
        if dice.chance(0.6):
            reach = 0.055 + 0.06 * nearness
            top = pole.y0 + dice.between(-0.01, 0.05)
            sign = Item(SIGN, x - reach, top, x + reach, top + 2.0 * reach, dice.tones())
            groups.append((pole, sign))
        else:
            groups.append((pole,))
    return groups


def _oddment(dice: Dice, ground: Ground) -> Item:
    """A small thing nobody labelled (a bin, a cone, litter), anywhere on the ground."""
    half = dice.between(0.025, 0.055)
    x, y = dice.between(0.0, ground.aspect), dice.between(ground.horizon, 0.95)
    return Item(VOID, x - half, y - half, x + half, y + half, dice.tones())
