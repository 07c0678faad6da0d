"""A JSON-RPC connection over doubles: what goes wrong around it, credentials that end, and bounds."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import WSMsgType, WSServerHandshakeError

from gateway.errors import AuditUnavailable
from gateway.http.app import drain
from gateway.models import DEFAULT_SCOPES, AuditAction
from tests.unit.http.conftest import opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.unit.http.conftest import Door


@asynccontextmanager
async def connected(door: Door, token: str | None = None) -> AsyncIterator[Any]:
    """Open a connection of alice's, or by another token."""
    headers = {"Authorization": f"Bearer {token or door.tokens['alice']}"}
    async with door.client.ws_connect("/api/rpc", headers=headers) as socket:
        yield socket


async def asked(socket: Any, method: str, **params: Any) -> Any:
    """Make a request; return the answer, passing over notifications."""
    await socket.send_json({"jsonrpc": "2.0", "id": "own", "method": method, "params": params})
    while True:
        answer = await socket.receive_json(timeout=10)
        if answer.get("id") == "own":
            return answer


async def close_code(socket: Any) -> int | None:
    """Return the code with which the gateway closes a socket."""
    frame = await socket.receive(timeout=10)
    assert frame.type is WSMsgType.CLOSE, frame
    return int(frame.data)


async def test_a_failure_of_the_gateway(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """What breaks inside is -32603 without a word of it, and the connection goes on."""

    def broken(*_: Any) -> None:
        raise RuntimeError("secret detail")

    kernel = await door.kernel()
    monkeypatch.setattr(kernel, "model", broken)
    async with connected(door) as socket:
        answer = await asked(socket, "kernels.get", kernel_id=kernel.id)
        assert answer["error"]["code"] == -32603
        assert "secret" not in str(answer)
        assert "result" in await asked(socket, "ping")


async def test_a_trail_that_takes_no_more(door: Door) -> None:
    """What cannot be recorded is not acknowledged: the answer is an error of the gateway's."""
    async with connected(door) as socket:
        door.audit.failure = AuditUnavailable("The disk is full.", retry_after_s=5)
        answer = await asked(socket, "kernels.create")
        assert (answer["error"]["code"], answer["error"]["data"]) == (
            -32053,
            {"code": "audit_unavailable", "reason": None, "retry_after_s": 5},
        )
        assert "result" in await asked(socket, "ping")


async def test_a_credential_that_expires(door: Door) -> None:
    """The first frame after a credential's end closes the connection with 1008, and is not served."""
    ends = door.clock.now() + timedelta(seconds=30)
    token = (await door.keys.create("late", DEFAULT_SCOPES, expires_at=ends))[0]
    async with connected(door, token) as socket:
        assert "result" in await asked(socket, "ping")
        door.clock.advance(31)
        await socket.send_json({"jsonrpc": "2.0", "id": 1, "method": "kernels.create"})
        assert await close_code(socket) == 1008
    assert not door.host.kernels


async def test_draining(door: Door) -> None:
    """A gateway that ends closes connections with 1012, and takes no new ones."""
    async with connected(door) as socket:
        draining = asyncio.create_task(drain(door.app))
        assert await close_code(socket) == 1012
        await draining
        with pytest.raises(WSServerHandshakeError) as refused:
            async with connected(door):
                pass
        assert refused.value.status == 503


async def test_bytes_under_way() -> None:
    """Requests under way have so many bytes together; a lone one always has room."""
    async with opened(max_frame_bytes=4096) as small, connected(small) as socket:
        release, begun = asyncio.Event(), asyncio.Event()

        async def slow(*_: Any, **__: Any) -> list[Any]:
            begun.set()
            await release.wait()
            return []

        small.host.specs = slow  # type: ignore[method-assign]
        body = {"jsonrpc": "2.0", "id": 1, "method": "kernels.create", "params": {"name": "x" * 128}}
        await socket.send_json(body)
        await asyncio.wait_for(begun.wait(), 5)
        refused = await asked(socket, "files.write", kernel_id="k", path="p", text="x" * 3900)
        assert refused["error"]["data"]["reason"] == "requests"
        assert "result" in await asked(socket, "ping")
        release.set()


async def test_each_request_is_counted(door: Door) -> None:
    """The metrics count requests by method and status, and those of no method together."""
    async with connected(door) as socket:
        await asked(socket, "ping")
        await asked(socket, "x" * 1000)
        await asked(socket, "kernels.get", kernel_id="none")

    def count(method: str, status: str) -> float:
        return float(door.metrics.requests.labels("/api/rpc", method, status)._value.get())

    assert (count("ping", "200"), count("none", "404"), count("kernels.get", "404")) == (1, 1, 1)


async def test_the_trail_of_a_connection(door: Door) -> None:
    """A connection has a record of its begin and its end, and each refusal one with the method's name."""
    async with connected(door) as socket:
        await asked(socket, "kernels.get", kernel_id="none")
    async with asyncio.timeout(5):
        while door.audit.events[-1].action is not AuditAction.CHANNELS_CLOSE:
            await asyncio.sleep(0.01)

    told = [(event.action, event.target, event.kernel_id) for event in door.audit.events]
    assert told == [
        (AuditAction.CHANNELS_OPEN, "rpc", None),
        (AuditAction.ACCESS_REFUSED, "GET /api/rpc kernels.get", "none"),
        (AuditAction.CHANNELS_CLOSE, "rpc", None),
    ]
