"""Executions through the client: cursors, tools, and what happens when the caller leaves."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from gateway.client import GatewayUnreachable, NoAnswer, Task
from gateway.client.retry import Retry
from gateway.errors import BadRequest, GatewayError, LimitReached
from gateway.models.jobs import JobStatus
from tests.unit.client.conftest import DROP, refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.client import Client
    from tests.unit.client.conftest import Scripted

EVENTS, JOB = "/api/executions/e1/events", "/api/executions/e1"
STARTED = {"seq": 1, "type": "started", "kernel_id": "k"}
RUNNING = {"id": "e1", "status": "running", "created_at": "", "cursor": 1, "kernel_id": "k"}
RESULT = {"status": "ok", "stdout": "hi\n", "duration_s": 0.5, "outputs": []}
ENDED = RUNNING | {"status": "ok", "result": RESULT}


def printed(seq: int) -> dict[str, Any]:
    """Return the event of a line that was printed."""
    return {"seq": seq, "type": "stdout", "text": f"{seq}\n"}


def ended(seq: int) -> dict[str, Any]:
    """Return the last event."""
    return {"seq": seq, "type": "ended", "status": "ok"}


def stream(*events: dict[str, Any], broken: bool = False, half: bool = False) -> Callable[..., Any]:
    """Return what answers with events as lines; `broken` drops the connection, `half` within a line."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_type = "application/x-ndjson"
        await response.prepare(request)
        for event in events:
            await response.write(json.dumps(event).encode() + b"\n")
        if half:
            await response.write(b'{"seq": 99, "ty')
        if broken or half:
            await asyncio.sleep(0.02)
            assert request.transport is not None
            request.transport.abort()
        else:
            await response.write_eof()
        return response

    return answer


async def test_follow_goes_on_at_its_cursor(scripted: Scripted, client: Client) -> None:
    """A stream that breaks is opened again behind the last event; every event comes once, in order."""
    scripted.on(
        "GET",
        EVENTS,
        stream(STARTED, printed(2), broken=True),
        DROP,
        stream(printed(3), half=True),
        refusal(503, "shutting_down"),
        stream(printed(4), ended(5)),
    )
    seqs = [event.seq async for event in client.executions.follow("e1")]

    assert seqs == [1, 2, 3, 4, 5]
    assert [asked.query["cursor"] for asked in scripted.asked] == ["0", "2", "2", "3", "3"]
    assert {asked.headers["Accept"] for asked in scripted.asked} == {"application/x-ndjson"}


async def test_follow_skips_what_it_does_not_know(scripted: Scripted, client: Client) -> None:
    """Keepalives, empty lines, new types of events and new fields do not disturb."""
    lines = (
        {"type": "keepalive"},
        {"seq": 1, "type": "aurora"},
        STARTED | {"colour": "green"},
        {"type": "keepalive"},
    )
    scripted.on("GET", EVENTS, stream(*lines, ended(2)))

    assert [event.type async for event in client.executions.follow("e1")] == ["started", "ended"]


async def test_follow_of_what_has_ended(scripted: Scripted, client: Client) -> None:
    """Behind the last event there is nothing: the iterator ends, and does not ask on."""
    scripted.on("GET", EVENTS, stream())
    scripted.on("GET", JOB, ENDED)

    assert [event async for event in client.executions.follow("e1", cursor=9)] == []
    assert len(scripted.asked) == 2


async def test_follow_gives_up(scripted: Scripted, client: Client) -> None:
    """A gateway that comes to nothing is given up after the retries; progress starts the count anew."""
    scripted.on("GET", EVENTS, *(stream(printed(n), broken=True) for n in range(1, 8)), DROP)
    seen = []

    async def follow() -> None:
        async for event in client.executions.follow("e1"):
            seen.append(event.seq)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(GatewayUnreachable):
        await follow()

    assert seen == list(range(1, 8))
    assert len(scripted.asked) == 7 + 1 + 3


async def test_quiet_costs_no_patience(scripted: Scripted, client: Client) -> None:
    """The budget counts from a failure on, not from the last event: a long quiet before it is no loss."""

    async def quiet(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(json.dumps(STARTED).encode() + b"\n")
        await asyncio.sleep(0.5)
        assert request.transport is not None
        request.transport.abort()
        return response

    client._transport.retry = Retry(first_s=0.01, budget_s=0.2)
    scripted.on("GET", EVENTS, quiet, stream(ended(2)))

    assert [event.seq async for event in client.executions.follow("e1")] == [1, 2]


async def test_a_line_that_is_no_event(scripted: Scripted, client: Client) -> None:
    """A line that is no event is an error that says so."""
    scripted.on("GET", EVENTS, stream({"seq": "x", "type": "started"}))

    with pytest.raises(GatewayError, match="no event"):
        [event async for event in client.executions.follow("e1")]


async def test_run(scripted: Scripted, client: Client) -> None:
    """`run` starts a job, waits for its end over broken connections, and records it."""
    scripted.on("POST", "/api/executions", RUNNING)
    scripted.on("GET", JOB, RUNNING, DROP, ENDED)

    view = await client.executions.run("print('hi')", kernel_id="k", timeout_s=5)

    assert view.status is JobStatus.OK
    [start] = scripted.asked_for("POST", "/api/executions")
    assert start.json == {"code": "print('hi')", "kernel_id": "k", "timeout_s": 5.0, "mode": "job"}
    [entry] = client.history.entries
    assert (entry.code, entry.status, entry.kernel_id, entry.duration_s) == ("print('hi')", "ok", "k", 0.5)


async def test_run_of_a_list(scripted: Scripted, client: Client) -> None:
    """Each task of a list is an entry of the history; those that never ran are none."""
    tasks = [{"status": "ok", "result": RESULT}, {"status": "aborted", "result": None}]
    scripted.on("POST", "/api/executions", RUNNING)
    scripted.on("GET", JOB, ENDED | {"result": None, "tasks": tasks})

    await client.executions.run(tasks=[Task(path="a.py"), Task(code="x")])

    assert [entry.source for entry in client.history.entries] == ["# file: a.py"]
    assert scripted.asked[0].json["tasks"] == [{"path": "a.py"}, {"code": "x"}]


async def test_run_raises_what_stood_against_it(scripted: Scripted, client: Client) -> None:
    """Where the execution could not be run at all, the gateway's error is raised by its code."""
    failure = {"message": "Too many kernels.", "code": "limit_reached", "reason": "kernels"}
    scripted.on("POST", "/api/executions", RUNNING)
    scripted.on("GET", JOB, RUNNING | {"status": "failed", "failure": failure})

    with pytest.raises(LimitReached, match="Too many kernels"):
        await client.executions.run("x")
    assert not client.history.entries


async def test_tools(scripted: Scripted, client: Client) -> None:
    """Calls are answered as they come, side by side; what a tool raises or returns wrongly is an error."""
    both = asyncio.Barrier(2)

    async def slow(city: str) -> str:
        """Return the weather."""
        async with asyncio.timeout(5):
            await both.wait()  # passes only where two calls are under way
        return f"rain in {city}"

    def thread(value: int) -> str:
        return threading.current_thread().name if value else str(1 / value)

    def calls(*made: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {"seq": n, "type": "tool_call", "call_id": f"c{n}", "name": name, "arguments": arguments}
            for n, (name, arguments) in enumerate(made, 1)
        ]

    made = calls(
        ("slow", {"city": "Oslo"}),
        ("slow", {"city": "Rome"}),
        ("thread", {"value": 1}),
        ("thread", {"value": 0}),
        ("thread", {"wrong": 0}),
        ("odd", {}),
        ("absent", {}),
    )
    over = asyncio.Event()

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for event in (*made, made[0]):  # a call that is told twice is made once
            await response.write(json.dumps(event).encode() + b"\n")
        async with asyncio.timeout(10):
            await over.wait()
        await response.write(json.dumps(ended(99)).encode() + b"\n")
        return response

    answers: dict[str, Any] = {}

    async def take(request: web.Request) -> web.Response:
        answers[request.path.rpartition("/")[2]] = await request.json()
        if len(answers) == len(made):
            over.set()
        return web.Response(status=204)

    scripted.on("POST", "/api/executions", RUNNING)
    scripted.on("GET", EVENTS, events)
    scripted.on("GET", JOB, ENDED)
    for n in range(1, len(made) + 1):
        scripted.on("POST", f"{JOB}/calls/c{n}", *([DROP] if n == 1 else []), take)

    def odd() -> object:
        return object()

    await client.executions.run("x", tools={"slow": slow, "thread": thread, "odd": odd})

    assert answers["c1"] == {"result": "rain in Oslo", "error": None}
    assert answers["c2"]["result"] == "rain in Rome"
    assert answers["c3"]["result"] != threading.current_thread().name
    assert answers["c4"] == {"result": None, "error": "ZeroDivisionError: division by zero"}
    assert answers["c5"]["error"].startswith("TypeError: ")
    assert "not JSON serializable" in answers["c6"]["error"]
    assert answers["c7"]["error"] == "There is no tool 'absent'."
    offered = scripted.asked[0].json["tools"]
    assert offered[0] == {"name": "slow", "description": "Return the weather."}


async def test_calls_that_a_gap_hides(scripted: Scripted, client: Client) -> None:
    """After a gap the calls that still wait are looked up, and answered."""
    call = {"seq": 2, "type": "tool_call", "call_id": "c", "name": "now", "arguments": {}}
    answered = asyncio.Event()

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"seq": 3, "type": "gap", "bytes": 9}\n')
        async with asyncio.timeout(5):
            await answered.wait()
        await response.write(json.dumps(ended(4)).encode() + b"\n")
        return response

    async def take(request: web.Request) -> web.Response:
        answered.set()
        return web.Response(status=204)

    scripted.on("POST", "/api/executions", RUNNING)
    scripted.on("GET", EVENTS, events)
    scripted.on("GET", JOB, RUNNING | {"pending_calls": [call]}, ENDED)
    scripted.on("POST", f"{JOB}/calls/c", take)

    await client.executions.run("x", tools={"now": lambda: 1})

    assert answered.is_set()


async def test_a_call_that_is_withdrawn(scripted: Scripted, client: Client) -> None:
    """A tool whose call was answered elsewhere, or timed out, is cancelled and answers nothing."""
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def endless() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"seq": 1, "type": "tool_call", "call_id": "c", "name": "endless"}\n')
        async with asyncio.timeout(5):
            await begun.wait()
        await response.write(b'{"seq": 2, "type": "tool_answer", "call_id": "c"}\n')
        async with asyncio.timeout(5):
            await cancelled.wait()
        await response.write(json.dumps(ended(3)).encode() + b"\n")
        return response

    scripted.on("POST", "/api/executions", RUNNING)
    scripted.on("GET", EVENTS, events)
    scripted.on("GET", JOB, ENDED)

    await client.executions.run("x", tools={"endless": endless})

    assert not scripted.asked_for("POST", f"{JOB}/calls/c")


async def test_who_is_cancelled_interrupts(scripted: Scripted, client: Client) -> None:
    """A caller that is cancelled has the execution interrupted, also before the start is answered."""
    arrived = asyncio.Event()

    async def late(_: web.Request) -> web.Response:
        arrived.set()
        await asyncio.sleep(0.2)
        return web.json_response(RUNNING)

    scripted.on("POST", "/api/executions", late)
    scripted.on("POST", f"{JOB}/interrupt", web.Response(status=204))
    scripted.on("GET", JOB, RUNNING)
    running = asyncio.create_task(client.executions.run("x"))
    async with asyncio.timeout(5):
        await arrived.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert len(scripted.asked_for("POST", f"{JOB}/interrupt")) == 1


async def test_who_waits_too_long_interrupts(scripted: Scripted, client: Client) -> None:
    """Past `within_s` the run ends with NoAnswer; what was not running yet is cancelled instead."""

    async def not_running(_: web.Request) -> web.Response:
        body = {"message": "Not yet.", "code": "conflict", "reason": "not_running"}
        return web.json_response(body, status=409)

    async def patient(_: web.Request) -> web.Response:
        await asyncio.sleep(0.05)
        return web.json_response(RUNNING)

    scripted.on("POST", "/api/executions", RUNNING)
    scripted.on("GET", JOB, patient)
    scripted.on("POST", f"{JOB}/interrupt", not_running)
    scripted.on("DELETE", JOB, {})

    with pytest.raises(NoAnswer):
        await client.executions.run("x", within_s=0.2)

    assert scripted.asked_for("POST", f"{JOB}/interrupt")
    assert scripted.asked_for("DELETE", JOB)


async def test_what_is_no_execution(scripted: Scripted, client: Client) -> None:
    """Contradictions and texts that are none are refused before anything is sent."""
    for wrong in (
        {},
        {"code": "x", "path": "a.py"},
        {"code": "x", "kernel_id": "k", "context": "c"},
        {"code": "x", "timeout_s": -1},
        {"code": "\ud800"},
    ):
        with pytest.raises(BadRequest):
            await client.executions.run(**wrong)  # type: ignore[arg-type]
    with pytest.raises(BadRequest):
        await client.executions.run("x", tools={"no name": print})
    assert not scripted.asked
