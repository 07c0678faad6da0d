"""smolagents: its Docker executor, pointed at a gateway, and a whole CodeAgent with a scripted model.

What the executor itself leaves out, on any server: images and HTML (it reads text/plain of a result), what
was printed before an error, and any timeout of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import agents
from tests.conftest import ROOM
from tests.gateway import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gateway import Client, Gateway

PROGRAM = "run_smolagents.py"


@pytest.fixture(scope="module")
def hasty() -> Iterator[Gateway]:
    """A gateway that lets nothing run for more than 2 s."""
    with running("--no-keep", env={**ROOM, "CELLBLOCK_EXECUTIONS__MAX_TIMEOUT_S": "2"}) as gateway:
        yield gateway


async def test_steps_of_an_agent(gateway: Gateway) -> None:
    """Prints are logs, the last value is the output as text, an error is raised whole; the kernel is kept."""
    say = "x = 1; print('out'); import sys; print('err', file=sys.stderr); x + 1"
    said, plot, html, failed, kept = await agents.run(
        PROGRAM, gateway, say, agents.PLOT, agents.HTML, "print('lost')\n1 / 0", "print(x)"
    )

    assert (said["output"], said["logs"]) == ("2", "out\nerr\n")
    assert (plot["output"], plot["logs"]) == (None, "")
    assert (html["output"], html["logs"]) == ("<IPython.core.display.HTML object>", "")
    assert "ZeroDivisionError" in failed["error"]
    assert "lost" not in failed["error"].splitlines()
    assert kept["logs"] == "1\n"


async def test_large_answers(gateway: Gateway) -> None:
    """2 MB of output and an error of 300 kB arrive complete."""
    failed, flood = await agents.run(PROGRAM, gateway, agents.LONG_ERROR, agents.FLOOD)

    assert "y" * 300_000 in failed["error"]
    assert flood["logs"] == "x" * 2_000_000 + "\n"


async def test_an_agent(gateway: Gateway, client: Client) -> None:
    """A CodeAgent sends its tools and variables, sees what it printed, and gets a long final answer whole."""
    before = await client.json("GET", "/api/kernels")
    codes = ["print(double(given))\ny = 3", "!echo from a shell\nprint(y)", "final_answer('z' * 500_000)"]
    answer = await agents.run(PROGRAM, gateway, *codes, agent=True, given="ab")

    assert answer["final"] == "z" * 500_000
    first, second, _ = answer["observed"]
    assert "abab\n" in first
    assert "from a shell" in second
    assert "3\n" in second
    assert await client.json("GET", "/api/kernels") == before


async def test_a_deadline(hasty: Gateway) -> None:
    """The time limit ends a step with an error that says so, and the next step runs in the same kernel."""
    kept, late, after = await agents.run(PROGRAM, hasty, "x = 5", agents.SLEEP, "print(x)")

    assert "KeyboardInterrupt" in late["error"]
    assert late["error"].rstrip().endswith("s is over.")
    assert late["at"] - kept["at"] < 10
    assert after["logs"] == "5\n"


async def test_a_killed_kernel(gateway: Gateway, client: Client) -> None:
    """A kernel that is killed fails the step at once, which has no timeout; the next has a fresh kernel."""
    async with agents.killed_while_busy(gateway, client) as moments:
        killed, after = await agents.run(PROGRAM, gateway, agents.SLEEP, "print('again')")

    assert killed["error"] == "KernelKilled: The kernel was killed."
    assert killed["caught_at"] - moments[0] < 1
    assert after["logs"] == "again\n"


def test_the_page_shows_this_executor() -> None:
    """docs/agents-frameworks.md shows the very class that the tests use."""
    page = Path(__file__).resolve().parents[2] / "docs" / "agents-frameworks.md"
    source = Path(__file__).with_name("cellblock_executor.py").read_text()

    assert source[source.index("import requests") :].strip() in page.read_text()
