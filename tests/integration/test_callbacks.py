"""Tools that call back: code in a cell asks its client, without a network, for what was offered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOM
from tests.gateway import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.gateway import Client, Gateway

Tool = Callable[..., Awaitable[Any]]


class Desk:
    """A client that answers the tool calls of its execution as they come."""

    def __init__(self, client: Client, tools: Mapping[str, Tool], **body: Any) -> None:
        self._client = client
        self._tools = tools
        self._body = body
        self.events: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0
        self.job_id = ""

    async def run(self, code: str, *, offer: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Run code and answer its calls; return the job."""
        offered = [{"name": name} for name in (self._tools if offer is None else offer)]
        body = {"code": code, "mode": "stream", "tools": offered, **self._body}
        accept = {"Accept": "application/x-ndjson"}
        async with self._client.http.post("/api/executions", json=body, headers=accept) as response:
            assert response.status == 200, await response.text()
            self.job_id = response.headers["X-Execution-Id"]
            async with asyncio.TaskGroup() as tasks:
                async for line in response.content:
                    event = json.loads(line)
                    self.events.append(event)
                    if event["type"] == "tool_call":
                        tasks.create_task(self._answer(event))
        job: dict[str, Any] = await self._client.json("GET", f"/api/executions/{self.job_id}")
        return job

    async def _answer(self, call: dict[str, Any]) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            answer = {"result": await self._tools[call["name"]](**call["arguments"])}
        except ValueError as error:
            answer = {"error": str(error)}
        finally:
            self.at_once -= 1
        path = f"/api/executions/{self.job_id}/calls/{call['call_id']}"
        await self._client.json("POST", path, answer, status=204)


async def add(a: int, b: int) -> int:
    """Add two numbers, slowly."""
    await asyncio.sleep(0.3)
    return a + b


async def refuse(**_: Any) -> None:
    """Fail."""
    raise ValueError("not today")


async def echo(value: Any) -> Any:
    """Return what came."""
    return value


TOOLS = {"add": add, "refuse": refuse, "echo": echo}


async def test_a_call_and_its_answer(client: Client, kernel: str) -> None:
    """What the code asks reaches the client as an event, and the answer is the call's value."""
    desk = Desk(client, TOOLS, kernel_id=kernel)
    job = await desk.run(
        "import cellblock\nprint(cellblock.call('add', a=2, b=40))\nprint(cellblock.tools.add(a=1, b=1))"
    )

    assert job["status"] == "ok", job
    assert job["result"]["stdout"] == "42\n2\n"
    calls = [event for event in desk.events if event["type"] == "tool_call"]
    assert [(call["name"], call["arguments"]) for call in calls] == [
        ("add", {"a": 2, "b": 40}),
        ("add", {"a": 1, "b": 1}),
    ]
    assert [event["call_id"] for event in desk.events if event["type"] == "tool_answer"] == [
        call["call_id"] for call in calls
    ]


async def test_json_goes_both_ways(client: Client, kernel: str) -> None:
    """Any JSON value is passed on as it is, large ones too."""
    code = (
        "import cellblock\n"
        "for value in (None, True, 1.5, 'ü\\u2028', [1, [2]], {'a': {'b': []}}, 'x' * 200_000):\n"
        "    assert cellblock.call('echo', value=value) == value\n"
        "print('same')"
    )
    job = await Desk(client, TOOLS, kernel_id=kernel).run(code)

    assert job["result"]["stdout"] == "same\n", job["result"]["clean"]


async def test_errors_are_exceptions(client: Client, kernel: str) -> None:
    """A tool that fails, and one that was not offered, raise in the code, which can go on."""
    code = """
import cellblock
for name in ("refuse", "echo", "unknown"):
    try:
        cellblock.call(name)
    except cellblock.ToolError as error:
        print(name, error.code, error)
"""
    job = await Desk(client, TOOLS, kernel_id=kernel).run(code, offer=("refuse",))

    lines = job["result"]["stdout"].splitlines()
    assert lines[0] == "refuse tool_failed not today (tool_failed)"
    assert [line.split()[:2] for line in lines[1:]] == [["echo", "not_found"], ["unknown", "not_found"]]


async def test_many_at_once(client: Client, kernel: str) -> None:
    """Calls of coroutines and of threads are under way at the same time."""
    desk = Desk(client, TOOLS, kernel_id=kernel)
    code = """
import asyncio, cellblock, concurrent.futures, time
began = time.monotonic()
print(await asyncio.gather(*(cellblock.acall("add", a=i, b=i) for i in range(8))))
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    print(list(pool.map(lambda i: cellblock.call("add", a=i, b=1), range(8))))
print(time.monotonic() - began < 4)
"""
    job = await desk.run(code)

    assert job["result"]["stdout"].splitlines() == [
        str([2 * i for i in range(8)]),
        str([i + 1 for i in range(8)]),
        "True",
    ], job["result"]["clean"]
    assert desk.most_at_once == 8


async def test_nobody_there(client: Client, kernel: str) -> None:
    """Without offered tools, and after the execution that offered them, a call fails at once."""
    await Desk(client, TOOLS, kernel_id=kernel).run("import cellblock; cellblock.call('echo', value=1)")
    job = await client.json(
        "POST", "/api/executions", {"code": "cellblock.call('echo', value=1)", "kernel_id": kernel}
    )

    assert job["status"] == "error"
    assert job["result"]["error"]["ename"] == "ToolError"
    assert "no_tools" in job["result"]["error"]["evalue"] or "no tools" in job["result"]["error"]["evalue"]


async def test_the_deadline_goes_on(client: Client, kernel: str) -> None:
    """A call that nobody answers does not keep the execution from its deadline; the kernel goes on."""
    body = {
        "code": "import cellblock; cellblock.call('echo', value=1)",
        "kernel_id": kernel,
        "tools": [{"name": "echo"}],
        "timeout_s": 1,
    }
    job = await client.json("POST", "/api/executions", body)

    assert (job["status"], job["reason"], job["pending_calls"]) == ("timeout", "timeout", [])
    assert await client.out(kernel, "print('usable')") == "usable\n"


async def test_answers_that_nobody_waits_for(client: Client, kernel: str, gateway: Gateway) -> None:
    """Another's call, one that was answered, and one that never was are 404 alike."""
    desk = Desk(client, TOOLS, kernel_id=kernel)
    await desk.run("import cellblock; cellblock.call('echo', value=1)")
    call_id = next(event["call_id"] for event in desk.events if event["type"] == "tool_call")
    answers = []
    async with gateway.client("bob") as bob:
        for one, call in ((client, call_id), (client, "never"), (bob, call_id)):
            path = f"/api/executions/{desk.job_id}/calls/{call}"
            answers.append(await one.json("POST", path, {"result": 1}, status=404))
    assert {answer["code"] for answer in answers} == {"not_found"}


async def test_code_that_dies_while_it_waits(client: Client, kernel: str) -> None:
    """A kernel that dies takes its calls with it: nobody is asked to answer them any more."""
    code = """
import cellblock, os, threading
threading.Timer(0.7, lambda: os.kill(os.getpid(), 9)).start()
cellblock.call("echo", value=1)
"""
    body = {"code": code, "kernel_id": kernel, "tools": [{"name": "echo"}]}
    job = await client.json("POST", "/api/executions", body)

    assert (job["status"], job["reason"], job["pending_calls"]) == ("dead", "killed", [])
    events = (await client.json("GET", f"/api/executions/{job['id']}?cursor=0"))["events"]
    assert [event["type"] for event in events if event["type"].startswith("tool")] == [
        "tool_call",
        "tool_answer",
    ]


@pytest.fixture(scope="module")
async def narrow() -> AsyncIterator[tuple[Gateway, Client]]:
    """A gateway with narrow bounds on tools."""
    env = ROOM | {
        "CELLBLOCK_TOOLS__MAX_CALLS": "6",
        "CELLBLOCK_TOOLS__MAX_WAITING": "2",
        "CELLBLOCK_TOOLS__ARGUMENT_BYTES": "2000",
        "CELLBLOCK_TOOLS__RESULT_BYTES": "2000",
        "CELLBLOCK_TOOLS__TIMEOUT_S": "5",
        "CELLBLOCK_TOOLS__MAX_DEPTH": "2",
    }
    with running("--no-keep", env=env) as gateway:
        async with gateway.client() as client:
            yield gateway, client


async def test_bounds_on_calls(narrow: tuple[Gateway, Client]) -> None:
    """Calls are bounded in number, at once and in size; answers in size and time; each refusal says which."""
    _, client = narrow
    context = {"context": "bounds"}

    code = "import cellblock\nfor i in range(7): cellblock.call('echo', value=i)"
    job = await Desk(client, TOOLS, **context).run(code)
    assert "limit_reached" in job["result"]["clean"]

    job = await Desk(client, TOOLS, **context).run("cellblock.call('echo', value='x' * 3000)")
    assert "payload_too_large" in job["result"]["clean"]

    code = """
import asyncio
calls = (cellblock.acall('add', a=1, b=1) for _ in range(4))
print(await asyncio.gather(*calls, return_exceptions=True))
"""
    job = await Desk(client, TOOLS, **context).run(code)
    assert job["result"]["stdout"].count("ToolError") == 2, job

    body = {"code": "cellblock.call('echo', value=1)", "tools": [{"name": "echo"}], **context}
    job = await client.json("POST", "/api/executions", body)
    assert job["status"] == "error"
    assert "request_timeout" in job["result"]["clean"]

    job = await client.json("POST", "/api/executions", body | {"mode": "job"}, status=202)
    async with asyncio.timeout(5):
        while not (calls := (await client.json("GET", f"/api/executions/{job['id']}"))["pending_calls"]):
            await asyncio.sleep(0.02)
    path = f"/api/executions/{job['id']}/calls/{calls[0]['call_id']}"
    await client.json("POST", path, {"result": "x" * 3000}, status=413)
    await client.json("POST", path, {"result": "fits"}, status=204)


async def test_depth_and_the_trail(narrow: tuple[Gateway, Client]) -> None:
    """Executions that help to answer calls go so deep and no deeper; every call has its record."""
    gateway, client = narrow

    async def nested(level: int) -> Any:
        call = next(e["call_id"] for e in reversed(desks[level - 1].events) if e["type"] == "tool_call")
        desk = Desk(client, {"deeper": nested}, context=f"level-{level}", parent_call=call)
        desks.append(desk)
        code = f"import cellblock; print('level', {level}); cellblock.call('deeper', level={level + 1})"
        with suppress(AssertionError):
            return (await desk.run(code))["status"]
        raise ValueError("too deep")

    desks = [Desk(client, {"deeper": nested}, context="level-0")]
    job = await desks[0].run("import cellblock; print(cellblock.call('deeper', level=1))")

    assert job["status"] == "ok", job
    assert len(desks) == 3
    assert desks[1].job_id
    assert not desks[2].job_id
    trail = gateway.state_dir / "gateway" / "audit"
    records = [json.loads(line) for file in trail.glob("*.jsonl") for line in file.read_text().splitlines()]
    calls = [r for r in records if r["action"] == "tool.call" and r["target"] == "deeper"]
    assert [(r["outcome"], r["who"], r["door"]) for r in calls] == [
        ("error", "alice", "rest"),
        ("ok", "alice", "rest"),
    ]
