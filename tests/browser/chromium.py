"""A headless Chromium, driven over WebDriver."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
    UnexpectedAlertPresentException,
)
from selenium.webdriver.chrome.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    Value = TypeVar("Value")

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    # a tab that is not in front works as one that is
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--window-size=1100,820",
    "--force-device-scale-factor=1",
)
# Passing: the page is drawing just now.
PASSING = (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    IndexError,
    NoSuchElementException,
    StaleElementReferenceException,
    UnexpectedAlertPresentException,
)


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    """Give a browser with a new profile, closed afterwards with all its processes."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # a page that was changed asks whether it may be left, and nobody is there to say so
    options.set_capability("unhandledPromptBehavior", "accept")
    service = Service("/usr/bin/chromedriver", env={**os.environ, "HOME": str(profile)})
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(30)
    driver.set_page_load_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()


def until(what: Callable[[], Value], timeout: float = 20.0, *, say: Callable[[], object] = str) -> Value:
    """Return what a look at the page gives, once that is something; `say` tells what was there instead."""
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(*PASSING):
            found = what()
            if found:
                return found
        assert time.monotonic() < deadline, f"not within {timeout:g} s; instead: {say()}"
        time.sleep(0.03)
