"""Every door does the same: one table of doors, and the scenarios that each of them must pass."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from typing import TYPE_CHECKING

import pytest

from tests.clients.door import Refused
from tests.clients.doors import DOORS, SCENARIOS
from tests.conftest import ROOM
from tests.docs.markdown import page, rows
from tests.gateway import running
from tests.lifecycle import until_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.clients.door import Door, Outcome
    from tests.gateway import Gateway

SLEEP = "print('begun', flush=True)\nimport time; time.sleep(60)"
MARKED = f"open('.begun', 'w').close()\n{SLEEP}"
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 4, 9])\nplt.show()"
DEATH = "print('last', flush=True)\nimport os, time; time.sleep(.2); os.kill(os.getpid(), 9)"
LINES = 16_384
LONG = f"for n in range({LINES}): print(f'{{n:063d}}')"


def name(door: type[Door]) -> str:
    """Name a door as a test's id and a principal may have it."""
    return re.sub(r"[^a-z0-9]+", "-", door.name.lower())


@pytest.fixture(scope="module")
def common() -> Iterator[Gateway]:
    """The gateway of all doors. Each has an owner of its own, and a poor one."""
    poor = {f"poor-{name(door)}": {"executions_per_minute": 1} for door in DOORS}
    with running("--no-keep", env={**ROOM, "CELLBLOCK_QUOTAS__PRINCIPALS": json.dumps(poor)}) as gateway:
        yield gateway


@pytest.fixture(scope="module", params=DOORS, ids=name)
async def door(request: pytest.FixtureRequest, common: Gateway) -> AsyncIterator[Door]:
    """One door, open for its owner."""
    async with request.param(common, f"owner-{name(request.param)}") as opened:
        yield opened


async def has(door: Door, scenario: str) -> bool:
    """Tell whether a door has a scenario; where it cannot, its page says why, in the same words."""
    assert scenario in SCENARIOS
    [told] = [dict(zip(HEADER, cells, strict=True)) for cells in TABLE if cells[0] == door.name]
    reason = door.without.get(scenario)

    assert told[scenario] == ("yes" if reason is None else f"no: {reason}")

    return reason is None


async def begun(door: Door) -> None:
    """Wait until MARKED is at work: an interrupt before that would find nothing to interrupt."""
    path = f"/api/kernels/{await door.kernel_id()}/files/.begun"
    async with asyncio.timeout(30):
        while True:
            async with door.side.http.delete(path) as response:
                if response.ok:
                    return
            await asyncio.sleep(0.05)


async def usable(door: Door) -> None:
    """Assert that the door's kernel runs code, with what it knew before."""
    assert (await door.run("print(kept)")).stdout == "here\n"


async def keep(door: Door) -> None:
    """Leave something in the door's kernel."""
    assert (await door.run("kept = 'here'")).status == "ok"


async def test_text(door: Door) -> None:
    """What code prints and what it is worth come back, apart from each other and whole."""
    assert await has(door, "text")

    outcome = await door.run("import sys\nprint('öut')\nprint('err', file=sys.stderr)\n6 * 7")

    assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", "öut\n", "err\n")
    assert [result["text/plain"] for result in outcome.results] == ["42"]
    assert (outcome.error, outcome.truncated) == (None, False)


async def test_plot(door: Door) -> None:
    """A figure of matplotlib's comes back as a PNG image."""
    assert await has(door, "plot")

    outcome = await door.run(PLOT)

    assert outcome.status == "ok", outcome
    [image] = [result["image/png"] for result in outcome.results if "image/png" in result]
    assert base64.b64decode(image).startswith(b"\x89PNG\r\n\x1a\n")


async def test_error(door: Door) -> None:
    """An exception has its name, and its message without colours; what came before it is there."""
    assert await has(door, "error")

    outcome = await door.run("print('before')\nraise ValueError('no such thing')")

    assert (outcome.status, outcome.stdout) == ("error", "before\n")
    assert outcome.error is not None
    assert (outcome.error.ename, outcome.error.evalue) == ("ValueError", "no such thing")


async def test_long_output(door: Door) -> None:
    """A MiB of output comes whole, or is said to be cut: its head is there in either case."""
    assert await has(door, "long output")
    whole = "".join(f"{n:063d}\n" for n in range(LINES))

    outcome = await door.run(LONG)

    assert outcome.status == "ok"
    assert outcome.truncated or outcome.stdout == whole
    assert outcome.stdout.startswith(whole[:1024])


async def test_timeout(door: Door) -> None:
    """A deadline ends the code, keeps what it had printed, and leaves the kernel usable."""
    assert await has(door, "timeout")
    await keep(door)
    begin = time.monotonic()

    outcome = await door.run(SLEEP, timeout_s=1)

    assert (outcome.status, outcome.stdout) == ("timeout", "begun\n")
    assert 1 <= time.monotonic() - begin < 10
    await usable(door)


async def test_cancel(door: Door) -> None:
    """Code that is cancelled ends soon and is told so; the kernel is the same one."""
    if not await has(door, "cancel"):
        return
    await keep(door)
    execution = await door.start(MARKED)
    await begun(door)

    await execution.cancel()

    async with asyncio.timeout(30):
        outcome = await execution.outcome()
    assert outcome.status in {"interrupted", "cancelled"}
    await until_state(door.side, await door.kernel_id(), "idle", 5)
    await usable(door)


async def test_disconnect(door: Door) -> None:
    """A client that goes away leaves no code running behind it, where the door does not say otherwise."""
    interrupts = await has(door, "disconnect")
    await keep(door)
    kernel_id = await door.kernel_id()
    execution = await door.start(MARKED)
    await begun(door)

    await execution.disconnect()

    if not interrupts:
        await asyncio.sleep(2)
        assert (await door.side.kernel(kernel_id))["execution_state"] == "busy"
        await door.side.json("POST", f"/api/kernels/{kernel_id}/interrupt", status=204)
    await until_state(door.side, kernel_id, "idle", 5)


async def test_kernel_death(door: Door) -> None:
    """Code that kills its kernel is answered, with what it had printed and the reason."""
    assert await has(door, "kernel death")
    kernel_id = await door.kernel_id()

    async with asyncio.timeout(30):
        outcome = await door.run(DEATH)

    assert (outcome.status, outcome.reason, outcome.stdout) == ("dead", "killed", "last\n")
    if (await door.side.kernel(kernel_id))["execution_state"] == "dead":
        await door.side.json("POST", f"/api/kernels/{kernel_id}/restart")
    await until_state(door.side, kernel_id, "idle")


async def test_other_owners_id(door: Door, common: Gateway) -> None:
    """What is another's is answered word for word like what does not exist, and nothing happens to it."""
    assert await has(door, "other owner's id")
    handle, nowhere = await door.handle(), door.nowhere()

    async with type(door)(common, "stranger") as stranger:
        theirs = await stranger.foreign(handle)
        nothing = await stranger.foreign(nowhere)

    assert repr(theirs).replace(handle, "ID") == repr(nothing).replace(nowhere, "ID")
    outcome = await door.run("print('mine')")
    assert (outcome.status, outcome.stdout) == ("ok", "mine\n")


async def test_quota(door: Door, common: Gateway) -> None:
    """An execution past a quota is refused with the gateway's code, in the door's own form."""
    assert await has(door, "quota")

    async with type(door)(common, f"poor-{name(type(door))}") as poor:
        allowed: Outcome = await poor.run("print('one')")
        assert allowed.stdout == "one\n"
        with pytest.raises(Refused) as refused:
            await poor.run("print('two')")

    assert refused.value.code == "limit_reached"
    assert refused.value.reason in {"executions_per_minute", None}


TABLE = rows(page("agents.md"), "door", *SCENARIOS)
HEADER = ("door", *SCENARIOS)


def test_the_table_of_the_page() -> None:
    """The page for agent builders has every door and no other."""
    assert [cells[0] for cells in TABLE] == [door.name for door in DOORS]
