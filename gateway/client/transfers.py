"""Large contents between local files and the gateway, piece by piece."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from gateway.client.failures import GatewayUnreachable, NoAnswer
from gateway.errors import GatewayError

if TYPE_CHECKING:
    import aiohttp

    from gateway.client.transport import Query, Transport

Archive = Literal["tar.gz", "zip"]

PIECE = 256 << 10


class Transfers:
    """Sends and fetches files. What breaks on the way is taken up again as the transport's `retry` says."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def send(
        self,
        method: str,
        path: str,
        source: Path,
        within_s: float | None,
        *,
        query: Query | None = None,
    ) -> bytes:
        """Send a local file as a request's body and return the answer. Raises OSError, GatewayError."""
        await asyncio.to_thread(_check_readable, source)
        return await self._transport.request(
            method,
            path,
            query=query,
            headers={"Content-Type": "application/octet-stream"},
            data=lambda: source.open("rb"),  # aiohttp reads it in a thread, and closes it
            attempt_s=None,
            within_s=within_s,
        )

    async def fetch(
        self, path: str, target: Path, *, query: Query | None = None, within_s: float | None = None
    ) -> int:
        """Fetch a content into a local file, which appears when it is whole. Raises OSError, GatewayError."""
        descriptor, name = await asyncio.to_thread(
            tempfile.mkstemp, prefix=f".{target.name}.", dir=target.parent
        )
        part = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                try:
                    async with asyncio.timeout(within_s):
                        await self._fill(file, path, query)
                except TimeoutError as error:
                    raise NoAnswer(f"The content did not arrive within {within_s:g} s.") from error
                size = file.tell()
            await asyncio.to_thread(part.replace, target)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(part.unlink, missing_ok=True))
            raise
        return size

    async def _fill(self, file: BinaryIO, path: str, query: Query | None) -> None:
        loop, retry = asyncio.get_running_loop(), self._transport.retry
        failed_at: float | None = None
        etag: str | None = None
        tried = 0
        while True:
            have = file.tell()
            headers: dict[str, str] = {"Range": f"bytes={have}-", "If-Range": etag} if have and etag else {}
            try:
                async with self._transport.open("GET", path, query=query, headers=headers) as response:
                    if response.status != 206 and have:
                        file.seek(0)
                        file.truncate()
                    etag = response.headers.get("ETag")
                    await _take(response, file)
                    return
            except GatewayError as error:
                if file.tell() > have:
                    failed_at, tried = None, 0
                failed_at = failed_at or loop.time()
                wait_s = retry.wait_s(tried, loop.time() - failed_at, error)
                if wait_s is None:
                    raise
            tried += 1
            await asyncio.sleep(wait_s)


async def _take(response: aiohttp.ClientResponse, file: BinaryIO) -> None:
    promised = response.content_length
    begun = file.tell()
    async for piece in response.content.iter_chunked(PIECE):
        await asyncio.to_thread(file.write, piece)
    if promised is not None and file.tell() - begun != promised:
        raise GatewayUnreachable("The connection broke before all of the content came.")


def _check_readable(source: Path) -> None:
    with source.open("rb"):
        pass
