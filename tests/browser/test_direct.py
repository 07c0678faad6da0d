"""A page of another origin with @jupyterlab/services, on the gateway itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.browser import scenarios, ways

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.browser.ways import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The one server and browser of all scenarios."""
    with ways.direct(tmp_path_factory.mktemp("direct")) as place:
        yield place


class TestCells(scenarios.Cells):
    """See there."""


class TestOnGateway(scenarios.OnGateway):
    """See there."""
