"""`kill -9` of the warden, of its keeper, of both: no cell runs on unwatched, and nobody waits in vain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.gateway import Gateway, complete, running
from tests.lifecycle import cells, eventually, kernels, traces, until_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.gateway import Channels, Client

MARK = "warden-death-daemon"
# a daemon that has detached, as hostile code would start one
DETACH = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv("/bin/sleep", ["{MARK}", "300"])
    os._exit(0)
"""


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """A gateway of the test's own, whose warden dies."""
    with running() as own:
        yield own


def warden(gateway: Gateway) -> list[int]:
    """Return the warden's pid."""
    return gateway.warden_pids()


def keeper(gateway: Gateway) -> list[int]:
    """Return the keeper's pid."""
    return gateway.keeper_pids()


def both(gateway: Gateway) -> list[int]:
    """Return both pids, the keeper's first: what is killed next has no parent left to act for it."""
    return [*gateway.keeper_pids(), *gateway.warden_pids()]


def both_warden_first(gateway: Gateway) -> list[int]:
    """Return both pids, the warden's first."""
    return [*gateway.warden_pids(), *gateway.keeper_pids()]


VICTIMS = [warden, keeper, both, both_warden_first]


def kill(pids: list[int]) -> float:
    """`kill -9` processes, and say when."""
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return time.monotonic()


def daemons() -> list[int]:
    """List the detached daemons of the tests in this file."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(MARK.encode()):
                found.append(int(entry.name))
    return found


async def works_again(client: Client, within_s: float) -> str:
    """Start a kernel, 503 meanwhile being the only answer that is allowed, and use it."""
    deadline = time.monotonic() + within_s
    while True:
        async with client.http.post("/api/kernels", json={}) as response:
            body = await response.json()
        if response.status == 201:
            assert await client.out(body["id"], "print('new')") == "new\n"
            return str(body["id"])
        assert (response.status, body["code"]) == (503, "sandbox_unavailable"), body
        assert body["message"]
        assert time.monotonic() < deadline, body
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("victims", VICTIMS)
async def test_no_cell_runs_on(gateway: Gateway, victims: Callable[[Gateway], list[int]]) -> None:
    """Within 2 s every process of every cell is dead, detached daemons and those in C code included."""
    async with gateway.client() as client:
        first, second = await client.start(), await client.start()
        await client.run(first, DETACH)
        assert await eventually(lambda: len(daemons()) == 1)
        async with client.channels(second) as channels:
            await channels.execute("while True:\n try: 3 ** (10 ** 8)\n except BaseException: pass")
            await until_state(client, second, "busy")
            assert len(kernels(gateway)) == 2

            killed = kill(victims(gateway))

            assert await eventually(lambda: not cells(gateway) and not daemons(), 2), cells(gateway)
            assert time.monotonic() - killed < 2


@pytest.mark.parametrize("victims", VICTIMS)
async def test_clients_are_answered_and_kernels_dead(
    gateway: Gateway, victims: Callable[[Gateway], list[int]]
) -> None:
    """Running executions end, by REST and by socket; the kernels are dead with a reason; reading works."""
    async with gateway.client() as client:
        rest, socket, idle = [await client.start() for _ in range(3)]
        task = asyncio.create_task(
            client.run(rest, "import time; print('early', flush=True); time.sleep(60)")
        )
        async with client.channels(socket) as channels:
            msg_id = await channels.execute("import time; time.sleep(60)")
            for kernel_id in (rest, socket):
                await until_state(client, kernel_id, "busy")
            await asyncio.sleep(0.5)

            killed = kill(victims(gateway))

            result = await asyncio.wait_for(task, 3)
            assert (result["status"], result["reason"]) == ("dead", "killed")
            assert "early" in result["stdout"]
            await answered(channels, msg_id)
            assert time.monotonic() - killed < 3
        for kernel_id in (rest, socket, idle):
            await until_state(client, kernel_id, "dead", 3)
            model = await client.kernel(kernel_id)
            assert model["reason"] == "killed"
            assert (await client.run(kernel_id, "1"))["status"] == "dead"
        assert len(await client.json("GET", "/api/kernels")) == 3
        assert "python3" in (await client.json("GET", "/api/kernelspecs"))["kernelspecs"]


async def answered(channels: Channels, msg_id: str) -> None:
    """Wait for an execution's whole answer, which says that the kernel is dead."""
    messages = await channels.until_done(msg_id, 3)
    assert complete(messages, msg_id)
    assert any(message.msg_type == "error" for message in messages)


async def test_a_killed_warden_is_replaced(gateway: Gateway) -> None:
    """Its keeper starts another: new kernels work, and dead ones restart, with the same gateway."""
    async with gateway.client() as client:
        lost = await client.start()
        for _ in range(3):
            (old,) = warden(gateway)
            kill([old])
            await works_again(client, 10)
            assert warden(gateway) != [old]
        await until_state(client, lost, "dead", 3)
        await client.json("POST", f"/api/kernels/{lost}/restart")
        assert await client.out(lost, "print(1)") == "1\n"


@pytest.mark.parametrize("victims", [keeper, both, both_warden_first])
async def test_without_a_keeper_the_next_start_is_clean(
    gateway: Gateway, victims: Callable[[Gateway], list[int]]
) -> None:
    """Until then starts and restarts are 503 with a clear reason; the next `serve` has all that it needs."""
    async with gateway.client() as client:
        lost = await client.start()
        kill(victims(gateway))
        await until_state(client, lost, "dead", 3)
        assert await eventually(lambda: not gateway.warden_pids(), 5)
        for path in ("/api/kernels", f"/api/kernels/{lost}/restart"):
            refused = await client.json("POST", path, {}, status=503)
            assert refused["code"] == "sandbox_unavailable"
            assert refused["reason"] == "warden_gone"
        assert (await client.kernel(lost))["execution_state"] == "dead"
        assert gateway.end() == 0
    gateway.start()

    async with gateway.client() as client:
        assert await client.json("GET", "/api/kernels") == []
        kernel_id = await works_again(client, 0)
        assert len(kernels(gateway)) == 1
        await client.delete(kernel_id)
        assert not cells(gateway)
    assert gateway.end() == 0
    for pid in warden(gateway):
        os.kill(pid, signal.SIGTERM)
    assert await eventually(lambda: not traces(gateway)), traces(gateway)


async def test_a_start_cut_off_by_the_wardens_death_is_an_error(gateway: Gateway) -> None:
    """Kernels that are starting when the warden dies fail with 502 or 503, at once, and leave nothing."""
    async with gateway.client() as client:
        for after_s in (0.01, 0.1, 0.25):
            starts = [asyncio.create_task(client.http.post("/api/kernels", json={})) for _ in range(2)]
            await asyncio.sleep(after_s)
            kill(warden(gateway))
            begun = time.monotonic()
            statuses = [(await start).status for start in starts]
            assert time.monotonic() - begun < 3
            assert set(statuses) <= {201, 502, 503}
            await works_again(client, 10)
        alive = [m for m in await client.json("GET", "/api/kernels") if m["execution_state"] != "dead"]
        assert await eventually(lambda: len(kernels(gateway)) == len(alive)), (cells(gateway), alive)


async def test_the_gateway_and_all_else_die_at_once(gateway: Gateway) -> None:
    """When everything is killed, no cell runs on, and the next start on the state directory is clean."""
    async with gateway.client() as client:
        await client.start()
        assert gateway.process is not None
        kill([gateway.process.pid, *both(gateway)])
        assert gateway.process.wait() == -signal.SIGKILL
    assert await eventually(lambda: not cells(gateway), 2), cells(gateway)
    gateway.start()

    async with gateway.client() as client:
        assert await client.json("GET", "/api/kernels") == []
        await works_again(client, 0)
        with pytest.raises(aiohttp.ClientError):
            async with client.channels("00000000-0000-4000-8000-000000000000"):
                pass
