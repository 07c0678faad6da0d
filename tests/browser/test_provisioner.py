"""A plain JupyterLab whose own kernels are in cells, by the kernel provisioner."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.browser import scenarios, ways
from tests.browser.notebook import Notebook

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.browser.ways import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The one server and browser of all scenarios."""
    with ways.provisioner(tmp_path_factory.mktemp("provisioner")) as place:
        yield place


class TestCells(scenarios.Cells):
    """See there."""

    def test_a_killed_kernel(self, place: Place) -> None:
        """A kill -9 in the middle of a cell: within a second Jupyter says so, ends the cell, and restarts.

        It has no reason to show: a provisioner has no part in the messages. The server's log has it.
        """
        notebook = place.notebook("import time\nprint('on', flush=True)\ntime.sleep(60)", "print('back')")
        assert isinstance(notebook, Notebook)
        notebook.run(0)
        notebook.shows(0, "on")
        killed = time.monotonic()
        os.kill(place.kernel_pids()[-1], signal.SIGKILL)

        notebook.told_of_restart()
        assert notebook.ends(0, 3) - killed < 3.0
        assert "killed by SIGKILL" in place.log()
        assert notebook.done(1) == "back\n"


class TestInLab(scenarios.InLab):
    """See there."""
