"""What is another's does not exist: on every route and the WebSocket, for every kind of key."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import aiohttp
import pytest

from gateway.http.access import Rule
from gateway.http.channels import CHANNELS
from gateway.http.route import Route
from gateway.http.routes import PLAIN_ROUTES
from tests.gateway import Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.gateway import Gateway

OWNED = [route for route in PLAIN_ROUTES if route.access.rule is Rule.OWNER]
NO_ID = "00000000-0000-4000-8000-000000000000"
BODIES = {"execute": {"code": "1"}, "session_id}": {"path": "taken.ipynb"}}


@dataclass(frozen=True)
class Estate:
    """What alice has."""

    kernel: str
    session: str
    session_kernel: str
    execution: str

    def path(self, route: Route) -> str:
        """Return a route's path to what alice has."""
        return filled(route, kernel_id=self.kernel, session_id=self.session, execution_id=self.execution)

    def named(self, route: Route) -> str:
        """Return the id of alice's that a route's path has."""
        if "{kernel_id}" in route.path:
            return self.kernel
        return self.session if "{session_id}" in route.path else self.execution


@pytest.fixture(scope="module")
async def estate(gateway: Gateway) -> AsyncIterator[Estate]:
    """A kernel and a session of alice's."""
    async with gateway.client() as alice:
        kernel = await alice.start()
        wanted = {"path": f"{uuid4()}.ipynb", "type": "notebook", "kernel": {"name": "python3"}}
        session = await alice.json("POST", "/api/sessions", wanted, status=201)
        wanted = {"code": "1", "kernel_id": kernel}
        execution = await alice.json("POST", "/api/executions", wanted)
        yield Estate(kernel, session["id"], session["kernel"]["id"], execution["id"])
        await alice.json("DELETE", f"/api/sessions/{session['id']}", status=204)
        await alice.delete(kernel)


@pytest.fixture
async def bob(gateway: Gateway) -> AsyncIterator[Client]:
    """Somebody else's client."""
    async with gateway.client("bob") as bob:
        yield bob


def test_the_table_has_what_is_tried_here() -> None:
    """All routes on kernels and sessions are owned, so that none of them is missed below."""
    paths = {route.path for route in PLAIN_ROUTES if "_id}" in route.path}

    assert paths == {route.path for route in OWNED}
    assert len(OWNED) >= 9


@pytest.mark.parametrize("route", OWNED, ids=lambda route: f"{route.method} {route.path}")
async def test_anothers_is_like_what_does_not_exist(
    client: Client, bob: Client, estate: Estate, route: Route
) -> None:
    """Status, body and headers differ in nothing but the id that was asked for; and nothing happens."""
    before = await client.kernel(estate.kernel)
    theirs = await answered(bob, route, estate.path(route))
    mine = estate.named(route)
    nowhere = str(uuid4()) if "-" in mine else uuid4().hex
    nothing = await answered(
        bob, route, filled(route, kernel_id=nowhere, session_id=nowhere, execution_id=nowhere)
    )

    assert theirs[0] == nothing[0] == 404
    assert theirs[1].replace(mine, "ID") == nothing[1].replace(nowhere, "ID")
    assert route.method == "HEAD" or set(json.loads(theirs[1])) == {"message", "reason", "code"}
    assert theirs[2] == nothing[2]
    after = await client.kernel(estate.kernel)
    assert {key: after[key] for key in after if key != "last_activity"} == {
        key: before[key] for key in before if key != "last_activity"
    }


async def test_methods_on_anothers_tell_nothing_either(bob: Client, estate: Estate) -> None:
    """A method that a path has not is refused before anybody looks whose it is."""
    for method in ("PUT", "HEAD", "POST", "PATCH"):
        answers = []
        for kernel in (estate.kernel, str(uuid4())):
            async with bob.http.request(method, f"/api/kernels/{kernel}") as response:
                answers.append((response.status, response.headers.get("Allow")))
        assert answers[0] == answers[1]
        assert answers[0][0] in {404, 405}


async def test_lists_show_ones_own(client: Client, bob: Client, estate: Estate) -> None:
    """Kernels, sessions and the status count what is the caller's, and nothing else."""
    assert await bob.json("GET", "/api/kernels") == []
    assert await bob.json("GET", "/api/sessions") == []
    status = await bob.json("GET", "/api/status")
    assert (status["kernels"], status["connections"]) == (0, 0)

    seen = {model["id"] for model in await client.json("GET", "/api/kernels")}
    assert {estate.kernel, estate.session_kernel} <= seen


async def test_bob_cannot_bind_a_session_to_alices_kernel(bob: Client, estate: Estate) -> None:
    """A session on another's kernel is 404 like one on a kernel that is not there, and no session is made."""
    wanted = {"path": "theft.ipynb", "type": "notebook", "kernel": {"id": estate.kernel}}
    theirs = await bob.json("POST", "/api/sessions", wanted, status=404)
    nowhere = str(uuid4())
    nothing = await bob.json("POST", "/api/sessions", wanted | {"kernel": {"id": nowhere}}, status=404)

    assert str(theirs).replace(estate.kernel, "ID") == str(nothing).replace(nowhere, "ID")
    assert await bob.json("GET", "/api/sessions") == []


async def test_bob_cannot_take_alices_path_or_id(bob: Client, client: Client, estate: Estate) -> None:
    """The same path is another session for another owner; an id in use can be had by nobody."""
    path = (await client.json("GET", f"/api/sessions/{estate.session}"))["path"]
    mine = await bob.json("POST", "/api/sessions", {"path": path, "type": "notebook"}, status=201)

    assert mine["id"] != estate.session
    assert mine["kernel"]["id"] != estate.session_kernel
    await bob.json("DELETE", f"/api/sessions/{mine['id']}", status=204)
    await bob.json("POST", "/api/kernels", {"kernel_id": estate.kernel}, status=409)


async def test_an_admin_sees_all(gateway: Gateway, estate: Estate) -> None:
    """The admin scope shows everybody's, executes in it, and reads the metrics; a plain key does not."""
    async with gateway.client("root", "admin") as admin, gateway.client("bob") as bob:
        seen = {model["id"]: model["owner"] for model in await admin.json("GET", "/api/kernels")}
        assert seen[estate.kernel] == "alice"
        assert (await admin.json("GET", f"/api/sessions/{estate.session}"))["id"] == estate.session
        assert await admin.out(estate.kernel, "print('seen')") == "seen\n"
        async with admin.channels(estate.kernel) as channels:
            await channels.until_done(await channels.execute("1"))
        assert (await admin.http.get("/metrics")).status == 200
        await bob.json("GET", "/metrics", status=403)


async def test_a_key_without_the_execute_scope(gateway: Gateway, client: Client, estate: Estate) -> None:
    """A key for kernels alone sees and manages them, and runs nothing: 403, which names the scope."""
    async with gateway.client("alice", "kernels") as looker:
        assert (await looker.kernel(estate.kernel))["id"] == estate.kernel
        await looker.json("POST", f"/api/kernels/{estate.kernel}/interrupt", status=204)

        refused = await looker.json(
            "POST", f"/api/kernels/{estate.kernel}/execute", {"code": "open('x', 'w')"}, status=403
        )
        assert (refused["code"], refused["reason"]) == ("forbidden", "missing_scope")
        assert "execute" in refused["message"]
        assert await upgraded(looker, estate.kernel) == 403
        # without the scope one does not even learn whether a kernel is there
        await looker.json("POST", f"/api/kernels/{uuid4()}/execute", {"code": "1"}, status=403)


async def test_a_key_for_execution_alone(gateway: Gateway, estate: Estate) -> None:
    """A key of alice's for executions runs code in her kernels, and neither lists, starts nor ends any."""
    async with gateway.client("alice", "execute") as runner:
        assert await runner.out(estate.kernel, "print('ran')") == "ran\n"
        await runner.json("GET", "/api/kernels", status=403)
        await runner.json("POST", "/api/kernels", status=403)
        await runner.json("DELETE", f"/api/kernels/{estate.kernel}", status=403)
        await runner.json("GET", "/api/sessions", status=403)
        await runner.json("DELETE", f"/api/sessions/{estate.session}", status=403)


@pytest.mark.parametrize("end", ["revoke", "expire"])
async def test_keys_that_have_ended(gateway: Gateway, estate: Estate, end: str) -> None:
    """An expired or revoked key is 401 everywhere, like one that never was; its open socket is closed."""
    expires = ("--expires", "4s") if end == "expire" else ()
    token = await command(gateway, "create", f"late-{end}", "--scopes", "admin", *expires)
    async with authorized(gateway, token) as late, contextlib.AsyncExitStack() as stack:
        await late.kernel(estate.kernel)
        channels = await stack.enter_async_context(late.channels(estate.kernel))
        if end == "revoke":
            await command(gateway, "revoke", f"late-{end}")

        assert await channels.closing(timeout=8) == 1008

        for route in PLAIN_ROUTES:
            if route.access.rule is not Rule.PUBLIC:
                status, body, _ = await answered(late, route, estate.path(route))
                assert (status, json.loads(body or '{"code": "unauthorized"}')["code"]) == (
                    401,
                    "unauthorized",
                )
        assert await upgraded(late, estate.kernel) == 401


async def test_the_forms_in_which_a_key_is_shown(gateway: Gateway, estate: Estate) -> None:
    """Header with token or Bearer in any case, query and cookie are the same key; the query is not logged."""
    key = gateway.key()
    forms: list[dict[str, Any]] = [
        {"headers": {"Authorization": f"token {key}"}},
        {"headers": {"Authorization": f"bearer {key}"}},
        {"headers": {"Authorization": f"Bearer {key}"}},
        {"headers": {"authorization": f"TOKEN {key}"}},
        {"params": {"token": key}},
        {"params": {"token": key}, "headers": {"Authorization": "token "}},
        {"cookies": {"cellblock_token": key}},
    ]
    for form in forms:
        cookies = form.pop("cookies", None)
        async with (
            aiohttp.ClientSession(gateway.url, cookies=cookies) as session,
            session.get(f"/api/kernels/{estate.kernel}", **form) as response,
        ):
            assert response.status == 200, form
    assert key.rpartition("_")[2] not in gateway.log_path.read_text()


async def test_me(gateway: Gateway, bob: Client) -> None:
    """Everybody learns who they are, and what of the asked they may do."""
    asked = '{"kernels": ["read", "execute"]}'
    me = await bob.json("GET", f"/api/me?permissions={asked}")

    assert me["identity"]["username"] == "bob"
    assert me["permissions"]["kernels"] == ["read", "execute"]


def filled(route: Route, **values: str) -> str:
    """Return a route's path with these values in it, and in its other parameters what may well be there."""
    known = {"name": "python3", "file": "logo-64x64.png", **values}
    return re.sub(r"\{(\w+)\}", lambda found: known.get(found[1], NO_ID), route.path)


async def answered(client: Client, route: Route, path: str) -> tuple[int, str, dict[str, str]]:
    """Ask a route for something; return status, body, and the headers that do not differ by request."""
    body = next((body for end, body in BODIES.items() if route.path.endswith(end)), None)
    headers = {}
    if route is CHANNELS:
        headers = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
    async with client.http.request(
        route.method, path, json=body if route.changes else None, headers=headers
    ) as response:
        kept = {k: v for k, v in response.headers.items() if k.title() not in {"Date", "X-Request-Id"}}
        return response.status, await response.text(), kept


async def upgraded(client: Client, kernel_id: str) -> int:
    """Try to open a WebSocket; return the status of the handshake."""
    try:
        async with client.channels(kernel_id):
            return 101
    except aiohttp.WSServerHandshakeError as refused:
        return refused.status


@contextlib.asynccontextmanager
async def authorized(gateway: Gateway, token: str) -> AsyncIterator[Client]:
    """Give a client of a key that the harness does not keep."""
    headers = {"Authorization": f"token {token}"}
    async with aiohttp.ClientSession(gateway.url, headers=headers) as session:
        yield Client(session)


async def command(gateway: Gateway, *arguments: str) -> str:
    """Run `cellblock keys` on the gateway's state directory and return what it prints."""
    line = gateway.command("keys", *arguments, "--state-dir", str(gateway.state_dir))
    done = await asyncio.to_thread(subprocess.run, line, capture_output=True, text=True, check=True, cwd="/")
    return done.stdout.strip()
