"""E2B's routes without its SDKs: who may use them, what bad input gets, and what each leaves on record."""

from __future__ import annotations

import gzip
import io
import json
import struct
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import aiohttp
import pytest

from gateway.http.e2b.failures import as_api, as_stream, as_text, as_unary
from gateway.http.e2b.routes import CONTROL, E2B_ROUTES
from gateway.http.route import Route
from tests.conftest import ROOM
from tests.gateway import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.gateway import Client, Gateway

NOWHERE = "0" * 20
DATA = [route for route in E2B_ROUTES if route not in CONTROL]
NAMED = [route for route in CONTROL if "{sandbox_id}" in route.path]
# What each route that changes something is sent, when it is used well, and the record that it leaves.
TOLD: dict[str, tuple[str, Any]] = {
    "POST /sandboxes/{sandbox_id}/timeout": ("sandbox.change", {"timeout": 600}),
    "POST /sandboxes/{sandbox_id}/refreshes": ("sandbox.connect", {"duration": 600}),
    "POST /sandboxes/{sandbox_id}/connect": ("sandbox.connect", {"timeout": 600}),
    "POST /v2/sandboxes/{sandbox_id}/connect": ("sandbox.connect", {"timeout": 600}),
    "POST /sandboxes/{sandbox_id}/pause": ("sandbox.pause", {}),
    "POST /sandboxes/{sandbox_id}/resume": ("sandbox.resume", {}),
    "POST /execute": ("execution.end", {"code": "1"}),
    "POST /contexts": ("kernel.create", {}),
    "POST /contexts/{context_id}/restart": ("kernel.restart", {}),
    "DELETE /contexts/{context_id}": ("kernel.delete", {}),
    "POST /files": ("file.write", b"content"),
    "GET /files": ("file.read", None),
    "POST /filesystem.Filesystem/Stat": ("file.list", {"path": "file"}),
    "POST /filesystem.Filesystem/ListDir": ("file.list", {"path": "/home/user"}),
    "POST /filesystem.Filesystem/MakeDir": ("file.write", {"path": "made"}),
    "POST /filesystem.Filesystem/Move": ("file.write", {"source": "made", "destination": "moved"}),
    "POST /filesystem.Filesystem/Remove": ("file.delete", {"path": "moved"}),
    "POST /process.Process/Start": ("process.start", {"process": {"cmd": "/bin/cat"}, "stdin": True}),
    "POST /process.Process/SendInput": ("process.input", {"input": {"stdin": "eA=="}}),
    "POST /process.Process/StreamInput": ("process.input", None),
    "POST /process.Process/CloseStdin": ("process.input", {}),
    "POST /process.Process/SendSignal": ("process.signal", {"signal": "SIGNAL_SIGKILL"}),
}
# These are tried by the test of a whole life, and these only show what has no record, or follow it.
ELSEWHERE = {"POST /sandboxes", "POST /v2/sandboxes", "DELETE /sandboxes/{sandbox_id}"}
UNRECORDED = {"POST /process.Process/List", "POST /process.Process/Connect"}


def name(route: Route) -> str:
    """Name a route."""
    return f"{route.method} {route.path}"


def offered(route: Route) -> bool:
    """Tell whether a route does more than to say that it does nothing."""
    return "not offered" not in route.summary


@pytest.fixture(scope="module")
def own() -> Iterator[Gateway]:
    """A gateway of these tests' own, whose audit trail they read."""
    with running("--no-keep", env={**ROOM, "CELLBLOCK_QUOTAS__STORAGE_BYTES": "unlimited"}) as gateway:
        yield gateway


@pytest.fixture(scope="module")
async def alice(own: Gateway) -> AsyncIterator[Client]:
    """The owner."""
    async with own.client() as client:
        yield client


@pytest.fixture(scope="module")
async def sandbox(alice: Client) -> AsyncIterator[dict[str, str]]:
    """A sandbox of hers."""
    made = await alice.json("POST", "/v2/sandboxes", {"templateID": "base"}, status=201)
    yield made
    await alice.json("DELETE", f"/sandboxes/{made['sandboxID']}", status=204)


def trail(own: Gateway, request_id: str) -> list[dict[str, Any]]:
    """Return the records of a request."""
    files = sorted((own.state_dir / "gateway" / "audit").glob("*.jsonl"))
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [record for record in records if record.get("request_id") == request_id]


def framed(*messages: Any) -> bytes:
    """Return messages as Connect frames them."""
    return b"".join(struct.pack(">BI", 0, len(data)) + data for data in map(encoded, messages))


def encoded(message: Any) -> bytes:
    """Return a message as JSON, or what is given as bytes."""
    return message if isinstance(message, bytes) else json.dumps(message).encode()


async def ask(
    own: Gateway,
    route: Route,
    path: str,
    body: Any = None,
    *,
    sandbox_id: str | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, str]:
    """Use a route as whom the headers say, and return status and body."""
    given = {"E2b-Sandbox-Id": sandbox_id} if sandbox_id else {}
    messages = body if isinstance(body, list) else [body]
    data = None if body is None else framed(*messages) if route.errors is as_stream else encoded(body)
    async with (
        aiohttp.ClientSession(own.url, headers={**given, **(headers or {})}) as session,
        session.request(route.method, path, data=data) as response,
    ):
        return response.status, (await response.read()).decode(errors="replace")


def refused(route: Route, status: int, text: str) -> tuple[int, str]:
    """Return the status that a refusal stands for, and its sentence, in whichever form it comes."""
    if route.errors is as_text:
        return status, text
    if route.errors is as_api:
        body = json.loads(text)
        assert body["code"] == status
        return status, body["message"]
    body = json.loads(text[5:])["error"] if route.errors is as_stream else json.loads(text)
    assert route.errors in {as_stream, as_unary}
    return {"unauthenticated": 401, "unavailable": 502, "permission_denied": 403}[body["code"]], body[
        "message"
    ]


def filled(route: Route, sandbox_id: str) -> str:
    """Return a route's path, with a context that nobody has."""
    return route.path.format(sandbox_id=sandbox_id, context_id=uuid4(), template_id="x", alias="x")


@pytest.mark.parametrize("route", E2B_ROUTES, ids=name)
async def test_nobody(own: Gateway, sandbox: dict[str, str], route: Route) -> None:
    """Without a credential, and with wrong ones, each route is 401 in its own form, whatever it names."""
    there = sandbox["sandboxID"]
    wrong = "cbs_" + "0" * 64
    for headers in (
        {},
        {"X-API-KEY": "e2b_" + "0" * 40},
        {"X-Access-Token": wrong},
        {"E2B-Traffic-Access-Token": wrong},
        {"Cookie": f"cellblock_token={own.key()}"},
    ):
        seen = set()
        for sandbox_id in (there, NOWHERE, "../x"):
            path = filled(route, sandbox_id if "/" not in sandbox_id else NOWHERE)
            status, text = await ask(own, route, path, sandbox_id=sandbox_id, headers=headers)
            assert refused(route, status, text)[0] == 401, text
            seen.add(text)
        assert len(seen) == 1


@pytest.mark.parametrize("route", [*NAMED, *DATA], ids=name)
async def test_somebody_elses_is_what_does_not_exist(
    own: Gateway, sandbox: dict[str, str], route: Route
) -> None:
    """Bob's key gets word for word the same for alice's sandbox as for none; her token opens no other."""
    there, bob = sandbox["sandboxID"], {"X-API-KEY": own.key("bob")}
    theirs = await ask(own, route, filled(route, there), {}, sandbox_id=there, headers=bob)
    nothing = await ask(own, route, filled(route, NOWHERE), {}, sandbox_id=NOWHERE, headers=bob)

    assert (theirs[0], theirs[1].replace(there, NOWHERE)) == nothing
    if route in DATA:
        assert refused(route, *theirs)[0] == 502
        # a token is for one sandbox: with another's name it is no token
        token = {"X-Access-Token": sandbox["envdAccessToken"]}
        status, text = await ask(own, route, filled(route, NOWHERE), {}, sandbox_id=NOWHERE, headers=token)
        assert refused(route, status, text)[0] == 401
    else:
        assert refused(route, *theirs)[0] == 404


@pytest.mark.parametrize("scopes", ["kernels", "kernels,execute", "execute,files"])
async def test_scopes(own: Gateway, sandbox: dict[str, str], scopes: str) -> None:
    """A key with less than a token grants gets no token, neither by a new sandbox nor by an old one."""
    async with own.client("alice", scopes) as narrow:
        for path in ("/v2/sandboxes", f"/v2/sandboxes/{sandbox['sandboxID']}/connect"):
            body = {"templateID": "base"}
            answer = await narrow.json("POST", path, body, status=403)
            assert answer["reason"] == "missing_scope"
        in_it = {"E2b-Sandbox-Id": sandbox["sandboxID"]}
        async with narrow.http.post("/execute", json={"code": "1"}, headers=in_it) as response:
            assert response.status == (200 if "execute" in scopes else 403)
        async with narrow.http.get("/files?path=x", headers=in_it) as response:
            assert response.status == (404 if "files" in scopes else 403)


async def test_everything_is_recorded(own: Gateway, alice: Client) -> None:
    """Each route that changes or shows something leaves a record by this door: who, by which key, what."""
    made = await alice.json("POST", "/v2/sandboxes", {"templateID": "base"}, status=201)
    there, token = made["sandboxID"], {"X-Access-Token": made["envdAccessToken"]}
    known = {
        name(route) for route in E2B_ROUTES if offered(route) and (route.changes or route.path == "/files")
    }
    assert known == {*TOLD, *ELSEWHERE, *UNRECORDED}

    async with alice.http.post("/contexts", json={}, headers={"E2b-Sandbox-Id": there}) as response:
        context = (await response.json())["id"]
    pid: int | None = None
    for label, (action, given) in TOLD.items():
        body = given
        route = next(route for route in E2B_ROUTES if name(route) == label)
        request_id = f"told-{uuid4().hex}"
        headers = {"X-Request-Id": request_id, **(token if route in DATA else {"X-API-KEY": own.key()})}
        path = route.path.format(sandbox_id=there, context_id=context)
        if route.path == "/files":
            path += "?path=file"
        if label == "POST /process.Process/Start":
            headers["Connect-Timeout-Ms"] = "1500"
        if label.startswith("POST /process.Process/") and body is not None and pid:
            body = {**body, "process": {"pid": pid}}
        if label == "POST /process.Process/StreamInput":
            start, data = {"start": {"process": {"pid": pid}}}, {"data": {"input": {"stdin": "eA=="}}}
            body = [start, data]
        status, text = await ask(own, route, path, body, sandbox_id=there, headers=headers)
        assert status < 300, (label, text)
        if label == "POST /process.Process/Start":
            # that one is over; another goes on for those that follow
            own_start = {"process": {"cmd": "/bin/sleep", "args": ["60"]}}
            pid = await begun(own, there, token, own_start)
        records = trail(own, request_id)
        [record] = [record for record in records if record["action"] == action][:1] or [None]
        assert record is not None, (label, records)
        assert (record["outcome"], record["who"], record["door"]) == ("ok", "alice", "e2b"), label
        assert record["key_id"] == own.key().split("_")[1]
    await alice.json("DELETE", f"/sandboxes/{there}", status=204)
    files = (own.state_dir / "gateway" / "audit").glob("*.jsonl")
    lines = [line for file in files for line in file.read_text().splitlines()]
    ended = [json.loads(line) for line in lines if "sandbox.delete" in line and there in line]
    assert [(record["outcome"], record["target"]) for record in ended] == [("ok", there)]


async def begun(own: Gateway, sandbox_id: str, token: dict[str, str], start: Any) -> int:
    """Start a process that goes on, and return its pid."""
    headers = {"E2b-Sandbox-Id": sandbox_id, **token}
    async with (
        aiohttp.ClientSession(own.url, headers=headers) as session,
        session.post("/process.Process/Start", data=framed(start)) as response,
    ):
        flags, length = struct.unpack(">BI", await response.content.readexactly(5))
        assert flags == 0
        event = json.loads(await response.content.readexactly(length))
        return int(event["event"]["start"]["pid"])


@pytest.mark.parametrize(
    ("label", "body"),
    [
        ("POST /v2/sandboxes", b"{"),
        ("POST /v2/sandboxes", {}),
        ("POST /v2/sandboxes", {"templateID": 5}),
        ("POST /v2/sandboxes", {"templateID": "base", "timeout": -1}),
        ("POST /v2/sandboxes", {"templateID": "base", "timeout": 1e9}),
        ("POST /v2/sandboxes", {"templateID": "base", "metadata": {"a": 1}}),
        ("POST /v2/sandboxes", {"templateID": "base", "envVars": {"a-b": "x"}}),
        ("POST /v2/sandboxes", {"templateID": "base", "envVars": {"A": "x\0"}}),
        ("POST /v2/sandboxes", {"templateID": "base", "envVars": {f"A{n}": "" for n in range(65)}}),
        ("POST /v2/sandboxes", {"templateID": "base", "autoPause": True}),
        ("POST /sandboxes/{sandbox_id}/timeout", {"timeout": "soon"}),
        ("POST /execute", {}),
        ("POST /execute", {"code": "1", "context_id": "x", "language": "python"}),
        ("POST /execute", {"code": "1", "env_vars": {"A;B": "x"}}),
        ("POST /execute", {"code": "1", "env_vars": {"A": "x"}, "language": "cobol"}),
        ("POST /execute", b'{"code": "\\ud800"}'),
        ("POST /contexts", {"cwd": "a\0b"}),
        ("POST /contexts", {"cwd": "/nowhere/at/all"}),
        ("POST /filesystem.Filesystem/Stat", {"path": "/etc"}),
        ("POST /filesystem.Filesystem/Stat", {"path": "a\0b"}),
        ("POST /filesystem.Filesystem/ListDir", {"path": "..", "depth": 1}),
        ("POST /filesystem.Filesystem/MakeDir", {"path": ""}),
        ("POST /process.Process/Start", {"process": {"cmd": ""}}),
        ("POST /process.Process/Start", {"process": {"cmd": "/bin/true", "envs": {"=": ""}}}),
        ("POST /process.Process/Start", b"no json"),
        ("POST /process.Process/Connect", {"process": {}}),
        ("POST /process.Process/SendInput", {"process": {"pid": 1}, "input": {"stdin": "*"}}),
        ("POST /process.Process/SendSignal", {"process": {"pid": 1}, "signal": "SIGNAL_SIGSTOP"}),
    ],
    ids=str,
)
async def test_bad_input(own: Gateway, sandbox: dict[str, str], label: str, body: Any) -> None:
    """What is malformed or not allowed is refused in the route's form with a sentence, and starts nothing."""
    route = next(route for route in E2B_ROUTES if name(route) == label)
    there, key = sandbox["sandboxID"], {"X-API-KEY": own.key()}
    status, text = await ask(own, route, filled(route, there), body, sandbox_id=there, headers=key)
    if route.errors is as_stream:
        assert (status, json.loads(text[5:])["error"]["code"]) == (200, "invalid_argument")
    else:
        assert status == 400, text
        assert "Traceback" not in text
    async with own.client() as alice:
        assert len(await alice.json("GET", "/sandboxes")) == 1


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (struct.pack(">BI", 0, 1 << 31) + b"{}", "resource_exhausted"),
        (struct.pack(">BI", 1, 2) + b"{}", "invalid_argument"),
        (struct.pack(">BI", 0, 100) + b"{}", "invalid_argument"),
        (b"\0\0", "invalid_argument"),
        (b"", "invalid_argument"),
    ],
    ids=["too large", "compressed", "cut", "no head", "nothing"],
)
async def test_bad_frames(own: Gateway, sandbox: dict[str, str], head: bytes, code: str) -> None:
    """Frames that are too large, compressed or cut off end the call with an error."""
    headers = {"X-API-KEY": own.key(), "E2b-Sandbox-Id": sandbox["sandboxID"]}
    async with (
        aiohttp.ClientSession(own.url, headers=headers) as session,
        session.post("/process.Process/Start", data=head) as response,
    ):
        assert json.loads((await response.read())[5:])["error"]["code"] == code


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "limit=1000", "nextToken=%00", "nextToken=abc", "startedAfter=soon"]
)
async def test_bad_queries(alice: Client, query: str) -> None:
    """Pages and filters that make no sense are 400."""
    assert (await alice.json("GET", f"/v2/sandboxes?{query}", status=400))["code"] == 400


async def test_uploads(own: Gateway, sandbox: dict[str, str]) -> None:
    """Forms and bodies that are no uploads are 400; a small body that unpacks to too much is 413."""
    packed = {"Content-Encoding": "gzip", "Content-Type": "application/octet-stream"}
    headers = {"X-API-KEY": own.key(), "E2b-Sandbox-Id": sandbox["sandboxID"]}
    async with aiohttp.ClientSession(own.url, headers=headers) as session:
        for sent in (
            {"data": b"x"},
            {"data": b"x", "params": {"path": "/etc/x"}},
            {"data": b"x", "params": {"path": "x"}, "headers": {"Content-Encoding": "br"}},
            {"data": b"no gzip", "params": {"path": "x"}, "headers": packed},
            {"data": gzip.compress(b"x" * 999)[:-9], "params": {"path": "x"}, "headers": packed},
            {"data": b"--b--", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
            {"data": b"x", "headers": {"Content-Type": "multipart/form-data"}},
            {"data": form("other", "a")},
            {"data": form("file", "../../x")},
        ):
            async with session.post("/files", skip_auto_headers=("Content-Type",), **sent) as response:
                assert response.status == 400, (sent, await response.text())
        bomb = gzip.compress(bytes(300 << 20), 1)
        async with session.post("/files?path=bomb", data=io.BytesIO(bomb), headers=packed) as response:
            assert response.status in {413, 507}, await response.text()
        async with session.get("/files?path=bomb") as response:
            assert response.status == 404


def form(field: str, filename: str) -> aiohttp.FormData:
    """Return a form with one file."""
    made = aiohttp.FormData(quote_fields=False)
    made.add_field(field, b"x", filename=filename)
    return made


def test_nothing_crashed(own: Gateway) -> None:
    """Nothing of all this made the gateway fail in a way that it did not foresee."""
    assert not [line for line in own.log() if line["event"] == "request_crashed"]
    assert "Traceback" not in own.log_path.read_text()
