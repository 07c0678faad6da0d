"""A webhook's receiver on loopback: keeps what comes, and answers as told."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.test_utils import TestServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Receiver:
    """An operator's program on loopback: keeps what comes, answers as told, 204 when not told."""

    def __init__(self) -> None:
        self.requests: list[tuple[float, dict[str, str], bytes]] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.delay_s = 0.0
        self.url = ""

    @property
    def data(self) -> list[dict[str, Any]]:
        """What was said in the bodies, in order."""
        return [json.loads(body)["data"] for _, _, body in self.requests]

    async def handle(self, request: web.Request) -> web.Response:
        """Take one request."""
        body = await request.read()
        self.requests.append((time.monotonic(), dict(request.headers), body))
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        status, headers = self.answers.pop(0) if self.answers else (204, {})
        return web.Response(status=status, headers=headers)

    async def got(self, count: int) -> None:
        """Wait until as many requests have come."""
        async with asyncio.timeout(5):
            while len(self.requests) < count:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """Give a receiver that listens."""
    made = Receiver()
    application = web.Application()
    application.router.add_post("/{rest:.*}", made.handle)
    async with TestServer(application) as server:
        made.url = str(server.make_url("/hook?token=s3cret"))
        yield made
