"""AutoGen: Microsoft's (autogen-ext) and what became AG2 (autogen); each speaks to Jupyter gateways.

What both leave out, on any server: what was printed before an error. Their timeout is that of one message.
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

PROGRAM = "run_autogen.py"
PNG, HTML = b"\x89PNG".hex(), b"<b>bold</b>".hex()

pytestmark = pytest.mark.parametrize("way", ["autogen-ext", "autogen"])


@pytest.fixture(scope="module")
def hasty() -> Iterator[Gateway]:
    """A gateway that lets nothing run for more than 2 s."""
    with running("--no-keep", env={**ROOM, "CELLBLOCK_EXECUTIONS__MAX_TIMEOUT_S": "2"}) as gateway:
        yield gateway


async def test_code_blocks(gateway: Gateway, client: Client, way: str) -> None:
    """Text is text, figures and HTML are files, an error has its name; the kernel is kept, then deleted."""
    before = await client.json("GET", "/api/kernels")
    say = "x = 1; print('out'); import sys; print('err', file=sys.stderr); x + 1"
    said, plot, html, failed, kept = await agents.run(
        PROGRAM, gateway, say, agents.PLOT, agents.HTML, "1 / 0", "print(x)", way=way, timeout=60
    )

    assert (said["exit_code"], said["output"].split()) == (0, ["out", "err", "2"])
    assert (plot["exit_code"], plot["files"]) == (0, [".png"])
    assert plot["heads"][0].startswith(PNG)
    assert (html["exit_code"], html["files"], html["heads"]) == (0, [".html"], [HTML])
    assert failed["exit_code"] == 1
    assert "ZeroDivisionError: division by zero" in failed["output"]
    assert (kept["exit_code"], kept["output"]) == (0, "1\n")
    assert await client.json("GET", "/api/kernels") == before


async def test_large_answers(gateway: Gateway, way: str) -> None:
    """2 MB of output and an error of 300 kB arrive complete."""
    failed, flood = await agents.run(PROGRAM, gateway, agents.LONG_ERROR, agents.FLOOD, way=way, timeout=60)

    assert (failed["exit_code"], flood["exit_code"]) == (1, 0)
    assert "ValueError: " + "y" * 300_000 in failed["output"]
    # each message is a line of its own to them
    assert flood["output"].replace("\n", "") == "x" * 2_000_000


async def test_restart(gateway: Gateway, way: str) -> None:
    """After a restart the variables are gone and the executor goes on."""
    kept, gone, after = await agents.run(
        PROGRAM, gateway, "x = 1; print(x)", "restart", "x", "print(2)", way=way, timeout=60
    )

    assert kept["output"] == "1\n"
    assert "NameError" in gone["output"]
    assert after["output"] == "2\n"


async def test_a_deadline(hasty: Gateway, way: str) -> None:
    """The gateway's time limit ends a block with an error, and the next runs in the same kernel."""
    kept, late, after = await agents.run(
        PROGRAM, hasty, "x = 5", agents.SLEEP, "print(x)", way=way, timeout=60
    )

    assert late["exit_code"] == 1
    assert "KeyboardInterrupt" in late["output"]
    assert "The time limit of" in late["output"]
    assert late["at"] - kept["at"] < 10
    assert after["output"] == "5\n"


async def test_their_own_timeout(gateway: Gateway, client: Client, way: str) -> None:
    """Their own timeout gives up waiting, and the kernel at work is deleted with the executor."""
    before = await client.json("GET", "/api/kernels")
    (late,) = await agents.run(PROGRAM, gateway, agents.SLEEP, way=way, timeout=2)

    assert late["exit_code"] == 1
    assert "Timeout waiting for output" in late["output"]
    assert await client.json("GET", "/api/kernels") == before


async def test_a_killed_kernel(gateway: Gateway, client: Client, way: str) -> None:
    """A kernel that is killed fails the block at once, says so, and can be restarted."""
    async with agents.killed_while_busy(gateway, client) as moments:
        killed, after = await agents.run(
            PROGRAM, gateway, agents.SLEEP, "restart", "print('again')", way=way, timeout=60
        )

    assert killed["exit_code"] == 1
    assert "ERROR: KernelKilled: The kernel was killed." in killed["output"]
    assert killed["at"] - moments[0] < 1
    assert after["output"] == "again\n"
