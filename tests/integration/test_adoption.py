"""A gateway that dies at any moment: the next one takes its kernels over, or the warden ends them."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from datetime import datetime, timedelta

import aiohttp
import pytest

from tests.gateway import Client, Gateway, running
from tests.integration.test_kernel_life import STUBBORN
from tests.lifecycle import cells, eventually, kernels, lock_holders, traces, until_state

GONE = (aiohttp.ClientError, ConnectionError)


def kill(gateway: Gateway) -> None:
    """`kill -9` a gateway."""
    assert gateway.end(signal.SIGKILL) == -signal.SIGKILL


async def test_idle_kernels_are_adopted_with_everything() -> None:
    """After `kill -9` the next gateway shows every kernel under its id, with variables, owner and name."""
    with running() as gateway:
        async with gateway.client() as alice, gateway.client("bob") as bob:
            plain = await alice.start()
            other = await alice.start("python3-scientific")
            bobs = await bob.start()
            for number, (client, kernel_id) in enumerate([(alice, plain), (alice, other), (bob, bobs)]):
                await client.run(kernel_id, f"mine = {number}")
            before = {kernel_id: await alice.kernel(kernel_id) for kernel_id in (plain, other)}
            pids = sorted(kernels(gateway))
        kill(gateway)
        gateway.start()

        async with gateway.client() as alice, gateway.client("bob") as bob:
            assert {model["id"] for model in await alice.json("GET", "/api/kernels")} == {plain, other}
            assert [model["id"] for model in await bob.json("GET", "/api/kernels")] == [bobs]
            await alice.json("GET", f"/api/kernels/{bobs}", status=404)
            for kernel_id, model in before.items():
                await until_state(alice, kernel_id, "idle")
                now = await alice.kernel(kernel_id)
                for field in ("name", "owner", "profile", "limits", "reason"):
                    assert now[field] == model[field]
                moments = [datetime.fromisoformat(shown["started_at"]) for shown in (model, now)]
                # the record is written when the kernel is up
                assert abs(moments[1] - moments[0]) < timedelta(seconds=10)
            for number, (client, kernel_id) in enumerate([(alice, plain), (alice, other), (bob, bobs)]):
                assert await client.out(kernel_id, "print(mine)") == f"{number}\n"
            assert sorted(kernels(gateway)) == pids


async def test_an_execution_goes_on_through_the_death_of_its_gateway() -> None:
    """A kernel at work is adopted busy, becomes idle when its work is done, and its client got an answer."""
    with running() as gateway:
        async with gateway.client() as client:
            kernel_id = await client.start()
            task = asyncio.create_task(
                client.run(kernel_id, "import time; time.sleep(5); done = 'all of it'")
            )
            await until_state(client, kernel_id, "busy")
            await asyncio.sleep(0.3)
            kill(gateway)
            with pytest.raises(GONE):
                await asyncio.wait_for(task, 2)
        gateway.start()

        async with gateway.client() as client:
            assert (await client.kernel(kernel_id))["execution_state"] == "busy"
            assert await until_state(client, kernel_id, "idle") > 0.5
            assert await client.out(kernel_id, "print(done)") == "all of it\n"


async def test_a_request_to_an_adopted_busy_kernel_waits_its_turn() -> None:
    """What is asked of a kernel that still works for a dead gateway's client is answered after that."""
    with running() as gateway:
        async with gateway.client() as client:
            kernel_id = await client.start()
            async with client.channels(kernel_id) as channels:
                await channels.execute("import time; time.sleep(4); done = 1")
                # the kernel has it: a gateway that is killed before would take it along
                await channels.until("execute_input")
                kill(gateway)
        gateway.start()

        async with gateway.client() as client, client.channels(kernel_id) as channels:
            messages = await channels.until_done(await channels.execute("print(done)"))
            assert any(b"1\\n" in message.content for message in messages)


async def test_an_interrupt_reaches_an_adopted_kernel() -> None:
    """The new gateway can interrupt what an old one's client started."""
    with running() as gateway:
        async with gateway.client() as client:
            kernel_id = await client.start()
            async with client.channels(kernel_id) as channels:
                await channels.execute("kept = 5\nimport time; time.sleep(600)")
                await asyncio.sleep(1)
                kill(gateway)
        gateway.start()

        async with gateway.client() as client:
            await client.json("POST", f"/api/kernels/{kernel_id}/interrupt", status=204)
            await until_state(client, kernel_id, "idle")
            assert await client.out(kernel_id, "print(kept)") == "5\n"


@pytest.mark.parametrize(
    ("code", "kept"), [("kept = 1\nimport time; time.sleep(600)", True), (STUBBORN, False)]
)
async def test_deadlines_hold_for_what_ran_at_the_kill(code: str, kept: bool) -> None:
    """An execution whose gateway died is interrupted, or killed, at the limit all the same."""
    with running(env={"CELLBLOCK_EXECUTIONS__MAX_TIMEOUT_S": "3"}) as gateway:
        async with gateway.client() as client:
            kernel_id = await client.start()
            async with client.channels(kernel_id) as channels:
                await channels.execute(code)
                await asyncio.sleep(1)
                kill(gateway)
        gateway.start()

        async with gateway.client() as client:
            assert (await client.kernel(kernel_id))["execution_state"] == "busy"
            await until_state(client, kernel_id, "idle", 15)
            result = await client.run(kernel_id, "print(kept)")
            assert (result["status"] == "ok") is kept
            assert (await client.run(kernel_id, "time.sleep(60)" if kept else STUBBORN))[
                "status"
            ] == "timeout"
            assert await client.out(kernel_id, "print('on')") == "on\n"


async def test_sessions_survive() -> None:
    """A session is there after the gateway's death, with the kernel that it had."""
    with running() as gateway:
        async with gateway.client() as client:
            body = {"path": "a.ipynb", "name": "a", "type": "notebook", "kernel": {"name": "python3"}}
            session = await client.json("POST", "/api/sessions", body, status=201)
            await client.run(session["kernel"]["id"], "x = 1")
            kill(gateway)
        gateway.start()

        async with gateway.client() as client:
            (after,) = await client.json("GET", "/api/sessions")
            for field in ("id", "path", "name", "type"):
                assert after[field] == session[field]
            assert after["kernel"]["id"] == session["kernel"]["id"]
            assert await client.out(after["kernel"]["id"], "print(x)") == "1\n"


@pytest.mark.parametrize("after_s", [0.02, 0.15, 0.3, 0.5])
async def test_a_kernel_whose_gateway_died_while_it_started_leaves_no_cell(after_s: float) -> None:
    """However far a start has come when the gateway dies, the next one shows it whole or not at all."""
    with running() as gateway:
        async with gateway.client() as client:
            starts = [asyncio.create_task(client.start()) for _ in range(2)]
            await asyncio.sleep(after_s)
            kill(gateway)
            given = [
                one for one in await asyncio.gather(*starts, return_exceptions=True) if isinstance(one, str)
            ]
        gateway.start()

        async with gateway.client() as client:
            shown = [model["id"] for model in await client.json("GET", "/api/kernels")]
            assert set(given) <= set(shown)
            for kernel_id in shown:
                assert await client.out(kernel_id, "print(1)") == "1\n"
            assert await eventually(lambda: len(kernels(gateway)) == len(shown)), cells(gateway)


async def test_a_cell_without_a_record_is_ended() -> None:
    """A cell whose kernel the store does not know is nobody's: the next gateway ends it."""
    with running() as gateway:
        async with gateway.client() as client:
            kept, lost = await client.start(), await client.start()
        kill(gateway)
        with sqlite3.connect(gateway.state_dir / "gateway" / "cellblock.db") as store:
            store.execute("DELETE FROM kernels WHERE id = ?", (lost,))
        store.close()
        gateway.start()

        async with gateway.client() as client:
            assert [model["id"] for model in await client.json("GET", "/api/kernels")] == [kept]
            assert await eventually(lambda: len(kernels(gateway)) == 1)
            assert await client.out(kept, "print(1)") == "1\n"


async def test_a_kernel_that_died_between_two_gateways_is_dead() -> None:
    """A kernel that died while no gateway lived is shown dead, with its reason, answers, and restarts."""
    with running() as gateway:
        async with gateway.client() as client:
            kernel_id = await client.start()
            (pid,) = kernels(gateway)
        kill(gateway)
        os.kill(pid, signal.SIGKILL)
        assert await eventually(lambda: not cells(gateway))
        gateway.start()

        async with gateway.client() as client:
            await until_state(client, kernel_id, "dead", 5)
            assert (await client.kernel(kernel_id))["reason"] == "killed"
            assert (await client.run(kernel_id, "1"))["status"] == "dead"
            await client.json("POST", f"/api/kernels/{kernel_id}/restart")
            assert await client.out(kernel_id, "print(1)") == "1\n"


async def test_a_record_whose_cell_is_gone_is_forgotten() -> None:
    """When gateway and warden died both, the next one has no kernels and no sessions."""
    with running() as gateway:
        async with gateway.client() as client:
            body = {"path": "a.ipynb", "type": "notebook", "kernel": {"name": "python3"}}
            await client.json("POST", "/api/sessions", body, status=201)
        kill(gateway)
        for pid in gateway.warden_pids():
            os.kill(pid, signal.SIGTERM)
        assert await eventually(lambda: not traces(gateway)), traces(gateway)
        gateway.start()

        async with gateway.client() as client:
            assert await client.json("GET", "/api/kernels") == []
            assert await client.json("GET", "/api/sessions") == []


async def test_many_deaths_in_a_row() -> None:
    """Kernel and variables go through five gateways, killed without rest, and nothing piles up."""
    with running() as gateway:
        async with gateway.client() as client:
            kernel_id = await client.start()
            await client.run(kernel_id, "lives = 0")
        for _ in range(5):
            kill(gateway)
            gateway.start()
            async with gateway.client() as client:
                await client.run(kernel_id, "lives += 1")
        async with gateway.client() as client:
            assert await client.out(kernel_id, "print(lives)") == "5\n"
            assert len(kernels(gateway)) == 1
            assert len(gateway.warden_pids()) == 1


async def test_when_no_gateway_comes_back_nothing_is_left() -> None:
    """After its grace the warden ends all cells and itself: no process, cgroup, mount, directory or lock."""
    with running(env={"CELLBLOCK_SANDBOX__KEEP_S": "2"}) as gateway:
        async with gateway.client() as client:
            for _ in range(2):
                await client.start()
            wardens = set(gateway.warden_pids())
            assert wardens <= lock_holders()
        kill(gateway)
        await asyncio.sleep(1)
        assert len(kernels(gateway)) == 2
        begun = time.monotonic()

        assert await eventually(lambda: not traces(gateway)), traces(gateway)

        assert time.monotonic() - begun < 5
        assert not wardens & lock_holders()


async def test_a_gateway_that_comes_back_stops_the_grace() -> None:
    """A gateway within the grace keeps the kernels, also past the moment at which they would have ended."""
    with running(env={"CELLBLOCK_SANDBOX__KEEP_S": "3"}) as gateway:
        async with gateway.client() as client:
            kernel_id = await client.start()
        kill(gateway)
        await asyncio.sleep(0.5)
        gateway.start()
        await asyncio.sleep(4)

        async with gateway.client() as client:
            assert await client.out(kernel_id, "print(1)") == "1\n"


async def test_a_dead_no_keep_gateway_leaves_nothing_at_once() -> None:
    """With --no-keep even a `kill -9` leaves no cell behind, and the next start works."""
    with running("--no-keep") as gateway:
        async with gateway.client() as client:
            await client.start()
        kill(gateway)
        gateway.start()

        async with gateway.client() as client:
            assert await client.json("GET", "/api/kernels") == []
            assert await client.out(await client.start(), "print(1)") == "1\n"
            assert len(kernels(gateway)) == 1


async def adopted(gateway: Gateway, client: Client) -> str:
    """Return a kernel that has been through an adoption."""
    kernel_id = await client.start()
    kill(gateway)
    gateway.start()
    return kernel_id


async def test_an_adopted_kernel_restarts_and_is_deleted_like_any_other() -> None:
    """Restart gives an adopted kernel a fresh cell; delete leaves none."""
    with running() as gateway:
        async with gateway.client() as client:
            kernel_id = await adopted(gateway, client)
        async with gateway.client() as client:
            await client.run(kernel_id, "x = 1")
            await client.json("POST", f"/api/kernels/{kernel_id}/restart")
            assert (await client.run(kernel_id, "x"))["status"] == "error"
            await client.delete(kernel_id)
            assert await eventually(lambda: not cells(gateway))
