# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium and a published page to drive; skipped without a browser, except in continuous integration."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1400,1000",
]

Open = Callable[..., Any]


def _required(found: object, what: str) -> None:
    if found:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is not installed", pytrace=False)
    pytest.skip(f"{what} is not installed")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One Chromium for all tests, with a fresh profile."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    _required(chromium, "chromium")
    _required(chromedriver, "chromedriver")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        _required(None, "selenium")
        raise
    options = webdriver.ChromeOptions()
    options.binary_location = str(chromium)
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(chromedriver)))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """File addresses of published pages: one dataset with a hostile title, two datasets, three seeds of two methods."""
    import publish_example as example

    from sis.publish.publish import publish

    addresses = {}
    for name, datasets in {"one": ("scenes",), "two": ("scenes", "streets")}.items():
        folder = tmp_path_factory.mktemp(name)
        rows = [row for dataset in datasets for row in example.score_rows(hostile=True, dataset=dataset)]
        publish(example.write_scores(folder / "scores", rows), folder / "out", example.context(datasets))
        addresses[name] = (folder / "out" / "leaderboard.html").as_uri()
    folder = tmp_path_factory.mktemp("seeds")
    rows, groups = example.with_seeds(("sdm", "concat"))
    context = replace(example.context(), groups=groups)
    publish(example.write_scores(folder / "scores", rows), folder / "out", context)
    return addresses | {"seeds": (folder / "out" / "leaderboard.html").as_uri()}


@pytest.fixture
def load(browser: Any, pages: dict[str, str]) -> Iterator[Open]:
    """Open a page in a given size, colour scheme and scripting mode; the console must stay silent."""

    def open_page(
        page: str = "one", fragment: str = "", *, width: int = 1400, dark: bool = False, script: bool = True
    ) -> Any:
        metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        browser.get("about:blank")
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(pages[page] + fragment)
        return browser

    yield open_page
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert browser.get_log("browser") == []
