"""The bridge from aiohttp to an ASGI application: what goes in, what comes out, and a client that leaves."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientPayloadError, web
from aiohttp.test_utils import TestClient, TestServer

from gateway.mcp.asgi import Exchange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    """Return an event with a piece of an answer."""
    return {"type": "http.response.body", "body": data, "more_body": more}


@asynccontextmanager
async def served(application: Any, **headers: str) -> AsyncIterator[TestClient[Any, Any]]:
    """Serve an application through the bridge, as the gateway does: handlers end with their clients."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return await Exchange(request, await request.read(), {"who": "alice"}).run(application, headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestClient(TestServer(app, handler_cancellation=True)) as client:
        yield client


async def test_what_goes_in() -> None:
    """The application gets the request and its body, what was added to it, and no credential."""
    seen: dict[str, Any] = {}

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope, event=await receive())
        await send(START)
        await send(body(b"ok"))

    async with served(application) as client:
        headers = {"Authorization": "Bearer secret", "Cookie": "a=b", "X-Own": "ü"}
        async with client.post("/mcp?token=secret", data=b"{}", headers=headers) as response:
            assert (response.status, await response.text()) == (200, "ok")

    assert (seen["type"], seen["method"], seen["path"]) == ("http", "POST", "/mcp")
    assert seen["event"] == {"type": "http.request", "body": b"{}", "more_body": False}
    assert seen["state"] == {"who": "alice"}
    sent = dict(seen["headers"])
    assert sent[b"x-own"] == "ü".encode()
    assert sent[b"content-length"] == b"2"
    assert not sent.keys() & {b"authorization", b"cookie", b"connection"}
    assert "secret" not in str(seen)


async def test_what_comes_out() -> None:
    """A whole answer has its length; what the application says of the connection is not passed on."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/json"), (b"connection", b"close"), (b"x-a", b"1")]
        await send({"type": "http.response.start", "status": 404, "headers": headers})
        await send(body(b"{}"))

    async with served(application, **{"Mcp-Session-Id": "s"}) as client, client.get("/") as response:
        assert (response.status, await response.read()) == (404, b"{}")
        assert response.headers["Content-Length"] == "2"
        assert response.headers["Content-Type"] == "application/json"
        assert (response.headers["X-A"], response.headers["Mcp-Session-Id"]) == ("1", "s")
        assert response.headers.get("Connection") != "close"


async def test_a_stream_comes_as_it_is_made() -> None:
    """Each piece is there before the next is made."""
    go_on = asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"one\n", more=True))
        await go_on.wait()
        await send(body(b"two\n", more=True))
        await send(body(b""))

    async with served(application) as client, client.get("/") as response:
        assert await asyncio.wait_for(response.content.readline(), 5) == b"one\n"
        assert response.headers["X-Accel-Buffering"] == "no"
        go_on.set()
        assert await response.content.read() == b"two\n"


@pytest.mark.parametrize("streams", [False, True])
async def test_a_client_that_leaves(streams: bool) -> None:
    """The application is cancelled at once, whether it has begun to answer or not."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if streams:
            await send(START)
            await send(body(b"one\n", more=True))
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async with served(application) as client:
        asking = asyncio.create_task(client.get("/"))
        await asyncio.wait_for(begun.wait(), 5)
        if streams:
            (await asking).close()
        asking.cancel()

        await asyncio.wait_for(ended.wait(), 5)


async def test_a_disconnect_is_told() -> None:
    """An application that waits for it learns that the client went away while it wrote."""
    told = asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        # shielded from the handler's cancellation, as a transport's task may be
        await asyncio.shield(work(receive, send))

    async def work(receive: Any, send: Any) -> None:
        await receive()
        waiting = asyncio.create_task(receive())
        await send(START)
        while not waiting.done():
            await send(body(b"x" * 65536, more=True))
            await asyncio.sleep(0.01)
        assert waiting.result() == {"type": "http.disconnect"}
        # to nobody: it comes to nothing
        await send(body(b"y"))
        told.set()

    async with served(application) as client:
        response = await client.get("/")
        await response.content.readexactly(1000)
        response.close()

        await asyncio.wait_for(told.wait(), 10)


async def test_an_application_that_fails() -> None:
    """What an application raises is the handler's; one that says nothing is a fault and no empty answer."""

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        pass

    async def breaking(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"one\n", more=True))
        raise ValueError("no more")

    async with served(silent) as client, client.get("/") as response:
        assert response.status == 500
    async with served(breaking) as client, client.get("/") as response:
        assert response.status == 200
        with pytest.raises(ClientPayloadError):
            await response.read()
