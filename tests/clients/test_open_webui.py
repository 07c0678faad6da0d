"""Open WebUI's code interpreter: one kernel for each run, deleted after it.

What it leaves out, on any server: HTML (a result is an image or its text). It knows a password login too,
which is a Jupyter server's own form: a gateway's credential goes into its field for a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import agents
from tests.conftest import ROOM
from tests.gateway import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gateway import Client, Gateway

PROGRAM = "run_open_webui.py"


@pytest.fixture(scope="module")
def hasty() -> Iterator[Gateway]:
    """A gateway that lets nothing run for more than 2 s."""
    with running("--no-keep", env={**ROOM, "CELLBLOCK_EXECUTIONS__MAX_TIMEOUT_S": "2"}) as gateway:
        yield gateway


async def test_runs(gateway: Gateway, client: Client) -> None:
    """Text, results, a figure as a data URL and errors come back; no kernel and no variable stays."""
    before = await client.json("GET", "/api/kernels")
    say = "x = 1; print('out'); import sys; print('err', file=sys.stderr); x + 1"
    said, plot, html, failed, gone = await agents.run(
        PROGRAM, gateway, say, agents.PLOT, agents.HTML, "1 / 0", "x", timeout=60
    )

    assert (said["stdout"], said["stderr"], said["result"]) == ("out", "err", "2")
    assert plot["result"].startswith("data:image/png;base64,iVBOR")
    assert html["result"] == "<IPython.core.display.HTML object>"
    assert "ZeroDivisionError" in failed["stderr"]
    assert "NameError" in gone["stderr"]
    assert await client.json("GET", "/api/kernels") == before


async def test_large_answers(gateway: Gateway) -> None:
    """2 MB of output and an error of 300 kB arrive complete."""
    failed, flood = await agents.run(PROGRAM, gateway, agents.LONG_ERROR, agents.FLOOD, timeout=60)

    assert "y" * 300_000 in failed["stderr"]
    assert flood["stdout"] == "x" * 2_000_000


async def test_a_deadline(hasty: Gateway) -> None:
    """The gateway's time limit ends a run, and what came before and the reason are shown."""
    (late,) = await agents.run(PROGRAM, hasty, agents.SLEEP, timeout=60)

    assert late["stdout"] == "begun"
    assert "The time limit of 2 s is over" in late["stderr"]
    assert "KeyboardInterrupt" in late["stderr"]


async def test_its_own_timeout(gateway: Gateway, client: Client) -> None:
    """Its own timeout gives up, keeps what came, and deletes the kernel at work."""
    before = await client.json("GET", "/api/kernels")
    (late,) = await agents.run(PROGRAM, gateway, agents.SLEEP, timeout=2)

    assert (late["stdout"], late["stderr"]) == ("begun", "Execution timed out.")
    assert await client.json("GET", "/api/kernels") == before


async def test_a_killed_kernel(gateway: Gateway, client: Client) -> None:
    """A kernel that is killed ends the run at once and says so; the next has another kernel."""
    async with agents.killed_while_busy(gateway, client) as moments:
        killed, after = await agents.run(PROGRAM, gateway, agents.SLEEP, "print('again')", timeout=60)

    assert killed["stdout"] == "begun"
    assert killed["stderr"] == "KernelKilled: The kernel was killed."
    assert killed["at"] - moments[0] < 1
    assert after["stdout"] == "again"


@pytest.mark.parametrize(("token", "password"), [("wrong", ""), ("", "a password")])
async def test_what_does_not_let_it_in(gateway: Gateway, token: str, password: str) -> None:
    """A wrong token, and a password, end in an error that it shows."""
    (said,) = await agents.run(PROGRAM, gateway, "1", token=token, password=password, timeout=60)

    assert said["stderr"].startswith("Error: 401" if token else "Error: 404")
