"""What people do, and what must be seen.

Each class is played in the ways that its line names:

| class       | `--gateway-url` | kernelspec | provisioner | direct | why not in the others           |
|-------------|-----------------|------------|-------------|--------|---------------------------------|
| `Cells`     | yes             | yes        | yes         | yes    |                                 |
| `InLab`     | yes             | yes        | yes         |        | needs JupyterLab itself         |
| `OnGateway` | yes             | yes        |             | yes    | a provisioner has no gateway    |
| `Between`   | yes             | yes        |             |        | elsewhere nothing is in between |
"""

from __future__ import annotations

import os
import re
import signal
import time
from typing import TYPE_CHECKING

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser.chromium import until
from tests.browser.notebook import Notebook

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browser.page import Page
    from tests.browser.ways import Place

    Shown = Notebook | Page

TICKS = """import time
for i in range({n}):
    print('tick', i, flush=True)
    time.sleep({pause})
print('the', 'end')"""
PLOT = """import numpy as np
import matplotlib.pyplot as plt
x = np.linspace(0, 10, 200)
plt.figure(figsize=(6, 3))
plt.plot(x, np.sin(x))
plt.title("drawn in a cell")
plt.show()"""
SLIDER = """import ipywidgets as widgets
from IPython.display import display
@widgets.interact(n=widgets.IntSlider(value=3, min=0, max=9, description="n"))
def squared(n):
    global last
    last = n
    print("n squared is", n * n)"""
IMAGE = """import io
import ipywidgets as widgets
import matplotlib.pyplot as plt
file = io.BytesIO()
plt.figure(figsize=(1, 1))
plt.savefig(file, format="png")
plt.close()
widgets.Image(value=file.getvalue())"""
PLENTY = "for _ in range(1250):\n    print(('y' * 79 + '\\n') * 1024, end='')\nprint('all of it')"


class Cells:
    """What must be so in every way."""

    def test_output_comes_before_the_end(self, place: Place) -> None:
        """What a cell prints stands there while the cell still runs."""
        notebook = place.notebook(TICKS.format(n=4, pause=0.5))
        notebook.run(0)

        notebook.shows(0, "tick 0")
        assert notebook.prompt(0) == "*"
        assert "the end" not in notebook.output(0)
        notebook.ends(0)
        assert notebook.output(0).split("\n")[:5] == ["tick 0", "tick 1", "tick 2", "tick 3", "the end"]

    def test_a_plot(self, place: Place, picture: Callable[[Shown, str], None]) -> None:
        """A cell draws, and the page shows it."""
        notebook = place.notebook("2 ** 100", PLOT)
        notebook.done(0, 1)

        until(lambda: notebook.width(1, "img") > 300)
        picture(notebook, "plot")

    def test_input(self, place: Place) -> None:
        """A cell asks, is answered in the page, and goes on with the answer."""
        notebook = place.notebook("name = input('Who are you? ')\nprint('Hello,', name)")
        notebook.run(0)
        notebook.find(0, ".jp-Stdin-input").send_keys("a reader", Keys.ENTER)

        notebook.ends(0)
        assert "Hello, a reader" in notebook.output(0)

    def test_an_interrupt(self, place: Place) -> None:
        """An interrupt ends an endless loop; variables stay."""
        notebook = place.notebook("x = 41", "print('on', flush=True)\nwhile True:\n    pass", "print(x + 1)")
        notebook.done(0)
        notebook.run(1)
        notebook.shows(1, "on")
        notebook.interrupt()

        notebook.ends(1, 10)
        assert "KeyboardInterrupt" in notebook.output(1)
        assert notebook.done(2) == "42\n"

    def test_a_restart(self, place: Place) -> None:
        """A restart gives a fresh kernel without the variables of the old one."""
        notebook = place.notebook("x = 41\nprint('set')", "x")
        assert notebook.done(0) == "set\n"
        notebook.restart()

        assert "NameError" in notebook.done(1)

    def test_a_killed_kernel(self, place: Place) -> None:
        """A kill -9 in mid-cell: within a second the cell ends and says why; the next cell runs."""
        notebook = place.notebook("import time\nprint('on', flush=True)\ntime.sleep(60)", "print('back')")
        notebook.run(0)
        notebook.shows(0, "on")
        killed = time.monotonic()
        os.kill(place.kernel_pids()[-1], signal.SIGKILL)

        assert notebook.shows(0, "KernelKilled") - killed < 1.0
        assert notebook.ends(0, 3) - killed < 1.5
        notebook.told_of_restart()
        assert notebook.done(1) == "back\n"

    def test_a_page_that_loses_its_network(self, place: Place) -> None:
        """The page's connections are cut: it comes back, and shows what the cell printed meanwhile."""
        notebook = place.notebook(TICKS.format(n=100, pause=0.03))
        notebook.run(0)
        notebook.shows(0, "tick 9")
        assert place.page.cut() > 0
        time.sleep(place.away_s)
        place.page.mend()

        notebook.ends(0, 60)
        assert_whole(notebook, 100, lost=place.may_lose)

    def test_two_tabs(self, place: Place) -> None:
        """Two tabs on one notebook have one kernel: what one sets, the other reads."""
        notebook = place.notebook("x = 'from the first'\nprint(x)", "print(x, 'in the other')")
        other = notebook.beside()
        try:
            notebook.front().done(0)
            assert other.front().done(1) == "from the first in the other\n"
            assert notebook.front().done(1) == "from the first in the other\n"
        finally:
            place.close_tabs()

    def test_plenty_of_output(self, place: Place) -> None:
        """100 MB of output: it is cut with a mark, the page stays alive, the cell ends, the next one runs."""
        notebook = place.notebook(PLENTY, "print('alive')")
        notebook.run(0)

        notebook.ends(0, 60)
        # the page shows the last of it a little later
        until(lambda: any(mark in notebook.output(0) for mark in place.cuts), say=notebook.state)
        assert len(notebook.output(0)) < 20 << 20
        assert notebook.done(1) == "alive\n"

    def test_a_refused_network_call(self, place: Place, picture: Callable[[Shown, str], None]) -> None:
        """A cell has no network, and says so where the user looks."""
        notebook = place.notebook("import socket\nsocket.socket().connect(('192.0.2.1', 80))")

        assert re.search(r"OSError: \[Errno \d+\] .* not supported", notebook.done(0))
        picture(notebook, "refused-network")


class InLab:
    """What JupyterLab brings."""

    def test_cells_run_and_outputs_are_read(self, place: Place) -> None:
        """What is typed runs; results, printed text and tracebacks stand below their cells."""
        notebook = place.notebook("", "print('hello', file=__import__('sys').stderr)", "1 / 0")
        assert isinstance(notebook, Notebook)
        notebook.cell(0).find_element(By.CSS_SELECTOR, ".cm-content").click()
        notebook.press("6 * 7")
        notebook.chord(Keys.SHIFT, Keys.ENTER)

        notebook.shows(0, "42")
        assert notebook.output(0).strip() == "42"
        assert notebook.done(1) == "hello\n"
        assert "ZeroDivisionError: division by zero" in notebook.done(2)

    def test_progress_bars(self, place: Place) -> None:
        """The bar of text that tqdm has, and its one of widgets, come to their ends."""
        loop = "for _ in {}(range(20)):\n    time.sleep(0.02)"
        plain = "import time\nfrom tqdm import tqdm\n" + loop.format("tqdm")
        rich = "from tqdm.notebook import tqdm as bar\n" + loop.format("bar")
        notebook = place.notebook(plain, rich)

        assert "100%" in notebook.done(0)
        assert "20/20" in notebook.output(0)
        notebook.run(1)
        notebook.shows(1, "20/20")
        assert "100%" in notebook.output(1)
        assert notebook.find(1, ".widget-hprogress").is_displayed()

    def test_a_slider(self, place: Place, picture: Callable[[Shown, str], None]) -> None:
        """A slider moved in the page changes the kernel's value, and what the kernel says comes back."""
        notebook = place.notebook(SLIDER, "print('the kernel has', last)")
        notebook.run(0)
        notebook.shows(0, "n squared is 9")
        handle = notebook.find(0, ".noUi-handle")
        handle.click()
        handle.send_keys(Keys.ARROW_RIGHT)
        handle.send_keys(Keys.ARROW_RIGHT)

        notebook.shows(0, "n squared is 25")
        assert notebook.find(0, ".widget-readout").text == "5"
        assert notebook.done(1) == "the kernel has 5\n"
        picture(notebook, "widget")

    def test_binary_widgets(self, place: Place) -> None:
        """A widget whose value is bytes is displayed."""
        notebook = place.notebook(IMAGE)
        notebook.run(0)

        until(lambda: notebook.width(0, "img.widget-image") > 10)

    def test_a_reload(self, place: Place) -> None:
        """After a reload the page has what was saved, its kernel, and what that kernel has done meanwhile."""
        notebook = place.notebook(TICKS.format(n=6, pause=0.5), "print('last was', i)")
        assert isinstance(notebook, Notebook)
        notebook.run(0)
        notebook.shows(0, "tick 1")
        notebook.chord(Keys.CONTROL, "s")
        notebook.saved()
        notebook.again()

        assert "tick 1" in notebook.output(0)
        assert notebook.done(1) == "last was 5\n"


class OnGateway:
    """What needs a gateway."""

    def test_a_deadline(self, place: Place, picture: Callable[[Shown, str], None]) -> None:
        """A cell that takes too long is interrupted, and the user reads why."""
        limit = {"cellblock": {"timeout_s": 1.5}}
        notebook = place.notebook(
            "import time\nprint('on', flush=True)\ntime.sleep(60)", "print('kept')", metadata=limit
        )
        notebook.run(0)

        notebook.shows(0, "The time limit of 1.5 s is over", 10)
        notebook.ends(0, 10)
        assert "KeyboardInterrupt" in notebook.output(0)
        assert notebook.done(1) == "kept\n"
        picture(notebook, "timeout")

    def test_a_deadline_that_is_not_heeded(self, place: Place) -> None:
        """Code that ignores interrupts is ended with its kernel; the user reads why, and has a fresh one."""
        limit = {"cellblock": {"timeout_s": 1}}
        stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True:\n    pass"
        notebook = place.notebook(stubborn, "print('fresh')", metadata=limit)
        notebook.run(0)

        notebook.shows(0, "KernelTimeout", 15)
        notebook.ends(0, 10)
        notebook.told_of_restart()
        assert notebook.done(1) == "fresh\n"

    def test_a_restart_of_the_gateway(self, place: Place) -> None:
        """The gateway is restarted: the page's kernel is the same, with its variables."""
        assert place.gateway is not None
        notebook = place.notebook("x = 41\nprint('set')", "print(x + 1)")
        assert notebook.done(0) == "set\n"
        place.restart_gateway()

        notebook.ready()
        assert notebook.done(1, timeout=60) == "42\n"


class Between:
    """What can happen between a Jupyter server and its gateway."""

    def test_a_network_between_that_breaks(self, place: Place) -> None:
        """The connection between JupyterLab and the gateway is cut: what the cell printed meanwhile comes."""
        assert place.wire is not None
        notebook = place.notebook(TICKS.format(n=8, pause=0.5))
        notebook.run(0)
        notebook.shows(0, "tick 1")
        assert place.wire.cut() > 0
        time.sleep(1)
        place.wire.mend()

        notebook.ends(0)
        assert_whole(notebook, 8)


def assert_whole(notebook: Shown, ticks: int, *, lost: int = 0) -> None:
    """Assert that nothing is there twice or in disorder, and that no more is missing than may be lost.

    What was lost and found again may be told of in between.
    """
    lines = [line for line in notebook.output(0).split("\n") if line.startswith(("tick", "the end"))]
    expected = [*(f"tick {number}" for number in range(ticks)), "the end"]
    assert lines == [line for line in expected if line in lines]
    assert lines[-1] == "the end"
    assert len(lines) >= len(expected) - lost
