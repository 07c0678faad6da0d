"""The page that shows the API, in a real browser: all of it is there, and nothing comes from elsewhere."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from selenium.webdriver.common.by import By

from gateway.http.routes import PLAIN_ROUTES
from tests.browser.chromium import chromium, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver import Chrome

    from tests.gateway import Gateway

# Set before any of the page's own script runs.
WATCH = (
    "window.violations = [];"
    "document.addEventListener('securitypolicyviolation', (e) => violations.push(e.violatedDirective));"
)


@pytest.fixture(scope="module")
def page(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """The page, read to its end by a browser that has no credential."""
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
        driver.get(f"{gateway.url}/api/docs")
        until(lambda: driver.find_elements(By.TAG_NAME, "details"), say=lambda: driver.page_source[:2000])
        yield driver


def test_every_route_is_shown(page: Chrome) -> None:
    """Each route of the table has its box, with method, path and what it is for."""
    shown = {summary.text for summary in page.find_elements(By.CSS_SELECTOR, "details > summary")}

    assert len(shown) == len(PLAIN_ROUTES)
    for route in PLAIN_ROUTES:
        path = re.escape(route.path)
        assert any(re.fullmatch(rf"{route.method}\s+{path} .+", line) for line in shown), route.path
    assert page.find_element(By.ID, "about").text.startswith("Version ")


def test_a_box_opens(page: Chrome) -> None:
    """A click on a route shows its body, its answers and its errors, with their fields."""
    boxes = page.find_elements(By.TAG_NAME, "details")
    box = next(box for box in boxes if "/execute " in box.text)
    assert "timeout_s" not in box.text

    box.find_element(By.TAG_NAME, "summary").click()

    for word in ("Body (application/json)", "timeout_s?: number", "200: ", "Errors", "stdout?: string"):
        assert word in box.text, box.text


def test_it_looks_as_it_should(page: Chrome) -> None:
    """The page's style is let through by its policy: a method stands in bold type of equal widths."""
    method = page.find_element(By.CLASS_NAME, "method")

    assert method.value_of_css_property("font-weight") == "600"
    assert method.value_of_css_property("min-width") == "72px"


def test_nothing_is_from_elsewhere_or_against_the_policy(page: Chrome, gateway: Gateway) -> None:
    """Everything that was fetched is the gateway's, nothing was blocked, and the console has no error."""
    fetched = page.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")

    assert fetched == [f"{gateway.url}/api/openapi.json"]
    assert page.execute_script("return window.violations") == []
    assert [line for line in page.get_log("browser") if line["level"] == "SEVERE"] == []
