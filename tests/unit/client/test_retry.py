"""When the client asks again, how often, and what it never repeats."""

from __future__ import annotations

import asyncio
import socket
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from gateway.client import Client, GatewayUnreachable, NoAnswer
from gateway.client.retry import Retry
from gateway.errors import (
    BadRequest,
    Conflict,
    GatewayError,
    LimitReached,
    NotFound,
    PreconditionFailed,
    SandboxUnavailable,
    ShuttingDown,
)
from tests.unit.client.conftest import DROP, TOKEN, refusal

if TYPE_CHECKING:
    from aiohttp import web

    from tests.unit.client.conftest import Scripted

KERNEL = "/api/kernels/k"
LIMITS = {"max_timeout_s": 10.0}
MODEL = {
    "id": "k",
    "name": "python3",
    "last_activity": "",
    "execution_state": "idle",
    "connections": 0,
    "owner": "alice",
    "profile": "default",
    "started_at": "",
    "executions": 0,
    "limits": LIMITS,
}
JOB = {"id": "e1", "status": "ok", "created_at": "", "cursor": 0}
FILE = {
    "path": "a",
    "href": "a",
    "type": "file",
    "size": 1,
    "executable": False,
    "modified_at": "",
    "etag": '"1"',
}
BUSY = refusal(503, "shutting_down")


@pytest.mark.parametrize(
    ("status", "code"), [(429, "limit_reached"), (502, "x"), (503, "sandbox_unavailable")]
)
async def test_what_passes_is_asked_again(scripted: Scripted, client: Client, status: int, code: str) -> None:
    """A status that says "for now" is asked again, and the answer that comes in the end is the answer."""
    scripted.on("GET", KERNEL, refusal(status, code), refusal(status, code), MODEL)

    assert (await client.kernels.get("k")).id == "k"
    assert len(scripted.asked) == 3


async def test_a_broken_connection_is_opened_again(scripted: Scripted, client: Client) -> None:
    """A connection that breaks before the answer is opened again for a request that may be repeated."""
    scripted.on("GET", KERNEL, DROP, MODEL)

    assert (await client.kernels.get("k")).id == "k"


@pytest.mark.parametrize("status", [400, 404, 409, 500, 504])
async def test_other_answers_stand(scripted: Scripted, client: Client, status: int) -> None:
    """An answer that would be the same again is not asked for again."""
    scripted.on("GET", KERNEL, refusal(status, "x"))

    with pytest.raises(GatewayError):
        await client.kernels.get("k")
    assert len(scripted.asked) == 1


async def test_the_bound(scripted: Scripted, client: Client) -> None:
    """After four repeats the last refusal is raised, as the class of its code."""
    scripted.on("GET", KERNEL, BUSY)

    with pytest.raises(ShuttingDown):
        await client.kernels.get("k")
    assert len(scripted.asked) == 5


async def test_off(scripted: Scripted) -> None:
    """With retries=0 nothing is asked twice."""
    scripted.on("GET", KERNEL, BUSY)
    async with Client(scripted.url, TOKEN, retries=0) as client:
        with pytest.raises(ShuttingDown):
            await client.kernels.get("k")

    assert len(scripted.asked) == 1


async def test_nobody_listens() -> None:
    """A refused connection is tried so often, and then says in one sentence what it was."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        client = Client(url, TOKEN)
        client._transport.retry = Retry(retries=2, first_s=0.01)
        async with client:
            with pytest.raises(GatewayUnreachable, match="connection refused"):
                await client.kernels.list()


async def test_retry_after_is_kept(scripted: Scripted, client: Client) -> None:
    """The gateway's Retry-After is waited for, however short the own wait would be."""
    scripted.on("GET", KERNEL, refusal(429, "limit_reached", Retry_After="1"), MODEL)
    begun = time.monotonic()
    await client.kernels.get("k")

    assert time.monotonic() - begun >= 1.0


async def test_the_budget(scripted: Scripted) -> None:
    """A wait that does not fit into the budget is not begun: the refusal comes at once, as it was."""
    scripted.on("GET", KERNEL, refusal(429, "limit_reached", Retry_After="30"))
    begun = time.monotonic()
    async with Client(scripted.url, TOKEN, retry_budget_s=5) as client:
        with pytest.raises(LimitReached) as caught:
            await client.kernels.get("k")

    assert caught.value.retry_after_s == 30
    assert time.monotonic() - begun < 2


def test_the_waits_grow_and_are_spread() -> None:
    """Waits are drawn below a bound that doubles up to the longest; two clients do not wait alike."""
    retry, error = Retry(retries=99, first_s=0.5, longest_s=4.0, budget_s=1e9), ShuttingDown("x")
    drawn = [[retry.wait_s(tried, 0, error) or 0.0 for _ in range(400)] for tried in range(6)]
    highest = [max(waits) for waits in drawn]

    for most, bound in zip(highest, (0.5, 1, 2, 4, 4, 4), strict=True):
        assert 0.9 * bound < most <= bound
    assert all(len(set(waits)) > 300 for waits in drawn)
    assert all(before < after for before, after in pairwise(highest[:4]))


def test_when_to_give_up() -> None:
    """No wait is left past the tries, past the budget, for what does not pass, and for what took too long."""
    retry = Retry(retries=2, budget_s=10)

    assert retry.wait_s(2, 0, ShuttingDown("x")) is None
    assert retry.wait_s(0, 10.1, ShuttingDown("x")) is None
    assert retry.wait_s(0, 0, NotFound("x")) is None
    assert retry.wait_s(0, 0, NoAnswer("x")) is None
    assert retry.wait_s(0, 0, SandboxUnavailable("x", retry_after_s=3)) == 3


async def test_code_is_never_sent_again(scripted: Scripted, client: Client) -> None:
    """Code, commands and changes without a key are sent once, whatever becomes of them."""
    for path in ("execute", "commands", "processes", "processes/p/input", "interrupt", "restart", "files/a"):
        scripted.on("POST", f"{KERNEL}/{path}", DROP)
    calls = (
        lambda: client.kernels.execute("k", "x"),
        lambda: client.processes.run("k", "x"),
        lambda: client.processes.start("k", "x"),
        lambda: client.processes.write("k", "p", "x"),
        lambda: client.kernels.interrupt("k"),
        lambda: client.kernels.restart("k"),
        lambda: client.files.append("k", "a", "x"),
        lambda: client.files.edit("k", "a", "x", "y"),
        lambda: client.files.move("k", "a", "b"),
    )
    for call in calls:
        with pytest.raises(GatewayUnreachable):
            await call()

    assert len(scripted.asked) == len(calls)


async def test_an_execution_is_sent_again_under_its_key(scripted: Scripted, client: Client) -> None:
    """An execution is started under an Idempotency-Key, and a repeat has the same; another has another."""
    scripted.on("POST", "/api/executions", DROP, BUSY, JOB)

    await client.executions.start("x")
    keys = [asked.headers["Idempotency-Key"] for asked in scripted.asked]
    assert len(keys) == 3
    assert len(set(keys)) == 1

    await client.executions.start("x")
    await client.executions.start("x", idempotency_key="mine")
    assert scripted.asked[-2].headers["Idempotency-Key"] not in {"mine", *keys}
    assert scripted.asked[-1].headers["Idempotency-Key"] == "mine"
    assert "idempotency_key" not in scripted.asked[-1].json


async def test_a_kernel_is_created_once(scripted: Scripted, client: Client) -> None:
    """A creation whose answer got lost is repeated under one id; that it is there already is its success."""
    seen: list[str] = []

    async def conflict(request: web.Request) -> web.Response:
        seen.append((await request.json())["kernel_id"])
        scripted.on("GET", f"/api/kernels/{seen[0]}", MODEL | {"id": seen[0]})
        answer: web.Response = await refusal(409, "conflict")(request)
        return answer

    scripted.on("POST", "/api/kernels", DROP, conflict)

    kernel = await client.kernels.create()

    first, second = scripted.asked_for("POST", "/api/kernels")
    assert first.json == second.json
    assert kernel.id == first.json["kernel_id"] == seen[0]


async def test_a_creation_that_conflicts(scripted: Scripted, client: Client) -> None:
    """A conflict over something else, such as a workspace in use, stays one."""
    scripted.on("POST", "/api/kernels", refusal(409, "conflict", "It is in use."))

    with pytest.raises(Conflict, match="in use"):
        await client.kernels.create(workspace="w")


async def test_a_deletion_that_was_done_is_done(scripted: Scripted, client: Client) -> None:
    """A 404 to the repeat of a deletion means that it was done; a 404 to the first means what it says."""
    scripted.on("DELETE", KERNEL, DROP, refusal(404, "not_found"))
    await client.kernels.delete("k")
    with pytest.raises(NotFound):
        await client.kernels.delete("k")


async def test_writes(scripted: Scripted, client: Client) -> None:
    """A plain write is repeated with the same bytes; one that says what it expects is sent once."""
    scripted.on("PUT", f"{KERNEL}/files/a", BUSY, FILE)
    await client.files.write("k", "a", "text")
    assert [asked.body for asked in scripted.asked] == [b"text", b"text"]

    scripted.on("PUT", f"{KERNEL}/files/b", refusal(503, "x"), refusal(412, "precondition_failed"))
    with pytest.raises(GatewayError) as caught:
        await client.files.write("k", "b", "text", expected_sha256="0" * 64)
    assert caught.value.status == 503
    with pytest.raises(PreconditionFailed):
        await client.files.write("k", "b", "text", new=True)


async def test_within(scripted: Scripted, client: Client) -> None:
    """A call ends after `within_s` as a whole, repeats included, and is not asked again."""

    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(20)
        raise AssertionError

    scripted.on("GET", KERNEL, slow)
    begun = time.monotonic()
    with pytest.raises(NoAnswer, match=r"within 0\.2 s"):
        await client.kernels.get("k", within_s=0.2)

    assert time.monotonic() - begun < 5
    assert len(scripted.asked) == 1


async def test_an_answer_is_bounded(scripted: Scripted, client: Client) -> None:
    """A file that is larger than it may be is not gathered in memory."""
    from aiohttp import web

    from gateway.errors import PayloadTooLarge

    async def large(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * 3_000_000)

    scripted.on("GET", f"{KERNEL}/files/a", large)
    with pytest.raises(PayloadTooLarge):
        await client.files.read_bytes("k", "a", max_bytes=1_000_000)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../b", "a//b", "", "."])
async def test_paths_do_not_lead_elsewhere(scripted: Scripted, client: Client, path: str) -> None:
    """A path with dots or empty parts is refused before any request is made of it."""
    with pytest.raises(BadRequest):
        await client.files.read("k", path)
    with pytest.raises(BadRequest):
        await client.files.stat("k", path)
    assert not scripted.asked


@pytest.mark.parametrize("name", ["", "..", "a/b", "x?y", "é"])
async def test_ids_do_not_lead_elsewhere(scripted: Scripted, client: Client, name: str) -> None:
    """What is no id or name is not there, and no request is made of it."""
    calls = (
        client.kernels.get,
        client.executions.get,
        client.contexts.get,
        client.workspaces.delete,
        lambda name: client.processes.kill("k", name),
        lambda name: client.executions.answer("e", name),
    )
    for call in calls:
        with pytest.raises(NotFound):
            await call(name)
    assert not scripted.asked
