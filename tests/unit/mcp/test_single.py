"""One MCP request of an older revision: JSON when it is quick, and else a stream."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import mcp_types as types
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from gateway.mcp import single as module
from gateway.mcp.asgi import Exchange
from gateway.mcp.single import Answer, Single, single, version_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HEADERS = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


def asked(method: str = "tools/call", request_id: Any = 1, **params: Any) -> bytes:
    """Return a request of JSON-RPC's."""
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}).encode()


@asynccontextmanager
async def served(tool: Any) -> AsyncIterator[TestClient[Any, Any]]:
    """Serve a tool, as the gateway does: handlers end with their clients."""

    async def call(ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        text = await tool(ctx, params)
        return types.CallToolResult(content=[types.TextContent(text=text)])

    server: Server[Any] = Server("test", on_call_tool=call)

    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        message = single(request.headers, body)
        assert message is not None
        answering = Single(server, message, version_of(request.headers))
        return await Exchange(request, body, {"who": request.headers.get("X-Who")}).run(answering, {})

    app = web.Application()
    app.router.add_post("/mcp", handler)
    async with TestClient(TestServer(app, handler_cancellation=True)) as client:
        yield client


def messages(text: str) -> list[dict[str, Any]]:
    """Return the messages of a stream of events."""
    return [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:")]


async def test_a_quick_answer_is_json() -> None:
    """What ends without a word before comes as one JSON object, with the request's id as it was."""

    async def tool(ctx: Any, params: Any) -> str:
        return f"{params.name} for {ctx.request.scope['state']['who']}"

    async with served(tool) as client:
        for request_id in (7, "seven"):
            headers = {**HEADERS, "X-Who": "alice"}
            async with client.post(
                "/mcp", data=asked(name="t", request_id=request_id), headers=headers
            ) as response:
                assert (response.status, response.content_type) == (200, "application/json")
                body = await response.json()
            assert (body["jsonrpc"], body["id"]) == ("2.0", request_id)
            assert body["result"]["content"] == [{"type": "text", "text": "t for alice"}]
            assert "error" not in body


async def test_progress_makes_a_stream() -> None:
    """A client that wants progress gets it before the end, and the result as the last message."""
    go_on = asyncio.Event()

    async def tool(ctx: Any, _params: Any) -> str:
        await ctx.session.report_progress(0.5, message="half")
        await go_on.wait()
        return "done"

    wanted = asked(name="t", _meta={"progressToken": "p"})
    async with served(tool) as client, client.post("/mcp", data=wanted, headers=HEADERS) as response:
        assert response.content_type == "text/event-stream"
        first = await response.content.readuntil(b"\r\n\r\n")
        [told] = messages(first.decode())
        assert told["method"] == "notifications/progress"
        assert told["params"] == {"progressToken": "p", "progress": 0.5, "message": "half"}
        go_on.set()
        [last] = messages(await response.text())
        assert last["result"]["content"][0]["text"] == "done"


async def test_progress_that_nobody_wants() -> None:
    """Without a token nothing is told, and the answer is JSON."""

    async def tool(ctx: Any, _params: Any) -> str:
        await ctx.session.report_progress(0.5)
        return "done"

    sent = {"data": asked(name="t"), "headers": HEADERS}
    async with served(tool) as client, client.post("/mcp", **sent) as response:
        assert response.content_type == "application/json"
        assert (await response.json())["result"]["content"][0]["text"] == "done"


async def test_a_long_silence_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy never sees a silent connection for long: a stream begins, with comments until the end."""
    monkeypatch.setattr(module, "PING_S", 0.05)

    async def tool(_ctx: Any, _params: Any) -> str:
        await asyncio.sleep(0.18)
        return "done"

    sent = {"data": asked(name="t"), "headers": HEADERS}
    async with served(tool) as client, client.post("/mcp", **sent) as response:
        text = await response.text()
        assert response.content_type == "text/event-stream"
    assert text.count(": ping\r\n\r\n") >= 2
    assert messages(text)[-1]["result"]["content"][0]["text"] == "done"


async def test_one_piece_after_the_other() -> None:
    """What is told at once goes out in turn, after the head, and what comes after the end does not."""
    sent: list[str] = []

    async def send(event: Any) -> None:
        await asyncio.sleep(0)
        sent.append(str(event.get("status") or event["body"].decode().partition("\r\n")[0]))

    answer = Answer(send)
    await asyncio.gather(answer.tell(b"1"), answer.ping(), answer.tell(b"2"), answer.end(b"3"))
    await answer.tell(b"late")

    assert sent == ["200", "event: message", ": ping", "event: message", "event: message"]


async def test_a_client_that_leaves_ends_its_handler() -> None:
    """When the connection goes the handler is cancelled, before a stream has begun and after."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def tool(ctx: Any, _params: Any) -> str:
        await ctx.session.report_progress(0.1)
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return "never"

    async with served(tool) as client:
        for meta in ({}, {"_meta": {"progressToken": 1}}):
            begun.clear()
            ended.clear()
            asking = asyncio.create_task(
                client.post("/mcp", data=asked(name="t", **meta), headers=HEADERS, timeout=None)
            )
            await asyncio.wait_for(begun.wait(), 5)
            await asyncio.sleep(0.05)
            if asking.done():
                asking.result().close()
            asking.cancel()
            await asyncio.wait_for(ended.wait(), 5)


async def test_failures() -> None:
    """What a handler refuses is JSON-RPC's error; what it dies of is said in general words alone."""

    async def tool(_ctx: Any, params: Any) -> str:
        if params.name == "refuse":
            raise MCPError(code=-32800, message="Request cancelled")
        raise ValueError("hunter2")

    async with served(tool) as client:
        said = {}
        for name in ("refuse", "die"):
            async with client.post("/mcp", data=asked(name=name), headers=HEADERS) as response:
                assert response.status == 200
                said[name] = (await response.json())["error"]
        async with client.post("/mcp", data=asked("no/such"), headers=HEADERS) as response:
            said["no/such"] = (await response.json())["error"]
    assert (said["refuse"]["code"], said["refuse"]["message"]) == (-32800, "Request cancelled")
    assert said["die"]["code"] == types.INTERNAL_ERROR
    assert "hunter2" not in str(said["die"])
    assert said["no/such"]["code"] == types.METHOD_NOT_FOUND


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({**HEADERS, "Accept": "application/json"}, asked()),
        ({**HEADERS, "Content-Type": "text/plain"}, asked()),
        ({**HEADERS, "MCP-Protocol-Version": "2026-07-28"}, asked()),
        ({**HEADERS, "MCP-Protocol-Version": "1999-01-01"}, asked()),
        (HEADERS, asked("initialize")),
        (HEADERS, b"{"),
        (HEADERS, b"[" * 50_000),
        (HEADERS, b'{"jsonrpc": "2.0", "method": "notifications/cancelled"}'),
        (HEADERS, b'{"jsonrpc": "2.0", "id": 1, "result": {}}'),
    ],
)
def test_what_is_left_to_the_sdk(headers: dict[str, str], body: bytes) -> None:
    """A handshake, a notification, another revision and every fault are not answered here."""
    assert single(headers, body) is None


def test_the_revision_that_is_spoken() -> None:
    """A client that names none speaks the one before the header was; else its own word counts."""
    assert version_of({}) == "2025-03-26"
    assert version_of({"MCP-Protocol-Version": "2025-06-18"}) == "2025-06-18"
