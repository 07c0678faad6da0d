"""The gateway's own loop: no call in it may block, whatever is asked of the gateway, and by whichever door."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

import pytest
from blockbuster import blockbuster_ctx

from gateway import app, settings
from gateway.cli.serve import bind
from gateway.privilege import prepare_state
from gateway.sandbox import daemon
from gateway.telemetry import configure_logging
from tests.gateway import Gateway, new_state_dir, text_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.gateway import Client

LIMIT_S = "CELLBLOCK_KERNELS__CULL_INTERVAL_S"


@pytest.fixture
def signals() -> Iterator[None]:
    """Put back the handlers that a gateway in this process replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
async def watched(signals: None) -> AsyncIterator[Gateway]:
    """A gateway in this very loop, where every blocking call is an error, and its warden."""
    gateway = Gateway(state_dir=new_state_dir())
    here = settings.load(
        state_dir=gateway.state_dir,
        server={"port": 0},
        kernels={"cull_interval_s": 0.2},
        log={"format": "json", "level": "debug"},
    )
    listener = bind(here.server.host, 0)
    gateway.url = app.address(listener)
    await asyncio.to_thread(prepare_state, here)
    await asyncio.to_thread(daemon.ensure, here)
    await asyncio.to_thread(gateway.key)
    with blockbuster_ctx():
        serving = asyncio.create_task(app.serve(here, listener, keep=False, privileged=True))
        await until_up(gateway, serving)
        yield gateway
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(serving, 20)
    await asyncio.to_thread(gateway.destroy)


async def until_up(gateway: Gateway, serving: asyncio.Task[None]) -> None:
    """Wait until the gateway answers, or raise what it failed of."""
    while True:
        if serving.done():
            await serving
        with contextlib.suppress(OSError):
            async with gateway.client() as client, client.http.get("/api/health") as response:
                assert response.status == 200
                return
        await asyncio.sleep(0.05)


async def test_rest(watched: Gateway) -> None:
    """A kernel's whole life over REST."""
    async with watched.client() as client:
        kernel_id = await client.start()
        assert await client.out(kernel_id, "print(1)") == "1\n"


def test_configure() -> None:
    assert configure_logging and text_of and Client
