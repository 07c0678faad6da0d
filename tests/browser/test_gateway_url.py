"""JupyterLab whose server has all its kernels from the gateway: `jupyter lab --gateway-url`."""

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
    with ways.gateway_url(tmp_path_factory.mktemp("gateway-url")) as place:
        yield place


class TestCells(scenarios.Cells):
    """See there."""


class TestInLab(scenarios.InLab):
    """See there."""

    def test_binary_widgets(self, place: Place) -> None:
        """A server that passes on text alone: a widget of bytes is left out with a note, all else goes on."""
        notebook = place.notebook(
            "import ipywidgets as widgets\nwidgets.Image(value=b'\\xff' * 100)", "print('on')"
        )
        notebook.run(0)

        notebook.shows(0, "output left out: this client cannot take what is binary")
        assert notebook.done(1) == "on\n"


class TestOnGateway(scenarios.OnGateway):
    """See there."""


class TestBetween(scenarios.Between):
    """See there."""
