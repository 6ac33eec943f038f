# SPDX-License-Identifier: Apache-2.0
"""Painting of a street-scene plan: label map, instance map and a picture in which texture tells the class.

Instance colours are drawn widely and overlap between classes on purpose; what distinguishes a class is its
texture (window grids, tile joints, grass streaks, leaf blotches) and the arrangement of its parts. Textures
have periods of 3 to 8 pixels at 64 x 64 and grow with the picture. Arithmetic is float32 with + - * / only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from sis.data.scenes_layout import (
    BUILDING,
    CAR,
    GRASS,
    PERSON,
    POLE,
    ROAD,
    SIDEWALK,
    SIGN,
    SKY,
    THINGS,
    TREE,
    VOID,
    Dice,
    Ground,
    Item,
    Layout,
    Style,
)

Array = np.ndarray


def hsv(hue: float, saturation: float, value: float) -> Array:
    """Turn hue (turns), saturation and value into float32 RGB of shape (3,)."""
    channels = []
    for n in (5.0, 3.0, 1.0):
        k = (n + 6.0 * hue) % 6.0
        channels.append(value - value * saturation * max(0.0, min(k, 4.0 - k, 1.0)))
    return np.array(channels, dtype=np.float32)


@lru_cache(maxsize=16)
def _axes(height: int, width: int) -> tuple[Array, Array]:
    """Row and column indices as broadcastable int64 arrays of shape (h, 1) and (1, w) (read-only)."""
    rows, cols = np.arange(height)[:, None], np.arange(width)[None, :]
    rows.flags.writeable = cols.flags.writeable = False
    return rows, cols


@lru_cache(maxsize=64)
def _ramp(length: int, cell: int) -> tuple[Array, Array]:
    """Cell index and float32 position within the cell for every pixel of one axis (read-only)."""
    at = np.arange(length)
    index, place = at // cell, ((at % cell) / np.float32(cell)).astype(np.float32)
    index.flags.writeable = place.flags.writeable = False
    return index, place


def _blotches(generator: np.random.Generator, height: int, width: int, cell: int) -> Array:
    """Smooth noise in [0, 1), float32 (h, w): random values every `cell` pixels, linear in between."""
    iy, fy = _ramp(height, cell)
    ix, fx = _ramp(width, cell)
    grid = generator.random((int(iy[-1]) + 2, int(ix[-1]) + 2), dtype=np.float32)
    rows = grid[iy] + (grid[iy + 1] - grid[iy]) * fy[:, None]
    return rows[:, ix] + (rows[:, ix + 1] - rows[:, ix]) * fx[None, :]


@dataclass
class Canvas:
    """The growing picture: float32 RGB, labels, instances, shared textures and the texture stream."""

    rgb: Array
    label: Array
    instance: Array
    style: Style
    dice: Dice
    grain: float  # pixels of texture per pixel at 64 x 64
    leaf: Array
    counts: dict[int, int] = field(default_factory=dict)

    def period(self, at64: float) -> int:
        """A texture period of `at64` pixels at 64 x 64, at this size (at least 2)."""
        return max(2, round(at64 * self.grain))

    def box(self, item: Item, least: int = 1) -> tuple[tuple[slice, slice], Array, Array] | None:
        """Visible pixel window of an item and its coordinates u, v in 0..1; None when out of view."""
        height, width = self.label.shape
        top, left = round(item.y0 * height), round(item.x0 * height)
        tall = max(least, round((item.y1 - item.y0) * height))
        wide = max(least, round((item.x1 - item.x0) * height))
        r0, r1, c0, c1 = max(top, 0), min(top + tall, height), max(left, 0), min(left + wide, width)
        if r0 >= r1 or c0 >= c1:
            return None
        rows, cols = _axes(height, width)
        v = (rows[r0:r1] - np.float32(top - 0.5)) / np.float32(tall)
        u = (cols[:, c0:c1] - np.float32(left - 0.5)) / np.float32(wide)
        return (slice(r0, r1), slice(c0, c1)), u.astype(np.float32), v.astype(np.float32)

    def stamp(self, window: tuple[slice, slice], mask: Array, colour: Array, kind: int) -> None:
        """Write colour, label and (for things) the next instance id where the mask holds."""
        number = 0
        if kind in THINGS:
            running = self.counts.get(kind, 0)
            self.counts[kind] = running + 1
            number = kind * 1000 + running
        np.copyto(self.rgb[window], colour, where=mask[..., None])
        np.copyto(self.label[window], np.uint8(kind), where=mask)
        np.copyto(self.instance[window], np.uint16(number), where=mask)


def paint(layout: Layout, style: Style, dice: Dice, height: int, width: int) -> Canvas:
    """Paint a plan; `canvas.rgb` is still ungraded, see `grade`."""
    canvas = Canvas(
        rgb=np.empty((height, width, 3), dtype=np.float32),
        label=np.zeros((height, width), dtype=np.uint8),
        instance=np.zeros((height, width), dtype=np.uint16),
        style=style,
        dice=dice,
        grain=min(height, width) / 64.0,
        leaf=np.empty(0),
    )
    canvas.leaf = _blotches(dice.generator, height, width, canvas.period(2.6))
    _paint_sky(canvas)
    for item in layout.buildings:
        _building(canvas, item)
    _paint_ground(canvas, layout)
    painters = {TREE: _tree, CAR: _car, PERSON: _person, POLE: _pole, SIGN: _sign}
    for item in layout.items:
        painters[item.kind](canvas, item)
    for item in layout.oddments:
        _oddment(canvas, item)
    if layout.hood is not None:
        _hood(canvas, layout.hood)
    return canvas


def grade(canvas: Canvas, horizon: float) -> Array:
    """Put the style's light over the painted scene and return uint8 RGB (h, w, 3)."""
    height, width = canvas.label.shape
    style, dice = canvas.style, canvas.dice
    light = np.array(style.light, dtype=np.float32) * np.float32(dice.between(0.85, 1.12))
    low = np.array(style.sky_low, dtype=np.float32)
    rows = (np.arange(height, dtype=np.float32) + np.float32(0.5)) / np.float32(height)
    depth = np.minimum((1 - rows) / np.float32(1 - horizon), 1) * np.float32(style.haze)
    graded = (canvas.rgb - np.float32(0.5)) * np.float32(style.contrast) + np.float32(0.5)
    graded = graded * light
    graded += (low - graded) * depth[:, None, None]
    np.copyto(graded, canvas.rgb, where=(canvas.label == SKY)[..., None])
    noise = dice.generator.random((height, width, 3), dtype=np.float32)
    graded += (noise - np.float32(0.5)) * np.float32(0.035)
    return (np.clip(graded, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _paint_sky(canvas: Canvas) -> None:
    height, width = canvas.label.shape
    dice, style = canvas.dice, canvas.style
    shift = np.array([dice.between(-0.06, 0.06) for _ in range(3)], dtype=np.float32)
    top, low = (np.array(c, dtype=np.float32) + shift for c in (style.sky_top, style.sky_low))
    fall = np.minimum(np.arange(height, dtype=np.float32) / np.float32(0.5 * height), 1)
    canvas.rgb[...] = top + (low - top) * fall[:, None, None]
    cloud = _blotches(dice.generator, height, width, canvas.period(14))
    cover = np.clip((cloud - np.float32(dice.between(0.4, 0.75))) * np.float32(1.8), 0, 1)[..., None]
    canvas.rgb += (np.float32(0.35) + low * np.float32(0.65) - canvas.rgb) * cover * np.float32(0.8)


def _paint_ground(canvas: Canvas, layout: Layout) -> None:
    height, width = canvas.label.shape
    ground, tones = layout.ground, layout.ground.tones
    start = round(ground.horizon * height)
    rows, cols = _axes(height, width)
    y = ((rows[start:] + np.float32(0.5)) / np.float32(height)).astype(np.float32)
    nearness = (y - np.float32(ground.horizon)) / np.float32(1 - ground.horizon)
    nearness = np.maximum(nearness, np.float32(0.005))
    spread = np.float32(0.08) + np.float32(0.92) * nearness
    x = ((cols + np.float32(0.5)) / np.float32(height)).astype(np.float32)
    across = (x - np.float32(ground.vanish)) / spread  # lateral place as seen at the bottom edge
    window = (slice(start, height), slice(0, width))
    everywhere = np.ones(across.shape, dtype=bool)
    canvas.stamp(window, everywhere, _grass(canvas, across.shape, tones), GRASS)
    (left, right), (walk_left, walk_right) = ground.road, ground.walk
    paved = (across > -(left + walk_left)) & (across < right + walk_right)
    canvas.stamp(window, paved, _tiles(canvas, start, tones), SIDEWALK)
    road = (across > -left) & (across < right)
    canvas.stamp(window, road, _asphalt(canvas, ground, across, nearness), ROAD)
    if layout.kerb_is_void:
        half = np.float32(0.6 / height) / spread
        kerb = (np.abs(across + np.float32(left)) < half) | (np.abs(across - np.float32(right)) < half)
        canvas.stamp(window, kerb, hsv(tones[6], 0.15, 0.2 + 0.7 * tones[7]), VOID)


def _grass(canvas: Canvas, shape: tuple[int, ...], tones: tuple[float, ...]) -> Array:
    """Upright streaks, one pixel wide and a few pixels tall, each column with its own phase."""
    tall, generator = canvas.period(4), canvas.dice.generator
    rows, cols = _axes(shape[0], shape[1])
    wide = max(1, round(canvas.grain))
    count = shape[1] // wide + 1
    table = generator.random((shape[0] // tall + 3, count), dtype=np.float32)
    phase = (generator.random(count, dtype=np.float32) * tall).astype(np.int64)
    blade = cols // wide
    streak = table[(rows + phase[blade]) // tall, blade]
    base = hsv(0.07 + 0.3 * tones[0], 0.25 + 0.5 * tones[1], 0.35 + 0.5 * tones[2])
    return base * (np.float32(0.66) + np.float32(0.62) * streak)[..., None]


def _tiles(canvas: Canvas, start: int, tones: tuple[float, ...]) -> Array:
    """Slabs in running bond: dark joints on a regular grid, slightly different slabs."""
    height, width = canvas.label.shape
    tall, wide = canvas.period(4), canvas.period(6)
    joint = max(1, round(canvas.grain))
    rows, cols = _axes(height, width)
    course = rows[start:] // tall
    shifted = cols + (course % 2) * (wide // 2)
    slab = canvas.dice.generator.random((height // tall + 1, width // wide + 3), dtype=np.float32)
    shade = np.float32(0.94) + np.float32(0.14) * slab[course, shifted // wide]
    gap = (rows[start:] % tall < joint) | (shifted % wide < joint)
    shade = np.where(gap, np.float32(0.5), shade)
    return hsv(0.05 + 0.1 * tones[3], 0.35 * tones[1], 0.4 + 0.5 * tones[4])[None, None] * shade[..., None]


def _asphalt(canvas: Canvas, ground: Ground, across: Array, nearness: Array) -> Array:
    """Fine grain with a dashed light centre line and solid edge lines that narrow with distance."""
    rows, width = across.shape
    cell = canvas.period(2)
    noise = canvas.dice.generator.random((rows // cell + 1, width // cell + 1), dtype=np.float32)
    y, x = _axes(rows, width)
    shade = np.float32(0.9) + np.float32(0.2) * noise[y // cell, x // cell]
    tones = ground.tones
    colour = hsv(tones[0], 0.12 * tones[3], 0.25 + 0.5 * tones[5])[None, None] * shade[..., None]
    left, right = ground.road
    half = np.maximum(np.float32(0.02), np.float32(0.5 / canvas.label.shape[0]) / nearness)
    centre = np.abs(across - np.float32((right - left) / 2)) < half
    dash = ((np.float32(1.6) / (nearness + np.float32(0.12)) + np.float32(tones[6])) % 1) < np.float32(0.55)
    inner = np.minimum(across + np.float32(left), np.float32(right) - across)
    edge = (inner > np.float32(0.035)) & (inner < np.float32(0.035) + half)
    paint_colour = hsv(0.13, 0.6 if tones[7] > 0.7 else 0.03, 0.98)
    colour[(centre & dash) | edge] = paint_colour
    return colour


def _building(canvas: Canvas, item: Item) -> None:
    found = canvas.box(item)
    if found is None:
        return
    window, u, v = found
    height = canvas.label.shape[0]
    tones = item.tones
    step_x, step_y = canvas.period(4 + int(tones[3] * 3)), canvas.period(5 + int(tones[4] * 3))
    gap_x, gap_y = max(1, round(step_x * 0.45)), max(1, round(step_y * 0.4))
    rows, cols = _axes(*canvas.label.shape)
    y, x = rows[window[0]] - round(item.y0 * height), cols[:, window[1]] - round(item.x0 * height)
    pane = (x % step_x >= gap_x) & (y % step_y >= gap_y) & (v > 0.04) & (u > 0.03)
    table = canvas.dice.generator.random((int(y[-1, 0]) // step_y + 1, int(x[0, -1]) // step_x + 1))
    lit = table[y // step_y, x // step_x] < canvas.style.lit * (0.4 + 1.2 * tones[5])
    wall = hsv(tones[0], 0.6 * tones[1] * tones[1] + 0.05, 0.35 + 0.6 * tones[2])
    colour = np.empty((*pane.shape, 3), dtype=np.float32)
    colour[...] = wall
    colour[pane] = wall * np.float32(0.22) + np.array((0.02, 0.03, 0.06), dtype=np.float32)
    # lit panes exceed 1 so that they still shine after the night grading
    colour[pane & lit] = hsv(0.12, 0.35, 1.6 if canvas.style.light[0] < 0.6 else 1.05)
    colour[np.broadcast_to(y < max(1, canvas.grain), pane.shape)] = wall * np.float32(0.55)
    canvas.stamp(window, np.ones(pane.shape, dtype=bool), colour, BUILDING)


def _tree(canvas: Canvas, item: Item) -> None:
    found = canvas.box(item, least=6)
    if found is None:
        return
    window, u, v = found
    tones, leaf = item.tones, canvas.leaf[window]
    ragged = np.float32(0.72) + np.float32(0.56) * leaf
    crown = np.zeros(leaf.shape, dtype=bool)
    lean = 0.12 * (tones[4] - 0.5)
    lobes = ((0.5, 0.33, 0.42, 0.33), (0.3 + lean, 0.45, 0.3, 0.24), (0.7 + lean, 0.47, 0.3, 0.24))
    for centre_u, centre_v, reach_u, reach_v in lobes:
        du = (u - np.float32(centre_u)) / np.float32(reach_u)
        dv = (v - np.float32(centre_v)) / np.float32(reach_v)
        crown |= du * du + dv * dv < ragged
    if tones[5] < canvas.style.autumn:
        base = hsv(-0.02 + 0.15 * tones[0], 0.55 + 0.4 * tones[1], 0.45 + 0.5 * tones[2])
    else:
        base = hsv(0.2 + 0.22 * tones[0], 0.25 + 0.5 * tones[1], 0.3 + 0.5 * tones[2])
    # three flat levels (hole, shade, sunlit) read as leaves even at 64 x 64
    level = np.where(leaf < 0.36, np.float32(0.22), np.where(leaf < 0.55, np.float32(0.8), np.float32(1.3)))
    colour = base * level[..., None]
    trunk = (np.abs(u - np.float32(0.5)) < max(0.07, 1.0 * canvas.grain / leaf.shape[1])) & (v > 0.6) & ~crown
    colour[trunk] = hsv(0.07, 0.5, 0.2 + 0.25 * tones[3])
    canvas.stamp(window, crown | trunk, colour, TREE)


def _car(canvas: Canvas, item: Item) -> None:
    found = canvas.box(item, least=5)
    if found is None:
        return
    window, u, v = found
    tones = item.tones
    mid = np.abs(u - np.float32(0.5))
    body = (v > 0.4) & (v < 0.9) & (mid < 0.49) | (v >= 0.36) & (v <= 0.4) & (mid < 0.45)
    cabin = (v <= 0.45) & (mid < np.float32(0.28) + np.float32(0.32) * v)
    wheels = (v > 0.74) & (mid > 0.24) & (mid < 0.46)
    glass = (v > 0.1) & (v < 0.4) & (mid < np.float32(0.2) + np.float32(0.32) * v)
    colour = np.empty((v.shape[0], u.shape[1], 3), dtype=np.float32)
    paint_colour = hsv(tones[0], 0.9 * tones[1], 0.3 + 0.7 * tones[2])
    colour[...] = paint_colour
    colour[np.broadcast_to(v < 0.12, glass.shape)] = paint_colour * np.float32(1.15)
    colour[glass] = (0.07, 0.1, 0.16)
    colour[(v > 0.66) & (v < 0.76) & (mid < 0.3)] = paint_colour * np.float32(0.5)  # bumper shadow
    lamp = hsv(0.0, 0.9, 1.2) if tones[3] < 0.5 else hsv(0.14, 0.15, 1.5)
    colour[(v > 0.5) & (v < 0.66) & (mid > 0.32) & (mid < 0.47)] = lamp
    colour[wheels] = 0.05
    shadow = (v > 0.84) & (mid < 0.5)
    canvas.rgb[window][shadow] *= np.float32(0.5)  # ground under the car; its label stays
    canvas.stamp(window, body | cabin | wheels, colour, CAR)


def _person(canvas: Canvas, item: Item) -> None:
    found = canvas.box(item, least=3)
    if found is None:
        return
    window, u, v = found
    tones = item.tones
    mid = np.abs(u - np.float32(0.5))
    dv = (v - np.float32(0.11)) / np.float32(0.12)
    du = mid / np.float32(0.27)
    head = du * du + dv * dv < 1
    torso = (v >= 0.22) & (v < 0.56) & (mid < 0.46)
    legs = (v >= 0.56) & (mid < 0.36) & ((mid > 0.08) | (v < 0.68))
    colour = np.empty((v.shape[0], u.shape[1], 3), dtype=np.float32)
    colour[...] = hsv(tones[3], 0.7 * tones[4], 0.12 + 0.6 * tones[5])  # trousers
    shirt = hsv(tones[0], 0.85 * tones[1], 0.3 + 0.7 * tones[2])
    colour[torso] = shirt
    colour[torso & (mid > 0.32)] = shirt * np.float32(0.6)  # arms
    colour[head] = hsv(0.06, 0.3 + 0.35 * tones[6], 0.95 - 0.55 * tones[6] * tones[6])
    colour[head & (v < 0.06)] = hsv(0.08, 0.5, 0.1 + 0.5 * tones[7])  # hair
    canvas.stamp(window, head | torso | legs, colour, PERSON)


def _pole(canvas: Canvas, item: Item) -> None:
    found = canvas.box(item, least=2)
    if found is None:
        return
    window, u, v = found
    tones = item.tones
    base = hsv(tones[0], 0.5 * tones[1], 0.45 + 0.4 * tones[2])
    tone = np.where(u < np.float32(0.5), np.float32(1.5), np.float32(0.3))
    colour = np.broadcast_to(base * tone[..., None], (v.shape[0], u.shape[1], 3))
    canvas.stamp(window, np.ones(colour.shape[:2], dtype=bool), colour, POLE)


def _sign(canvas: Canvas, item: Item) -> None:
    found = canvas.box(item, least=5)
    if found is None:
        return
    window, u, v = found
    tones = item.tones
    du, dv = np.abs(u - np.float32(0.5)), np.abs(v - np.float32(0.5))
    square = np.maximum(du, dv)
    wide = item.x1 - item.x0 > 1.1 * (item.y1 - item.y0)
    form = "box" if wide or tones[3] < 0.45 else ("disc" if tones[3] < 0.75 else "diamond")
    reach = {"box": square, "disc": np.sqrt(du * du + dv * dv), "diamond": (du + dv) * np.float32(0.78)}[form]
    mask = reach < (0.5 if form == "diamond" else 0.51)
    rim = np.float32(0.5 - max(0.13, 1.05 * canvas.grain / max(2, mask.shape[1])))
    colour = np.full((*mask.shape, 3), 0.97, dtype=np.float32)
    inner = reach < rim
    colour[inner] = hsv(tones[0], 0.55 + 0.45 * tones[1], 0.35 + 0.6 * tones[2])
    colour[inner & (dv < 0.11) & (du < 0.26)] = 0.97  # the bar on the field
    canvas.stamp(window, mask, colour, SIGN)


def _oddment(canvas: Canvas, item: Item) -> None:
    found = canvas.box(item, least=2)
    if found is None:
        return
    window, u, v = found
    tones = item.tones
    du, dv = u - np.float32(0.5), v - np.float32(0.5)
    mask = np.maximum(np.abs(du), np.abs(dv)) < 0.5 if tones[3] < 0.5 else du * du + dv * dv < 0.25
    stripes = ((u + v) * np.float32(2) % 1 < 0.5)[..., None]
    colour = np.where(stripes, hsv(tones[0], tones[1], tones[2]), hsv(tones[4], tones[5], tones[6]))
    canvas.stamp(window, mask, colour, VOID)


def _hood(canvas: Canvas, item: Item) -> None:
    found = canvas.box(item)
    if found is None:
        return
    window, u, v = found
    tones = item.tones
    arch = (u - np.float32(0.5)) * (u - np.float32(0.5)) * np.float32(1.2 + tones[3])
    mask = v > arch
    sheen = np.float32(1.25) - np.float32(0.9) * (v - arch)
    colour = hsv(tones[0], 0.6 * tones[1], 0.2 + 0.7 * tones[2]) * np.clip(sheen, 0, 2)[..., None]
    canvas.stamp(window, mask, colour, VOID)
