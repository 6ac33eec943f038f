# SPDX-License-Identifier: Apache-2.0
"""The leaderboard in a real browser: sorting, filtering, keyboard, tabs, no script, dark, hostile titles."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import publish_example as example
import pytest

pytestmark = pytest.mark.browser

Open = Callable[..., Any]

CONTESTANTS = sum(role == "contestant" for _, _, _, role, _, _ in example.RUNS)
CONTROLS = len(example.RUNS) - CONTESTANTS


def _all(driver: Any, selector: str) -> list[Any]:
    return driver.find_elements("css selector", selector)


def _one(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def _shown(driver: Any, body: str) -> list[str]:
    return [row.get_attribute("data-title") for row in _all(driver, f"tbody.{body} > tr.run") if row.is_displayed()]


def _column(driver: Any, key: str) -> list[float | None]:
    index = int(_one(driver, f'th[data-key="{key}"]').get_attribute("data-index")) + 3
    cells = _all(driver, f"tbody.contestants > tr.run > :nth-child({index})")
    texts = [cell.get_attribute("data-value") for cell in cells]
    return [float(text) if text else None for text in texts]


def _ranks(driver: Any) -> list[str]:
    return [cell.text for cell in _all(driver, "tbody.contestants > tr.run > .rank")]


def test_every_run_has_a_row_and_nothing_is_requested(load: Open) -> None:
    driver = load()
    assert len(_shown(driver, "contestants")) == CONTESTANTS
    assert len(_shown(driver, "controls")) == CONTROLS
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == 1


def test_clicking_a_heading_sorts_and_leaves_the_controls_in_place(load: Open) -> None:
    driver = load()
    controls = _shown(driver, "controls")
    head = _one(driver, 'th[data-key="fd-scenes-segmenter"]')
    _one(head, "button").click()
    values = _column(driver, "fd-scenes-segmenter")
    assert values == sorted(values, key=lambda v: v or 0.0)  # lower is better: best first is ascending
    assert head.get_attribute("aria-sort") == "ascending"
    assert _one(driver, "th.rank .by").text == "by FD"
    assert _ranks(driver)[0] == "1"
    _one(head, "button").click()
    assert _column(driver, "fd-scenes-segmenter") == values[::-1]
    assert head.get_attribute("aria-sort") == "descending"
    assert _shown(driver, "controls") == controls
    assert [b.get_attribute("class") for b in _all(driver, ".board-table > tbody")] == ["contestants", "controls"]


def test_undefined_values_come_last_in_either_direction(load: Open) -> None:
    driver = load()
    for _ in range(2):
        _one(driver, 'th[data-key="images-per-second"] button').click()
        assert _column(driver, "images-per-second")[-1] is None


def test_details_stay_with_their_row_when_it_moves(load: Open) -> None:
    driver = load()
    _one(driver, 'th[data-key="title"] button').click()
    _one(driver, 'tr[data-title="SPADE"] summary').click()
    detail = _one(driver, 'tr[data-title="SPADE"] + tr.detail')
    assert detail.is_displayed()
    assert "sis sample --run spade" in detail.text
    assert len(_all(detail, ".strip img")) == 4
    assert len(_all(detail, ".classes tr")) == len(example.CLASSES)
    assert len([d for d in _all(driver, "tr.detail") if d.is_displayed()]) == 1


def test_search_and_chips_filter(load: Open) -> None:
    driver = load()
    _one(driver, "input[type=search]").send_keys("sdm prior")
    assert _shown(driver, "contestants") == ["SDM + categorical prior"]
    assert _one(driver, ".shown").text == f"1 of {CONTESTANTS} contestants"
    _one(driver, "input[type=search]").clear()
    _one(driver, "input[type=search]").send_keys("no such run")
    assert _one(driver, ".nothing").is_displayed()
    _one(driver, ".reset").click()
    assert len(_shown(driver, "contestants")) == CONTESTANTS
    _one(driver, '.chip[data-filter="images"]').click()
    assert _shown(driver, "contestants") == ["OASIS, released images"]
    _one(driver, '.chip[data-toggle="controls"]').click()
    assert _shown(driver, "controls") == []


def test_the_keyboard_is_enough(load: Open) -> None:
    from selenium.webdriver.common.keys import Keys

    driver = load()
    key = None
    for _ in range(40):
        driver.switch_to.active_element.send_keys(Keys.TAB)
        key = driver.execute_script("return document.activeElement.closest('th')?.dataset.key")
        if key == "accuracy":
            break
    assert key == "accuracy"
    driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert _one(driver, 'th[data-key="accuracy"]').get_attribute("aria-sort") == "descending"
    driver.switch_to.active_element.send_keys(Keys.SPACE)
    values = _column(driver, "accuracy")
    assert values == sorted(values, key=lambda v: v or 0.0)
    _one(driver, "tr.run summary").send_keys(Keys.ENTER)
    assert _one(driver, "tr.run:first-child + tr.detail").is_displayed()


def test_the_fragment_holds_the_view(load: Open) -> None:
    driver = load(fragment="#sort=accuracy&dir=ascending&kind=python&controls=no")
    assert _one(driver, 'th[data-key="accuracy"]').get_attribute("aria-sort") == "ascending"
    assert len(_shown(driver, "contestants")) == sum(kind == "python" for _, _, kind, _, _, _ in example.RUNS)
    assert _shown(driver, "controls") == []
    _one(driver, '.chip[data-filter="all"]').click()
    assert driver.current_url.endswith("#sort=accuracy&dir=ascending&controls=no")


def test_unknown_fragments_are_harmless(load: Open) -> None:
    driver = load(fragment="#board=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E&sort=nonsense&dir=up&kind=%22")
    assert len(_shown(driver, "controls")) == CONTROLS


def test_a_script_in_a_title_is_text(load: Open) -> None:
    driver = load()
    assert driver.execute_script("return window.hacked") is None
    assert example.HOSTILE in _shown(driver, "contestants")
    assert example.HOSTILE in [s.text for s in _all(driver, "th.name summary")]
    assert len(_all(driver, "script")) == 1


def test_injected_scripts_styles_and_requests_are_blocked_by_the_policy(load: Open) -> None:
    driver = load()
    driver.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.hacked = true';"
        "document.body.append(s); document.body.append(Object.assign(new Image(), {src: 'file:///x.png'}));"
    )
    assert driver.execute_script("return window.hacked") is None
    messages = [entry["message"] for entry in driver.get_log("browser")]
    assert len(messages) == 2
    assert all("Content Security Policy" in message for message in messages)


def test_without_script_it_is_a_plain_sorted_table(load: Open) -> None:
    driver = load("two", script=False)
    assert len(_shown(driver, "contestants")) == 2 * CONTESTANTS
    assert len(_shown(driver, "controls")) == 2 * CONTROLS
    assert not _one(driver, ".tools").is_displayed()
    assert _all(driver, "th button") == []
    ranks = [int(text) for text in _ranks(driver)[:CONTESTANTS]]
    assert ranks == sorted(ranks)
    _one(driver, "tr.run summary").click()
    assert _one(driver, "tr.run:first-child + tr.detail").is_displayed()


def test_tabs_switch_datasets_by_click_and_arrow_key(load: Open) -> None:
    from selenium.webdriver.common.keys import Keys

    driver = load("two")
    tabs = _all(driver, "[role=tab]")
    assert [tab.text for tab in tabs] == ["scenes", "streets"]
    assert [b.is_displayed() for b in _all(driver, ".board")] == [True, False]
    tabs[0].send_keys(Keys.ARROW_RIGHT)
    assert [b.is_displayed() for b in _all(driver, ".board")] == [False, True]
    assert "board=streets-scenes" in driver.current_url
    tabs[0].click()
    assert [tab.get_attribute("aria-selected") for tab in tabs] == ["true", "false"]


def _luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast_in_both_schemes(load: Open, dark: bool) -> None:
    driver = load(dark=dark)
    paper = "return getComputedStyle(document.body).backgroundColor"
    background = driver.execute_script(paper)
    assert (_luminance(background) < 0.2) == dark
    for selector in (".value", ".interval", "tr.run .badge", "td.rank", "h1", ".lede", ".counts", "small.sub"):
        assert _contrast(_one(driver, selector).value_of_css_property("color"), background) >= 4.5, selector
    stand_in = _one(driver, ".badge.stand-in")
    colours = [stand_in.value_of_css_property(name) for name in ("color", "background-color")]
    assert _contrast(*colours) >= 4.5
    _one(driver, ".theme").click()
    assert (_luminance(driver.execute_script(paper)) < 0.2) != dark


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_the_page_never_scrolls_sideways(load: Open, width: int) -> None:
    driver = load(width=width)
    overflow = driver.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 0
    assert len(_shown(driver, "contestants")) == CONTESTANTS


def test_a_stand_in_is_flagged_on_a_phone_too(load: Open) -> None:
    driver = load(width=400)
    label = "return getComputedStyle(document.querySelector('td.flagged'), '::before').content"
    assert driver.execute_script(label) == '"LPIPS ↑ stand-in"'


def test_pictures_are_decoded(load: Open) -> None:
    driver = load()
    broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert driver.execute_script(broken) == 0
    assert len(_all(driver, ".pictures .grid img")) > 8 * (2 + len(example.RUNS))


def test_means_over_seeds_stand_above_the_runs_and_are_left_alone_by_sorting(load: Open) -> None:
    driver = load("seeds")
    means = _one(driver, ".means")
    assert [row.text for row in _all(means, "tr.run th.name b")] == ["SDM", "Concat baseline"]
    assert _one(means, ".pairs td.num .figure").text.startswith("+")
    before = means.text
    _one(driver, 'th[data-key="images-per-second"] button').click()
    _one(driver, "input[type=search]").send_keys("spade")
    assert _shown(driver, "contestants") == ["SPADE"]
    assert means.text == before and means.is_displayed()
    assert len(_all(driver, ".contestants > tr.run")) == CONTESTANTS + 4
    assert len([one for one in _all(means, "details") if one.get_attribute("open")]) == 1


@pytest.mark.parametrize("width", [390, 900, 1400])
def test_means_over_seeds_need_no_sideways_scrolling(load: Open, width: int) -> None:
    driver = load("seeds", width=width)
    assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
