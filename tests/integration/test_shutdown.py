"""SIGTERM and SIGINT: the gateway drains and leaves in order, with its kernels kept or ended."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.gateway import Gateway, running
from tests.lifecycle import cells, eventually, kernels, traces, until_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.gateway import Client

SERVICE_RESTART = 1012


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """A gateway of the test's own, which it ends."""
    with running() as own:
        yield own


def signal_only(gateway: Gateway, number: int = signal.SIGTERM) -> None:
    """Send a signal and wait for nothing."""
    assert gateway.process is not None
    gateway.process.send_signal(number)


async def ended(gateway: Gateway) -> int:
    """Wait, without holding the loop up, until the gateway is gone; return its exit code."""
    assert gateway.process is not None
    return await asyncio.to_thread(gateway.process.wait, 20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("v1", [True, False])
async def test_sockets_close_with_service_restart(gateway: Gateway, number: int, v1: bool) -> None:
    """Both signals close every socket with 1012, exit 0 within seconds, and keep the kernel."""
    async with gateway.client() as client:
        kernel_id = await client.start()
        await client.run(kernel_id, "x = 3")
        async with client.channels(kernel_id, v1=v1) as channels:
            await channels.until_done(await channels.execute("x += 1"))
            begun = time.monotonic()
            signal_only(gateway, number)
            frame = await channels.socket.receive(5)
            assert frame.type is aiohttp.WSMsgType.CLOSE
            assert frame.data == SERVICE_RESTART
    assert await ended(gateway) == 0
    assert time.monotonic() - begun < 5
    assert len(kernels(gateway)) == 1

    gateway.start()
    async with gateway.client() as client:
        assert await client.out(kernel_id, "print(x)") == "4\n"


async def test_what_a_socket_started_goes_on(gateway: Gateway) -> None:
    """An execution that came by WebSocket runs on, and the next gateway sees it end."""
    async with gateway.client() as client:
        kernel_id = await client.start()
        async with client.channels(kernel_id) as channels:
            await channels.execute("import time; time.sleep(5); done = 1")
            await until_state(client, kernel_id, "busy")
            await asyncio.sleep(0.5)
            signal_only(gateway)
            await channels.socket.receive(5)
    assert await ended(gateway) == 0
    gateway.start()

    async with gateway.client() as client:
        assert (await client.kernel(kernel_id))["execution_state"] == "busy"
        await until_state(client, kernel_id, "idle")
        assert await client.out(kernel_id, "print(done)") == "1\n"


async def test_a_running_request_is_answered(gateway: Gateway) -> None:
    """A REST execution that ends within the drain gets its whole answer, though the gateway is leaving."""
    async with gateway.client() as client:
        kernel_id = await client.start()
        task = asyncio.create_task(client.run(kernel_id, "import time; time.sleep(2.5); print('whole')"))
        await until_state(client, kernel_id, "busy")
        signal_only(gateway)

        assert (await task)["stdout"] == "whole\n"
    assert await ended(gateway) == 0


async def test_a_request_that_takes_too_long_is_cut_off() -> None:
    """A REST execution that outlasts the drain does not keep the gateway; its code is interrupted."""
    with running(env={"CELLBLOCK_SERVER__DRAIN_S": "1"}) as gateway:
        async with gateway.client() as client:
            kernel_id = await client.start()
            await client.run(kernel_id, "kept = 1")
            task = asyncio.create_task(client.run(kernel_id, "import time; time.sleep(600)"))
            await until_state(client, kernel_id, "busy")
            begun = time.monotonic()
            signal_only(gateway)
            with pytest.raises((aiohttp.ClientError, ConnectionError, AssertionError)):
                await task
        assert await ended(gateway) == 0
        assert time.monotonic() - begun < 6
        gateway.start()

        async with gateway.client() as client:
            await until_state(client, kernel_id, "idle")
            assert await client.out(kernel_id, "print(kept)") == "1\n"


@contextlib.asynccontextmanager
async def held_up(client: Client) -> AsyncIterator[str]:
    """Give a kernel whose client reads nothing of 15 MB of output, which the gateway wants to write first."""
    kernel_id = await client.start()
    async with client.channels(kernel_id) as channels:
        await channels.until_done(await channels.execute("1"))
        connection = channels.socket._response.connection
        assert connection is not None
        assert connection.transport is not None
        connection.transport.pause_reading()
        await channels.execute("for _ in range(15): print('x' * 1_000_000, flush=True)")
        await until_state(client, kernel_id, "busy")
        await until_state(client, kernel_id, "idle")
        yield kernel_id


async def test_new_work_is_refused_while_draining() -> None:
    """While a slow client holds the drain up, new work is 503 shutting_down and reading works."""
    with running(env={"CELLBLOCK_SERVER__DRAIN_S": "3"}) as gateway:
        async with gateway.client() as client, held_up(client) as kernel_id:
            begun = time.monotonic()
            signal_only(gateway)
            await asyncio.sleep(0.5)

            refused = await client.json("POST", "/api/kernels", {}, status=503)
            assert refused["code"] == "shutting_down"
            not_ready = await client.json("GET", "/readyz", status=503)
            assert not_ready["code"] == "shutting_down"
            await client.json("POST", f"/api/kernels/{kernel_id}/execute", {"code": "1"}, status=503)
            with pytest.raises(aiohttp.WSServerHandshakeError) as handshake:
                async with client.channels(kernel_id):
                    pass
            assert handshake.value.status == 503
            assert (await client.kernel(kernel_id))["id"] == kernel_id
            assert await ended(gateway) == 0
            assert time.monotonic() - begun < 8


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_no_keep_leaves_nothing(number: int) -> None:
    """With --no-keep kernels, busy ones too, warden, mounts and cgroups are gone within seconds."""
    with running("--no-keep") as gateway:
        async with gateway.client() as client:
            busy, _ = await client.start(), await client.start()
            async with client.channels(busy) as channels:
                await channels.execute("while True:\n try: pass\n except BaseException: pass")
                await until_state(client, busy, "busy")
                begun = time.monotonic()
                signal_only(gateway, number)
                await channels.socket.receive(5)
        assert await ended(gateway) == 0
        assert await eventually(lambda: not traces(gateway), 5), traces(gateway)
        assert time.monotonic() - begun < 8


async def test_more_signals_do_no_harm() -> None:
    """A hundred signals while the gateway drains and goes change nothing: exit 0, kernels kept."""
    with running(env={"CELLBLOCK_SERVER__DRAIN_S": "1"}) as gateway:
        async with gateway.client() as client, held_up(client) as kernel_id:
            process = gateway.process
            assert process is not None
            while process.poll() is None:
                for number in (signal.SIGTERM, signal.SIGINT):
                    process.send_signal(number)
                await asyncio.sleep(0.01)
            assert process.returncode == 0
        gateway.start()

        async with gateway.client() as client:
            assert await client.out(kernel_id, "print(1)") == "1\n"


async def test_a_signal_while_kernels_start(gateway: Gateway) -> None:
    """A SIGTERM in the middle of starts ends in order; no cell is left that the next does not show."""
    async with gateway.client() as client:
        starts = [asyncio.create_task(client.start()) for _ in range(2)]
        await asyncio.sleep(0.2)
        signal_only(gateway)
        given = [one for one in await asyncio.gather(*starts, return_exceptions=True) if isinstance(one, str)]
    assert await ended(gateway) == 0
    gateway.start()

    async with gateway.client() as client:
        shown = {model["id"] for model in await client.json("GET", "/api/kernels")}
        assert set(given) <= shown
        assert await eventually(lambda: len(kernels(gateway)) == len(shown)), cells(gateway)


def test_a_taken_port_is_one_sentence() -> None:
    """Where the port is taken, serve says so in one line, exits 2, and leaves no warden and no state."""
    gateway = Gateway()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            gateway.command("serve", "--port", str(port), "--state-dir", str(gateway.state_dir)),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            cwd="/",
        )
    try:
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.splitlines() == [
            f"cellblock: Port {port} on 127.0.0.1 is taken: choose another with --port."
        ]
        assert traces(gateway) == []
        assert list(gateway.state_dir.iterdir()) == []
    finally:
        gateway.destroy()
