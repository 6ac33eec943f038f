# SPDX-License-Identifier: Apache-2.0
"""The leaderboard as one self-contained HTML page and as JSON.

The page asks for nothing from outside: its style and script are allowed by their sha256 in a content security
policy, its pictures are data URIs, and without script it is a plain sorted table.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from sis.publish.columns import format_number, format_signed
from sis.publish.gallery import Gallery
from sis.publish.page_pictures import Picture, data_uri
from sis.publish.timings import format_bytes, format_duration

#: Bytes that the pictures of a page may take (the whole page stays under 3 MB).
PICTURE_BUDGET = 2_300_000

#: (longest side in pixels, JPEG quality) from best to last resort; the first that fits the budget is used.
_ENCODINGS = ((192, 88), (160, 84), (128, 78), (96, 70), (72, 60), (48, 45), (32, 35))

#: Thumbnails in the details of a row.
STRIP = 4

#: Length of the bar under a number, in pixels.
BAR = 84


def render_json(data: dict) -> str:
    """Serialise the page's data; keys are sorted and NaN is refused."""
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def render_page(data: dict, galleries: Mapping[str, Gallery]) -> str:
    """Render `page_data` as HTML; `galleries` is keyed by dataset and must hold those named in the data."""
    style, script = _asset("leaderboard.css"), _asset("leaderboard.js")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(duration=format_duration, size=format_bytes)
    template = environment.from_string(_asset("leaderboard.html.j2"))
    return template.render(
        page=data,
        pictures=_encoded_within_budget(galleries),
        # Both are our own files, never input; everything else on the page is escaped.
        style=Markup(style),
        script=Markup(script),
        policy=content_security_policy(style, script),
        number=format_number,
        signed=format_signed,
        bar=bar_geometry,
        stand_ins=_stand_ins(data),
        timeline=partial(_timeline, end=_last_moment(data)),
        strip=STRIP,
        bar_width=BAR,
    )


def content_security_policy(style: str, script: str) -> str:
    """Forbid everything but this very style, this very script and pictures inside the page."""
    return (
        f"default-src 'none'; style-src '{_sha256(style)}'; script-src '{_sha256(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def bar_geometry(cell: dict, domain: list[float] | None) -> dict[str, Any] | None:
    """Place a value, its interval and single seeds on a bar of BAR pixels; None when there is nothing to draw."""
    if domain is None or cell["value"] is None:
        return None
    start, end = domain
    scale = (BAR - 4) / (end - start) if end > start else 0.0

    def place(number: float) -> float:
        return round(2 + (number - start) * scale, 2)

    value, seeds = place(cell["value"]), [place(one) for one in cell.get("seeds", [])]
    if cell["low"] is None or cell["high"] is None:
        return {"value": value, "low": value, "width": 0.0, "seeds": seeds}
    low, high = place(cell["low"]), place(cell["high"])
    return {"value": value, "low": low, "width": round(high - low, 2), "seeds": seeds}


def _encoded_within_budget(galleries: Mapping[str, Gallery]) -> dict[str, dict]:
    encoded: dict[str, dict] = {}
    for encoding in _ENCODINGS:
        encoded = {name: _encoded(gallery, encoding) for name, gallery in galleries.items()}
        if sum(map(_bytes, encoded.values())) <= PICTURE_BUDGET:
            break
    return encoded


def _encoded(gallery: Gallery, encoding: tuple[int, int]) -> dict:
    """Turn a gallery's pictures into data URIs, in the shape that the template reads."""

    def uri(picture: Picture) -> str:
        return data_uri(picture, *encoding)

    return {
        "palettes": [uri(p) for p in gallery.palettes],
        "reals": [uri(p) for p in gallery.reals],
        "runs": {strip.run_id: [uri(p) for p in strip.pictures] for strip in gallery.strips},
        "titles": {strip.run_id: strip.title for strip in gallery.strips},
        "small": max(gallery.palettes[0].shape[:2]) < 128,
        "samples": [
            {
                "image_id": group.image_id,
                "palette": uri(group.palette),
                "real": None if group.real is None else uri(group.real),
                "strips": [
                    {"title": strip.title, "pictures": [uri(p) for p in strip.pictures]} for strip in group.strips
                ],
            }
            for group in gallery.samples
        ],
    }


def _bytes(encoded: dict) -> int:
    # The first pictures of every run appear twice: in the gallery and in the run's details.
    runs = sum(len(uri) for strip in encoded["runs"].values() for uri in [*strip, *strip[:STRIP]])
    samples = sum(len(uri) for group in encoded["samples"] for strip in group["strips"] for uri in strip["pictures"])
    return runs + samples + sum(map(len, encoded["palettes"] + encoded["reals"]))


def _stand_ins(data: dict) -> list[str]:
    return sorted({c["stand_in"] for board in data["boards"] for c in board["columns"] if c["stand_in"]})


def _last_moment(data: dict) -> float:
    ends = [end for stage in data["timings"] for _, end in stage["intervals"]]
    return max(ends, default=0.0) or 1.0


def _timeline(stage: dict, end: float) -> list[tuple[float, float]]:
    """Place the jobs of a stage on a line of 1000 units: (start, length), never thinner than visible."""
    return [
        (round(min(start / end * 1000, 997.0), 1), round(max((stop - start) / end * 1000, 3.0), 1))
        for start, stop in stage["intervals"]
    ]


def _asset(name: str) -> str:
    return (files("sis.publish") / "templates" / name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
