"""What the browser's tests share: pictures of the page."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.browser.scenarios import Shown

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SHOWN = "test_kernelspec"  # the way whose pictures the docs have
MAX_BYTES = 150 << 10


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Save what the page looked like when a scenario failed."""
    report = yield
    place = getattr(item, "funcargs", {}).get("place")
    if report.when == "call" and report.failed and place is not None:
        file = Path(tempfile.gettempdir()) / f"{item.name}.png"
        place.driver.save_screenshot(str(file))
        report.sections.append(("the page", str(file)))
        report.sections.append(
            ("the server", "\n".join(line[:200] for line in place.log().splitlines()[-20:]))
        )
    return report


@pytest.fixture
def picture(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[Shown, str], None]:
    """Take a picture of a notebook; with CELLBLOCK_SCREENSHOTS=1, one of the main way goes into the docs."""

    def take(notebook: Shown, name: str) -> None:
        file = tmp_path / f"{name}.png"
        notebook.picture(file)
        data = file.read_bytes()

        assert data.startswith(b"\x89PNG")
        assert 2000 < len(data) < MAX_BYTES

        if os.environ.get("CELLBLOCK_SCREENSHOTS") == "1" and request.module.__name__.endswith(SHOWN):
            IMAGES.mkdir(exist_ok=True)
            (IMAGES / f"{name}.png").write_bytes(data)

    return take
