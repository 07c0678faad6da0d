"""What the door says of quotas and expiry: headers, refusals, and sockets that end."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest
from aiohttp import WSServerHandshakeError, web
from aiohttp.test_utils import make_mocked_request

from gateway.http.middleware import protect
from gateway.models import DEFAULT_SCOPES
from tests.unit.http.conftest import opened
from tests.unit.http.test_channels import closing, request, until


async def test_rate_headers():
    """Answers tell what is left of a quota; past it they are 429 and say when to come again."""
    async with opened(quota={"starts_per_minute": 2, "executions_per_minute": 1}) as door:
        _, body, first = await door.call("POST", "/api/kernels")
        await door.call("POST", "/api/kernels")
        status, refused, headers = await door.call("POST", "/api/kernels")
        execute = f"/api/kernels/{body['id']}/execute"
        _, _, ran = await door.call("POST", execute, json={"code": "1"})
        again, _, late = await door.call("POST", execute, json={"code": "1"})

    assert (first["X-RateLimit-Limit"], first["X-RateLimit-Remaining"]) == ("2", "1")
    assert (status, refused["code"], refused["reason"]) == (429, "limit_reached", "starts_per_minute")
    assert (headers["X-RateLimit-Remaining"], headers["X-RateLimit-Reset"], headers["Retry-After"]) == (
        "0",
        "60",
        "60",
    )
    assert (ran["X-RateLimit-Remaining"], again, late["Retry-After"]) == ("0", 429, "60")


async def test_unlimited_says_nothing():
    """Without a bound there is nothing to tell."""
    async with opened(quota={"starts_per_minute": "unlimited"}) as door:
        _, _, headers = await door.call("POST", "/api/kernels")

    assert "X-RateLimit-Limit" not in headers


async def test_socket_refusal_is_a_reply():
    """Past a quota an execution over the WebSocket is answered as failed; REST shares the count."""
    async with opened(quota={"executions_per_minute": 2}) as door:
        kernel = await door.kernel()
        await door.call("POST", f"/api/kernels/{kernel.id}/execute", json={"code": "1"})
        async with door.channels(kernel.id) as socket:
            await socket.send_str(request("1"))
            await until(socket, "status", "idle")
            await socket.send_str(request("2"))
            frames = await until(socket, "status", "idle")

    reply = next(frame for frame in frames if frame["msg_type"] == "execute_reply")
    assert reply["content"]["ename"] == "LimitReached"
    assert len(kernel.sent) == 2


async def test_open_sockets_are_bounded():
    """One socket too many is 429 before the upgrade; a closed one makes room; others have their own."""
    async with opened(quota={"sockets": 2}) as door:
        kernel, other = await door.kernel(), await door.kernel("bob")
        first = await door.channels(kernel.id)
        async with door.channels(kernel.id), door.channels(other.id, who="bob"):
            with pytest.raises(WSServerHandshakeError) as refused:
                await door.channels(kernel.id)
            assert refused.value.status == 429
            await first.close()
            async with asyncio.timeout(5):
                while door.quotas._sockets["alice"] > 1:
                    await asyncio.sleep(0.01)
            async with door.channels(kernel.id):
                pass


async def test_a_message_after_expiry_is_not_forwarded(door):
    """Between two looks at the store, a message of an expired credential closes its socket with 1008."""
    token, _ = await door.keys.create("alice", DEFAULT_SCOPES, door.clock.now() + timedelta(seconds=100))
    door.tokens["brief"] = token
    kernel = await door.kernel()
    async with door.channels(kernel.id, who="brief") as socket:
        await socket.send_str(request("1"))
        await until(socket, "status", "idle")
        door.clock.advance(101)
        await socket.send_str(request("2"))
        code, _ = await closing(socket)

    assert code == 1008
    assert [json.loads(message.content)["code"] for message, _ in kernel.sent] == ["1"]


async def test_a_socket_closes_at_expiry(door):
    """A socket whose credential expires is closed at that moment, though nobody sends and nobody looks."""
    token, _ = await door.keys.create("alice", DEFAULT_SCOPES, door.clock.now() + timedelta(seconds=0.3))
    door.tokens["brief"] = token
    kernel = await door.kernel()
    began = asyncio.get_running_loop().time()
    async with door.channels(kernel.id, who="brief") as socket:
        code, _ = await closing(socket)

    assert code == 1008
    assert 0.25 < asyncio.get_running_loop().time() - began < 0.9


async def test_a_slow_body_is_refused():
    """A body that does not arrive in time is 408, and the connection ends."""
    async with opened(body_timeout_s=0.2) as door:

        async def trickle():
            yield b"{"
            await asyncio.sleep(30)
            yield b"}"

        status, body, _ = await door.call("POST", "/api/kernels", data=trickle())

    assert (status, body["code"]) == (408, "request_timeout")


async def test_a_large_head_is_refused():
    """Many headers that are large together are 431, each of them allowed."""
    async with opened(max_header_bytes=4096) as door:
        many = {f"X-Filler-{n}": "x" * 500 for n in range(10)}
        status, body, _ = await door.call("GET", "/api/status", headers=many)

    assert (status, body["code"]) == (431, "headers_too_large")


async def test_known_hosts():
    """With names set, the gateway answers for those alone, also where it is not bound to loopback."""
    async with opened(host="0.0.0.0", hosts=("cells.example",)) as door:
        known, _, _ = await door.call("GET", "/healthz", headers={"Host": "cells.example:443"})
        strange, body, _ = await door.call("GET", "/healthz", headers={"Host": "evil.example"})

    assert (known, strange, body["reason"]) == (200, 403, "host")


async def test_a_proxy_tells_the_address():
    """Behind a proxy the last entry of X-Forwarded-For is the client's address, the others hearsay."""
    addresses = []
    for behind in (True, False):
        async with opened(behind_proxy=behind) as door:
            kernel = await door.kernel()
            said = {"X-Forwarded-For": "6.6.6.6, 203.0.113.9"}
            await door.call("POST", f"/api/kernels/{kernel.id}/execute", json={"code": "1"}, headers=said)
            addresses.append(kernel.origins[0].address)

    assert addresses == ["203.0.113.9", "127.0.0.1"]


async def test_no_answer_sets_a_cookie_or_hsts_in_clear(door):
    """Over plain HTTP nothing claims HTTPS, and no route sets a cookie."""
    for path in ("/api", "/api/docs", "/api/me", "/nothing"):
        _, _, headers = await door.call("GET", path)
        assert "Strict-Transport-Security" not in headers
        assert "Set-Cookie" not in headers


async def test_anothers_starts_keep_nobody_waiting():
    """While fifty starts of alice's hang, bob's is under way at once; hers past her share are refused."""
    async with opened() as door:
        door.host.hold = asyncio.Event()
        hers = [asyncio.create_task(door.call("POST", "/api/kernels")) for _ in range(50)]
        async with asyncio.timeout(5):
            while sum(task.done() for task in hers) < 30:
                await asyncio.sleep(0.01)
        assert {task.result()[0] for task in hers if task.done()} == {429}
        started = door.host.starts
        his = asyncio.create_task(door.call("POST", "/api/kernels", who="bob"))
        async with asyncio.timeout(5):
            while door.host.starts == started:
                await asyncio.sleep(0.01)
        door.host.hold.set()
        results = await asyncio.gather(his, *hers)

    assert started == 7
    assert [status for status, _, _ in results].count(201) == 21


@pytest.mark.parametrize("secure", [False, True])
async def test_any_cookie_is_hardened(door, secure):
    """Whoever sets a cookie: scripts and other sites do not get it, nor does plain HTTP under TLS."""
    request = make_mocked_request("GET", "/", app=door.app)
    request = request.clone(scheme="https" if secure else "http")
    response = web.Response()
    response.set_cookie("any", "value")

    await protect(request, response)

    cookie = response.cookies["any"]
    assert (cookie["httponly"], cookie["samesite"], bool(cookie["secure"])) == (True, "Strict", secure)
