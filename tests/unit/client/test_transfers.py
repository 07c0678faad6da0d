"""Large files over connections that break."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from gateway.client import GatewayUnreachable
from gateway.errors import NotFound
from tests.unit.client.conftest import DROP

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway.client import Client
    from tests.unit.client.conftest import Scripted

FILE = "/api/kernels/k/files/a"
CONTENT = bytes(range(256)) * 4096
ENTRY = {
    "path": "a",
    "href": "a",
    "type": "file",
    "size": 1,
    "executable": False,
    "modified_at": "",
    "etag": '"1"',
}


def served(most: int, *, etag: str = '"1"', ranges: bool = True) -> Callable[..., Any]:
    """Return what answers as the gateway does, by range, and breaks off after `most` bytes."""

    async def answer(request: web.Request) -> web.StreamResponse:
        given = request.headers.get("Range") if ranges else None
        start = int(given.removeprefix("bytes=").rstrip("-")) if given else 0
        response = web.StreamResponse(status=206 if given else 200, headers={"ETag": etag})
        response.content_length = len(CONTENT) - start
        await response.prepare(request)
        await response.write(CONTENT[start : start + most])
        if start + most < len(CONTENT) and request.transport is not None:
            await asyncio.sleep(0.1)
            request.transport.close()
        return response

    return answer


async def test_a_download_goes_on_where_it_broke(scripted: Scripted, client: Client, tmp_path: Path) -> None:
    """What came is kept, the rest is asked for by range as long as the file is the same one."""
    scripted.on("GET", FILE, served(300_000), DROP, served(300_000), served(len(CONTENT)))

    size = await client.files.download("k", "a", tmp_path / "a")

    assert size == len(CONTENT)
    assert (tmp_path / "a").read_bytes() == CONTENT
    ranges = [asked.headers.get("Range") for asked in scripted.asked]
    assert ranges[0] is None
    assert 0 < int(str(ranges[1])[6:-1]) == int(str(ranges[2])[6:-1]) < int(str(ranges[3])[6:-1])
    assert {asked.headers["If-Range"] for asked in scripted.asked[1:]} == {'"1"'}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


async def test_a_file_that_changed_begins_anew(scripted: Scripted, client: Client, tmp_path: Path) -> None:
    """A file that is another one by now comes from its start: old and new are never mixed."""
    scripted.on("GET", FILE, served(300_000), served(len(CONTENT), etag='"2"', ranges=False))

    await client.files.download("k", "a", tmp_path / "a")

    assert (tmp_path / "a").read_bytes() == CONTENT


async def test_a_download_that_fails_leaves_nothing(
    scripted: Scripted, client: Client, tmp_path: Path
) -> None:
    """The old local file stays as it was, and no part of the new one lies about."""
    (tmp_path / "a").write_text("old")
    scripted.on("GET", FILE, served(300_000), DROP)
    with pytest.raises(GatewayUnreachable):
        await client.files.download("k", "a", tmp_path / "a")
    with pytest.raises(NotFound):
        await client.files.download("k", "b", tmp_path / "a")

    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


async def test_an_upload_is_sent_whole_again(scripted: Scripted, client: Client, tmp_path: Path) -> None:
    """An upload that breaks is sent again from its first byte, with its length."""
    (tmp_path / "a").write_bytes(CONTENT)
    scripted.on("PUT", FILE, DROP, ENTRY)

    await client.files.upload("k", tmp_path / "a", "a")

    assert [asked.body == CONTENT for asked in scripted.asked] == [True, True]
    assert {asked.headers["Content-Length"] for asked in scripted.asked} == {str(len(CONTENT))}
    with pytest.raises(OSError, match="missing"):
        await client.files.upload("k", tmp_path / "missing", "a")
