"""Whatever comes in over the network: a clear error of one shape, no 500, and everybody else is served on."""

from __future__ import annotations

import asyncio
import io
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from yarl import URL

from gateway.http.routes import PLAIN_ROUTES, ROUTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.gateway import Client, Gateway

RANDOM = "3f0c1b5e-7c41-4f0a-9a53-6f2f0f0e9d11"
# what a client may have made of a path with dots in it
WHOLE_PATHS = {route.path for route in ROUTES if "{" not in route.path}
SHAPE = {"message", "reason", "code"}
# as they stand in the request line: percent-encoded, and already decoded where HTTP allows that
WEIRD_IDS = (
    "..",
    "%2e%2e",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2fetc%2fpasswd",
    "..%5c..%5cboot.ini",
    "%00",
    "a%00b",
    "%0d%0aSet-Cookie:%20x=1",
    "%ff%fe",
    "%F0%9F%8E%88",
    "%27%20OR%201=1--",
    "%3Cscript%3E",
    "$%7Bjndi:x%7D",
    "null",
    "-1",
    "%20",
    "%",
    "%zz",
    RANDOM.upper(),
    "{kernel_id}",
    "a" * 4000,
)


@pytest.fixture(scope="module", autouse=True)
def nothing_crashes(gateway: Gateway) -> Iterator[None]:
    """No test of this module makes the gateway fail in a way that it did not foresee."""
    yield
    crashed = [line for line in gateway.log() if line["event"] in {"request_crashed", "socket_crashed"}]
    assert not crashed
    assert "Traceback" not in gateway.log_path.read_text(), gateway.log_path.read_text()[-6000:]


@pytest.mark.parametrize("path", ["/api/kernels", "/api/sessions", "/api/kernels/{id}/execute"])
@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"name": }',
        b"[]",
        b"[1, 2]",
        b'"text"',
        b"7",
        b"true",
        b"NaN",
        b"\x00",
        b"\xff\xfe{}",
        b'{"code": "\xff"}',
        b'{"code": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"<xml/>",
    ],
    ids=lambda body: repr(body[:12]),
)
async def test_bodies_that_are_no_json_object(client: Client, kernel: str, path: str, body: bytes) -> None:
    """Malformed JSON, other values than objects, and endless nesting are 400."""
    await expect(client, "POST", path.format(id=kernel), 400, "bad_request", data=body)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/kernels", {"name": 5}),
        ("/api/kernels", {"name": ["python3"]}),
        ("/api/kernels", {"name": "x" * 129}),
        ("/api/kernels", {"env": []}),
        ("/api/kernels", {"env": {"KERNEL_A": 1}}),
        ("/api/kernels", {"env": {"KERNEL_A": None}}),
        ("/api/kernels", {"env": {"KERNEL_A": "a\0b"}}),
        ("/api/kernels", {"env": {"KERNEL_A": "x" * 100_000}}),
        ("/api/kernels", {"env": {f"KERNEL_{n}": "x" for n in range(65)}}),
        *(
            ("/api/kernels", {"env": {name: "x"}})
            for name in (
                "PATH",
                "LD_PRELOAD",
                "PYTHONPATH",
                "HOME",
                "SHELL",
                "",
                "KERNEL_A=B",
                "KERNEL_\0",
                "Ä",
            )
        ),
        ("/api/kernels", {"kernel_id": "../../x"}),
        ("/api/kernels", {"kernel_id": RANDOM.upper()}),
        ("/api/kernels", {"kernel_id": ""}),
        ("/api/kernels", {"kernel_id": 7}),
        ("/api/sessions", {}),
        ("/api/sessions", {"path": "a.ipynb"}),
        ("/api/sessions", {"type": "notebook"}),
        ("/api/sessions", {"path": "", "type": "notebook"}),
        ("/api/sessions", {"path": "a\0b", "type": "notebook"}),
        ("/api/sessions", {"path": ["a"], "type": "notebook"}),
        ("/api/sessions", {"path": "a" * 5000, "type": "notebook"}),
        ("/api/sessions", {"path": "a", "type": "notebook", "kernel": "python3"}),
        ("/api/sessions", {"path": "a", "type": "notebook", "kernel": {"name": 1}}),
        ("/api/kernels/{id}/execute", {}),
        ("/api/kernels/{id}/execute", {"code": None}),
        ("/api/kernels/{id}/execute", {"code": ["1"]}),
        ("/api/kernels/{id}/execute", {"code": "1", "cod": "2"}),
        ("/api/kernels/{id}/execute", {"code": "1", "silent": "perhaps"}),
        *(
            ("/api/kernels/{id}/commands", body)
            for body in (
                {},
                {"command": ""},
                {"command": "true", "argv": ["true"]},
                {"command": 1},
                {"command": "a\0b"},
                {"argv": []},
                {"argv": ["/nonexistent"]},
                {"argv": ["x"] * 257},
                {"command": "true", "cwd": "/nonexistent"},
                {"command": "true", "env": {"A=B": "1"}},
                {"command": "true", "env": {"A": 1}},
                {"command": "true", "timeout_s": 0},
                {"command": "true", "timeout_s": 1e9},
                {"command": "true", "output_bytes": 1},
                {"command": "true", "stdin": 5},
                {"command": "true", "more": True},
            )
        ),
        ("/api/kernels/{id}/processes", {"argv": ["/etc"]}),
        ("/api/kernels/{id}/processes", {"argv": ["true"], "stdin": "perhaps"}),
        ("/api/kernels/{id}/processes", {"argv": ["true"], "timeout_s": 1}),
        *(
            ("/api/kernels/{id}/execute", {"code": "1", "timeout_s": timeout_s})
            for timeout_s in (0, -1, "soon", [], {}, -1e400)
        ),
    ],
    ids=lambda value: str(value)[:40].replace("\0", "NUL"),
)
async def test_values_that_are_not_allowed(
    client: Client, kernel: str, path: str, body: dict[str, Any]
) -> None:
    """Wrong types, sizes, names and numbers are 400 and start nothing."""
    before = await client.json("GET", "/api/kernels")
    text = json.dumps(body).replace("-Infinity", "-1e400").encode()

    await expect(client, "POST", path.format(id=kernel), 400, "bad_request", data=text)

    assert len(await client.json("GET", "/api/kernels")) == len(before)


async def test_timeouts_beyond_any_bound_are_capped(client: Client, kernel: str) -> None:
    """An absurdly long timeout is as good as the longest that is allowed."""
    for timeout_s in ("1e300", "null", "0.9"):
        text = f'{{"code": "1 + 1", "timeout_s": {timeout_s}}}'
        async with client.http.post(f"/api/kernels/{kernel}/execute", data=text) as response:
            assert response.status == 200, await response.text()
            assert (await response.json())["status"] == "ok"


async def test_unknown_kernelspecs(client: Client) -> None:
    """A kernelspec that is not there is 404 by name, whatever the name looks like."""
    for name in ("ruby", "../python3", "python3\0", "python3/", "x" * 128, "\u202e3nohtyp"):
        await expect(client, "POST", "/api/kernels", 404, "unknown_kernelspec", json={"name": name})
    wanted = {"path": "a", "type": "notebook", "kernel": {"name": "ruby"}}
    await expect(client, "POST", "/api/sessions", 404, "unknown_kernelspec", json=wanted)
    gone = {"path": "a", "type": "notebook", "kernel": {"id": RANDOM}}
    await expect(client, "POST", "/api/sessions", 404, "not_found", json=gone)


async def test_a_kernel_id_that_is_taken(client: Client, kernel: str) -> None:
    """Asking for the id of a live kernel is 409, one's own included."""
    await expect(client, "POST", "/api/kernels", 409, "conflict", json={"kernel_id": kernel})


async def test_oversize_bodies(client: Client, kernel: str) -> None:
    """A body over server.max_body_bytes is 413, with a declared length or without one."""
    big = b'{"code": "' + b"x" * (17 << 20) + b'"}'

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(big), 1 << 20):
            yield big[start : start + (1 << 20)]

    path = f"/api/kernels/{kernel}/execute"
    for data in (io.BytesIO(big), pieces()):
        await expect(client, "POST", path, 413, "payload_too_large", data=data)
    assert await client.out(kernel, "print('here')") == "here\n"


async def test_code_with_odd_characters(client: Client, kernel: str) -> None:
    """NULs and other oddities in code are the kernel's to judge: an answer, and the kernel goes on."""
    for code in ("a = '\0'", "\ufeff1", "\u2028", "print('\U0010ffff')", "\x1b[2J", " " * 100_000, ""):
        result = await client.run(kernel, code)
        assert result["status"] in {"ok", "error"}, code[:20]
    assert await client.out(kernel, "print(1)") == "1\n"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/api/kernels"),
        ("DELETE", "/api/kernels"),
        ("PATCH", "/api/kernels/x"),
        ("GET", "/api/kernels/x/interrupt"),
        ("GET", "/api/kernels/x/execute"),
        ("POST", "/api/kernels/x/channels"),
        ("PUT", "/api/sessions/x"),
        ("POST", "/api/kernelspecs"),
        ("DELETE", "/api/status"),
        ("TRACE", "/api"),
    ],
)
async def test_methods_that_a_path_has_not(client: Client, method: str, path: str) -> None:
    """A path's other methods are 405, and Allow names those that there are."""
    response = await expect(client, method, path, 405, "method_not_allowed")

    assert response["Allow"]


async def test_paths_that_are_not_there(client: Client) -> None:
    """Unknown paths are 404 in the same shape, static files of the host's among them."""
    for path in ("/", "/api/", "/api/kernels/", "/api//kernels", "/api/contents", "/static/../../etc/passwd"):
        await expect(client, "GET", path, 404, "not_found")


@pytest.mark.parametrize("weird", WEIRD_IDS, ids=lambda weird: weird[:20])
async def test_weird_ids_in_every_path(client: Client, weird: str) -> None:
    """Any text in a path parameter is an id that does not exist, for every route; nothing is traversed."""
    for route in PLAIN_ROUTES:
        if "{" not in route.path or (route.method == "HEAD"):
            continue
        for path in filled(route.path, weird):
            sent = {"data": b'{"code": "1", "path": "p", "type": "t"}'} if route.changes else {}
            async with client.http.request(route.method, URL(path, encoded=True), **sent) as response:
                text = await response.text()
                assert "root:" not in text
                assert "Set-Cookie" not in response.headers
                if response.url.raw_path in WHOLE_PATHS:
                    # the client itself has resolved it: another request, of the caller's own
                    assert response.status < 500, (route.method, path, response.status, text)
                    continue
                assert response.status in {400, 404, 405}, (route.method, path, response.status, text)
                assert set(json.loads(text)) == SHAPE


async def test_no_websocket_where_one_is_needed(client: Client, kernel: str) -> None:
    """The channels of a kernel answer plain HTTP, and broken handshakes, with 400."""
    path = f"/api/kernels/{kernel}/channels"
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
    for headers in ({}, upgrade, upgrade | {"Sec-WebSocket-Version": "7", "Sec-WebSocket-Key": "x"}):
        await expect(client, "GET", path, 400, "bad_request", headers=headers)


@pytest.mark.parametrize("permissions", ["[", "5", "[]", '{"a":5}', '{"a":[5]}', "%ff", "{" * 2000])
async def test_permissions_that_are_none(client: Client, permissions: str) -> None:
    """`?permissions=` that is no JSON object of lists of names is 400."""
    path = URL(f"/api/me?permissions={permissions}", encoded=True)
    await expect(client, "GET", path, 400, "bad_request")


@pytest.mark.parametrize(
    "authorization",
    [None, "", "token", "token ", "Basic YTpi", "Bearer x", "token cb_000000000000_" + "A" * 43, "token ü"],
)
async def test_credentials_that_are_none(gateway: Gateway, authorization: str | None) -> None:
    """Without a good key nothing is shown but how to have one."""
    line = b"" if authorization is None else f"Authorization: {authorization}\r\n".encode()
    status, _, body = await raw(gateway, b"GET /api/kernels HTTP/1.1\r\n%sHost: localhost\r\n\r\n" % line)

    assert (status, body["code"]) == (401, "unauthorized")
    assert set(body) == SHAPE


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GARBAGE\r\n\r\n",
        b"GET\r\n\r\n",
        b"BREW /api/kernels HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /api HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /api HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /api?" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /api HTTP/1.1\r\nHost: localhost\r\nBad\x00Name: a\r\n\r\n",
        b"GET /api HTTP/1.1\r\nHost: localhost\r\nA: b\x00c\r\n\r\n",
        b"POST /api/kernels HTTP/1.1\r\nHost: localhost\r\nContent-Length: many\r\n\r\n",
        b"POST /api/kernels HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /api HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n",
    ],
    ids=lambda data: repr(data[:24]),
)
async def test_what_is_no_http(gateway: Gateway, request_bytes: bytes) -> None:
    """What is no HTTP is 400, a head too large 431, in the shape of all errors; the server goes on."""
    status, headers, body = await raw(gateway, request_bytes)

    too_large = len(request_bytes) > 32 << 10
    assert status == (431 if too_large else 400)
    assert headers["content-type"].startswith("application/json")
    assert set(body) == SHAPE
    assert body["code"] == ("headers_too_large" if too_large else "bad_request")
    status, _, _ = await raw(gateway, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert status == 200


async def test_a_broken_chunked_body(gateway: Gateway) -> None:
    """A chunk whose size is no number is 400."""
    head = (
        f"POST /api/kernels HTTP/1.1\r\nHost: localhost\r\nAuthorization: token {gateway.key()}\r\n".encode()
    )
    status, _, body = await raw(gateway, head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n")

    assert (status, body["code"]) == (400, "bad_request")


async def test_a_client_that_leaves_in_the_middle(gateway: Gateway, client: Client) -> None:
    """A body that stops half-way, and a caller who hangs up, cost nobody anything."""
    before = len(await client.json("GET", "/api/kernels"))
    host, port = gateway.url.removeprefix("http://").split(":")
    for rest in (b"", b'{"name": "pyth', b"Content-Len"):
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /api/kernels HTTP/1.1\r\nHost: {host}\r\nAuthorization: token {gateway.key()}\r\n"
        writer.write(head.encode() + b"Content-Length: 4000\r\n\r\n" + rest)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    assert len(await client.json("GET", "/api/kernels")) == before


async def test_a_foreign_host_header(gateway: Gateway) -> None:
    """A gateway on loopback answers no other Host: names that are rebound to it get nothing."""
    for host in (b"evil.example", b"localhost.evil.example", b"127.0.0.1.evil.example:80", b"", b"[::2]"):
        status, _, body = await raw(gateway, b"GET /api HTTP/1.1\r\nHost: %s\r\n\r\n" % host)
        assert (status, body["code"]) in {(403, "forbidden"), (400, "bad_request")}, host


def filled(path: str, weird: str) -> list[str]:
    """Fill a weird text into a path: for all parameters, and for a file of a good kernelspec."""
    first = re.sub(r"\{\w+\}", lambda _: weird, path.replace("{file}", "logo-64x64.png"))
    if "{file}" not in path:
        return [first]
    return [first, path.replace("{name}", "python3").replace("{file}", weird)]


async def expect(
    client: Client, method: str, path: str | URL, status: int, code: str, **sent: Any
) -> dict[str, str]:
    """Make a request that must be refused so, in the one shape of errors; return the answer's headers."""
    url = path if isinstance(path, URL) else URL(path, encoded=True)
    async with client.http.request(method, url, **sent) as response:
        text = await response.text()
        assert response.status == status, (response.status, text)
        body = json.loads(text)
        assert set(body) == SHAPE
        assert body["code"] == code
        assert body["message"]
        assert response.content_type == "application/json"
        return dict(response.headers)


async def raw(gateway: Gateway, request: bytes) -> tuple[int, dict[str, str], Any]:
    """Write bytes to the gateway's port; return the status, headers and JSON of what comes back."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            headers = {
                k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)
            }
            body = await reader.readexactly(int(headers.get("content-length", 0)))
    finally:
        writer.close()
    text = body.decode()
    parsed = json.loads(text) if headers.get("content-type", "").startswith("application/json") else text
    return int(lines[0].split()[1]), headers, parsed
