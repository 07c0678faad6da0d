"""Large files over connections that break."""

from __future__ import annotations

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


def piece(start: int, stop: int, *, etag: str = '"1"', status: int = 206) -> Callable[..., Any]:
    """Return what promises the content from `start` on, and breaks off at `stop`."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers={"ETag": etag})
        response.content_length = len(CONTENT) - start
        await response.prepare(request)
        await response.write(CONTENT[start:stop])
        if stop < len(CONTENT) and request.transport is not None:
            request.transport.close()
        return response

    return answer


async def test_a_download_goes_on_where_it_broke(scripted: Scripted, client: Client, tmp_path: Path) -> None:
    """What came is kept, the rest is asked for by range as long as the file is the same one."""
    scripted.on("GET", FILE, piece(0, 300_000, status=200), DROP, piece(300_000, len(CONTENT)))

    size = await client.files.download("k", "a", tmp_path / "a")

    assert size == len(CONTENT)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert [asked.headers.get("Range") for asked in scripted.asked] == [
        None,
        "bytes=300000-",
        "bytes=300000-",
    ]
    assert scripted.asked[1].headers["If-Range"] == '"1"'
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


async def test_a_file_that_changed_begins_anew(scripted: Scripted, client: Client, tmp_path: Path) -> None:
    """A file that is another one by now comes from its start: old and new are never mixed."""
    scripted.on("GET", FILE, piece(0, 300_000, status=200), piece(0, len(CONTENT), etag='"2"', status=200))

    await client.files.download("k", "a", tmp_path / "a")

    assert (tmp_path / "a").read_bytes() == CONTENT


async def test_a_download_that_fails_leaves_nothing(
    scripted: Scripted, client: Client, tmp_path: Path
) -> None:
    """The old local file stays as it was, and no part of the new one lies about."""
    (tmp_path / "a").write_text("old")
    scripted.on("GET", FILE, piece(0, 300_000, status=200), DROP)
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
