"""A stream whose client goes away before it has begun leaves nothing running."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.gateway import Client, Gateway

SLEEP = {"code": "import time; time.sleep(60)"}


@pytest.mark.parametrize("mode", ["stream", "wait"])
async def test_a_client_that_goes_away_at_once(gateway: Gateway, mode: str) -> None:
    """Whenever it leaves, before, while or after its kernel starts, the kernel ends and so does the job."""
    async with gateway.client(f"dropper-{mode}") as client:
        for wait_s in (0.01, 0.1, 0.3, 0.6):
            asking = asyncio.create_task(asked(client, mode))
            await asyncio.sleep(wait_s)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking

        async with asyncio.timeout(20):
            while await client.json("GET", "/api/kernels") or await unended(client):
                await asyncio.sleep(0.1)


async def asked(client: Client, mode: str) -> None:
    """Ask for an execution, and read all that comes of it."""
    async with client.http.post("/api/executions", json=SLEEP | {"mode": mode}) as response:
        await response.read()


async def unended(client: Client) -> list[str]:
    """Return the executions that have not ended."""
    found = await client.json("GET", "/api/executions")
    return [job["id"] for job in found if job["ended_at"] is None]
