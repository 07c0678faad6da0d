"""What changes something or shows a file leaves its record: every such route, and a socket's requests."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import aiohttp
import pytest

from gateway.http.access import Rule
from gateway.http.channels import CHANNELS
from gateway.http.routes import PLAIN_ROUTES
from tests.gateway import running
from tests.lifecycle import eventually, until_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from gateway.http.route import Route
    from tests.gateway import Client, Gateway

SLEEP = "import time; time.sleep(60)"


class Scene:
    """A gateway with a kernel of alice's, and the trail that it writes."""

    def __init__(self, gateway: Gateway, alice: Client, bob: Client, kernel: str) -> None:
        self.gateway = gateway
        self.alice = alice
        self.bob = bob
        self.kernel = kernel
        self.at_work: set[asyncio.Task[Any]] = set()

    def trail(self, request_id: str | None = None) -> list[dict[str, Any]]:
        """Return what is in the trail's files now, of one request or at all."""
        files = sorted((self.gateway.state_dir / "gateway" / "audit").glob("*.jsonl"))
        # of what is being written at this moment there may be a part
        whole = "".join(file.read_text() for file in files).rpartition("\n")[0]
        records = [json.loads(line) for line in whole.splitlines()]
        return [r for r in records if request_id is None or r.get("request_id") == request_id]

    async def recorded(self, request_id: str, count: int = 1) -> list[dict[str, Any]]:
        """Return the records of a request once there are as many."""
        assert await eventually(lambda: len(self.trail(request_id)) >= count), self.trail()[-3:]
        return self.trail(request_id)

    async def execution(self) -> str:
        """Return the id of an execution that runs."""
        task = asyncio.create_task(self.alice.run(self.kernel, SLEEP))
        self.at_work.add(task)
        task.add_done_callback(self.at_work.discard)
        while True:
            found = await self.alice.json("GET", f"/api/kernels/{self.kernel}/executions")
            if found and found[0]["state"] == "running":
                return str(found[0]["id"])
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
async def scene() -> AsyncIterator[Scene]:
    """The scene of this module. Refusals are not folded: each has its request's id."""
    with running("--no-keep", env={"CELLBLOCK_AUDIT__REFUSALS_PER_S": "1000"}) as gateway:
        async with gateway.client("alice") as alice, gateway.client("bob") as bob:
            scene = Scene(gateway, alice, bob, await alice.start())
            yield scene
            await asyncio.gather(*scene.at_work)


# -- what each route needs before it can do something, as values for its path ------------------------------


async def nothing(_: Scene) -> dict[str, str]:
    """Take the scene as it is."""
    return {}


async def another_kernel(scene: Scene) -> dict[str, str]:
    """Start a kernel that may end."""
    return {"kernel_id": await scene.alice.start()}


async def running_execution(scene: Scene) -> dict[str, str]:
    """Have the kernel at work."""
    return {"execution_id": await scene.execution()}


async def a_file(scene: Scene) -> dict[str, str]:
    """Put a file into the home."""
    async with scene.alice.http.put(f"/api/kernels/{scene.kernel}/files/there.txt", data=b"x") as response:
        assert response.ok
    return {"path": "there.txt"}


async def a_process(scene: Scene) -> dict[str, str]:
    """Have a process beside the kernel."""
    made = await scene.alice.json(
        "POST", f"/api/kernels/{scene.kernel}/processes", {"argv": ["sleep", "60"]}, status=201
    )
    return {"process_id": made["id"], "pid": str(made["pid"])}


async def a_workspace(scene: Scene) -> dict[str, str]:
    """Leave a workspace that no kernel has."""
    await scene.alice.delete(await scene.alice.start(workspace="mine"))
    return {"name": "mine"}


async def a_tool(_: Scene) -> dict[str, str]:
    """Name a tool that takes nothing."""
    return {"name": "list_sessions"}


async def a_session(scene: Scene) -> dict[str, str]:
    """Bind a path to a kernel of its own."""
    wanted = {"path": f"{uuid4()}.ipynb", "type": "notebook", "kernel": {"name": "python3"}}
    made = await scene.alice.json("POST", "/api/sessions", wanted, status=201)
    return {"session_id": made["id"], "kernel_id": made["kernel"]["id"]}


async def a_job(scene: Scene) -> dict[str, str]:
    """Have a job at work in the kernel."""
    wanted = {"code": SLEEP, "kernel_id": scene.kernel, "mode": "job"}
    job = await scene.alice.json("POST", "/api/executions", wanted, status=202)
    while True:
        found = await scene.alice.json("GET", f"/api/executions/{job['id']}")
        if found["status"] == "running":
            return {"execution_id": job["id"]}
        await asyncio.sleep(0.02)


async def an_ended_job(scene: Scene) -> dict[str, str]:
    """Leave a job that has ended."""
    job = await scene.alice.json("POST", "/api/executions", {"code": "1", "kernel_id": scene.kernel})
    return {"execution_id": job["id"]}


async def a_tool_call(scene: Scene) -> dict[str, str]:
    """Have a job whose code waits for the answer of a tool."""
    wanted = {
        "code": "import cellblock; cellblock.call('add', a=1)",
        "kernel_id": scene.kernel,
        "mode": "job",
        "tools": [{"name": "add"}],
    }
    job = await scene.alice.json("POST", "/api/executions", wanted, status=202)
    while True:
        found = await scene.alice.json("GET", f"/api/executions/{job['id']}")
        if found["pending_calls"]:
            return {"execution_id": job["id"], "call_id": found["pending_calls"][0]["call_id"]}
        await asyncio.sleep(0.02)


async def a_context(scene: Scene) -> dict[str, str]:
    """Make a context."""
    made = await scene.alice.json("PUT", "/api/contexts/mine", {})
    return {"name": "mine", "kernel_id": made["kernel_id"]}


async def a_block_session(scene: Scene) -> dict[str, str]:
    """Lease a session for result blocks, with a file in its home."""
    made = await scene.alice.json("POST", "/otari/v1/sessions", {}, status=201)
    seen = await scene.alice.json("GET", f"/api/contexts/{made['session_id']}")
    kernel = seen["kernel_id"]
    async with scene.alice.http.put(f"/api/kernels/{kernel}/files/there.txt", data=b"x") as response:
        assert response.ok
    return {"name": made["session_id"], "kernel_id": kernel}


def form() -> aiohttp.FormData:
    """Return a form with one file."""
    made = aiohttp.FormData()
    made.add_field("file", b"x", filename="there.txt")
    return made


def archive() -> bytes:
    """Return an archive with one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("packed.txt"), io.BytesIO(b""))
    return packed.getvalue()


@dataclass(frozen=True)
class Case:
    """What a route is asked, and which record that leaves."""

    action: str
    prepare: Callable[[Scene], Awaitable[dict[str, str]]] = nothing
    sent: dict[str, Any] = field(default_factory=dict)


CASES = {
    "POST /api/kernels": Case("kernel.create", sent={"json": {}}),
    "DELETE /api/kernels/{kernel_id}": Case("kernel.delete", another_kernel),
    "POST /api/kernels/{kernel_id}/interrupt": Case("kernel.interrupt"),
    "POST /api/kernels/{kernel_id}/restart": Case("kernel.restart"),
    "POST /api/kernels/{kernel_id}/pause": Case("kernel.pause", another_kernel),
    "POST /api/kernels/{kernel_id}/resume": Case("kernel.resume"),
    "POST /api/kernels/{kernel_id}/execute": Case("execution.end", sent={"json": {"code": "1"}}),
    "POST /api/kernels/{kernel_id}/executions/{execution_id}/interrupt": Case(
        "execution.interrupt", running_execution
    ),
    "DELETE /api/kernels/{kernel_id}/executions/{execution_id}": Case("execution.cancel", running_execution),
    "POST /api/kernels/{kernel_id}/commands": Case("command.run", sent={"json": {"command": "true"}}),
    "POST /api/kernels/{kernel_id}/processes": Case("process.start", sent={"json": {"command": "true"}}),
    "POST /api/kernels/{kernel_id}/processes/{process_id}/input": Case(
        "process.input", a_process, {"json": {"text": "x"}}
    ),
    "POST /api/kernels/{kernel_id}/processes/{process_id}/signal": Case("process.signal", a_process),
    "DELETE /api/kernels/{kernel_id}/processes/{process_id}": Case("process.signal", a_process),
    "DELETE /api/kernels/{kernel_id}/tree/{pid}": Case("process.signal", a_process),
    "GET /api/kernels/{kernel_id}/files": Case("file.list"),
    "GET /api/kernels/{kernel_id}/files/{path}": Case("file.read", a_file),
    "HEAD /api/kernels/{kernel_id}/files/{path}": Case("file.read", a_file),
    "PUT /api/kernels/{kernel_id}/files/{path}": Case("file.write", sent={"data": b"x"}),
    "POST /api/kernels/{kernel_id}/files/{path}": Case(
        "file.write", a_file, {"json": {"op": "move", "to": "elsewhere.txt", "replace": True}}
    ),
    "DELETE /api/kernels/{kernel_id}/files/{path}": Case("file.delete", a_file),
    "GET /api/kernels/{kernel_id}/files-archive": Case("file.read", a_file),
    "POST /api/kernels/{kernel_id}/files-archive": Case("file.write", sent={"data": archive()}),
    "POST /api/executions": Case("job.create", sent={"json": {"code": "1"}}),
    "POST /api/executions/{execution_id}/interrupt": Case("execution.interrupt", a_job),
    "DELETE /api/executions/{execution_id}": Case("job.cancel", an_ended_job),
    "POST /api/executions/{execution_id}/calls/{call_id}": Case(
        "tool.answer", a_tool_call, {"json": {"result": 2}}
    ),
    "PUT /api/contexts/{name}": Case("session.create", sent={"json": {}}),
    "POST /api/contexts/{name}/keepalive": Case("context.keep", a_context),
    "DELETE /api/contexts/{name}": Case("session.delete", a_context),
    "POST /otari/v1/sessions": Case("session.create", sent={"json": {}}),
    "DELETE /otari/v1/sessions/{name}": Case("session.delete", a_block_session),
    "POST /otari/v1/sessions/{name}/exec": Case(
        "execution.end", a_block_session, {"json": {"tool": "code_execution", "input": {"code": "1"}}}
    ),
    "GET /otari/v1/sessions/{name}/files/list": Case("file.list", a_block_session),
    "GET /otari/v1/sessions/{name}/files": Case(
        "file.read", a_block_session, {"params": {"path": "there.txt"}}
    ),
    "POST /otari/v1/sessions/{name}/files": Case("file.write", a_block_session, {"data": form()}),
    "DELETE /api/workspaces/{name}": Case("file.delete", a_workspace),
    "POST /api/sessions": Case("session.create", sent={"json": {"path": "made.ipynb", "type": "notebook"}}),
    "PATCH /api/sessions/{session_id}": Case("session.change", a_session, {"json": {"name": "b"}}),
    "DELETE /api/sessions/{session_id}": Case("session.delete", a_session),
    "POST /api/tools/{name}": Case("agent.call", a_tool, {"json": {}}),
    "POST /mcp": Case(
        "agent.call",
        sent={
            "json": {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "list_sessions"}}
        },
    ),
}


def name(route: Route) -> str:
    """Name a route."""
    return f"{route.method} {route.path}"


def path_to(route: Route, scene: Scene, values: dict[str, str]) -> str:
    """Return a route's path with its parameters filled in."""
    given = {"kernel_id": scene.kernel, "path": "new.txt"}
    parameters = ("execution_id", "call_id", "name", "session_id", "process_id", "pid")
    others = dict.fromkeys(parameters, "x")
    return route.path.format(**{**others, **given, **values})


# What changes something, and what shows a file; the channels have tests of their own below.
TOLD = [route for route in PLAIN_ROUTES if route.changes or "/files" in route.path]
OWNED = [route for route in TOLD if route.access.rule is Rule.OWNER]


@pytest.mark.parametrize("route", TOLD, ids=name)
async def test_what_is_done_is_recorded(scene: Scene, route: Route) -> None:
    """Each such route, done well, leaves one record: who, by which key, whence, what, on which kernel."""
    assert name(route) in CASES, "a new route: say in CASES which record it leaves"
    case = CASES[name(route)]
    values = await case.prepare(scene)
    request_id = f"done-{uuid4().hex}"
    path = path_to(route, scene, values)
    async with scene.alice.http.request(
        route.method, path, headers={"X-Request-Id": request_id}, **case.sent
    ) as response:
        assert response.ok, await response.text()

    records = scene.trail(request_id)
    assert case.action in {record["action"] for record in records}
    done = next(record for record in records if record["action"] == case.action)
    assert (done["outcome"], done["who"], done["door"]) == ("ok", "alice", route.door)
    assert (done["key_id"], done["address"]) == (scene.gateway.key().split("_")[1], "127.0.0.1")
    if "{kernel_id}" in route.path or "kernel_id" in values:
        assert done["kernel_id"] == values.get("kernel_id", scene.kernel)
    if "{path}" in route.path:
        assert done["target"] == values.get("path", "new.txt")
    if "{execution_id}" in route.path:
        assert done["target"] == values["execution_id"]


@pytest.mark.parametrize("route", TOLD, ids=name)
async def test_who_is_not_known_is_recorded(scene: Scene, route: Route) -> None:
    """Without a credential each such route leaves a refusal, with the address."""
    request_id = f"nobody-{uuid4().hex}"
    async with (
        aiohttp.ClientSession(scene.gateway.url) as nobody,
        nobody.request(
            route.method, path_to(route, scene, {}), headers={"X-Request-Id": request_id}
        ) as response,
    ):
        assert response.status == 401

    [refused] = await scene.recorded(request_id)
    assert (refused["action"], refused["outcome"], refused["target"]) == (
        "auth.refused",
        "refused",
        name(route),
    )
    assert (refused["address"], "who" in refused) == ("127.0.0.1", False)


@pytest.mark.parametrize("route", [*OWNED, CHANNELS], ids=name)
async def test_what_is_anothers_is_recorded(scene: Scene, route: Route) -> None:
    """Somebody who reaches for what is another's leaves a refusal with their name on it."""
    values = await a_session(scene) if "{session_id}" in route.path else {}
    request_id = f"theirs-{uuid4().hex}"
    async with scene.bob.http.request(
        route.method, path_to(route, scene, values), headers={"X-Request-Id": request_id}, json={}
    ) as response:
        assert response.status == 404

    [refused] = await scene.recorded(request_id)
    assert (refused["action"], refused["who"], refused["reason"]) == ("access.refused", "bob", "not_found")
    assert refused["target"] == name(route)
    assert refused.get("kernel_id") == (scene.kernel if "{kernel_id}" in route.path else None)


async def test_anothers_kernel_in_a_body_is_recorded(scene: Scene) -> None:
    """A session that asks for another's kernel leaves a refusal, though its route names no kernel."""
    request_id = f"body-{uuid4().hex}"
    wanted = {"path": "a", "type": "notebook", "kernel": {"id": scene.kernel}}
    async with scene.bob.http.post(
        "/api/sessions", json=wanted, headers={"X-Request-Id": request_id}
    ) as response:
        assert response.status == 404

    [refused] = await scene.recorded(request_id)
    assert (refused["action"], refused["who"]) == ("access.refused", "bob")


@pytest.mark.parametrize("route", [route for route in TOLD if route.body], ids=name)
async def test_what_comes_to_nothing_is_recorded(scene: Scene, route: Route) -> None:
    """A request to change something that is wrong in itself leaves a record, too."""
    values = await a_session(scene) if "{session_id}" in route.path else {}
    request_id = f"wrong-{uuid4().hex}"
    async with scene.alice.http.request(
        route.method, path_to(route, scene, values), headers={"X-Request-Id": request_id}, data=b"{"
    ) as response:
        assert response.status == 400

    [failed] = await scene.recorded(request_id)
    assert (failed["action"], failed["outcome"], failed["who"]) == ("request.failed", "error", "alice")
    assert failed["target"] == name(route)


async def test_a_read_that_fails_is_recorded(scene: Scene) -> None:
    """Reaching through a link out of the home leaves a record of the attempt, without any content."""
    await scene.alice.out(scene.kernel, "import os; os.symlink('/etc/passwd', 'out')")
    request_id = f"link-{uuid4().hex}"
    async with scene.alice.http.get(
        f"/api/kernels/{scene.kernel}/files/out", headers={"X-Request-Id": request_id}
    ) as response:
        assert response.status == 400

    [failed] = await scene.recorded(request_id)
    assert (failed["action"], failed["outcome"], failed["target"]) == ("file.read", "error", "out")


async def test_artifacts_are_a_look_at_the_home(scene: Scene) -> None:
    """An execution whose artifacts are asked for leaves its own record and that of the look."""
    request_id = f"artifacts-{uuid4().hex}"
    body = {"code": "open('made.txt', 'w').write('x')", "artifacts": True}
    async with scene.alice.http.post(
        f"/api/kernels/{scene.kernel}/execute", json=body, headers={"X-Request-Id": request_id}
    ) as response:
        assert response.ok

    assert [record["action"] for record in scene.trail(request_id)] == ["execution.end", "file.list"]


async def test_a_socket_and_its_control_channel(scene: Scene) -> None:
    """A socket's begin and end, interrupt, debugger and shutdown are recorded; the rest is counted."""
    kernel = await scene.alice.start()
    async with scene.alice.channels(kernel) as channels:
        msg_id = await channels.execute(SLEEP)
        await until_state(scene.alice, kernel, "busy")
        await channels.until("execute_input")
        await channels.send("control", "interrupt_request", {})
        await channels.until_done(msg_id)
        body = {"type": "request", "seq": 1, "command": "debugInfo", "arguments": {}}
        await channels.send("control", "debug_request", body)
        for code in ("a", "b"):
            await channels.send("shell", "is_complete_request", {"code": code})
        await channels.send("shell", "nonsense_request", {})
        await channels.until("is_complete_reply")
        await channels.until("is_complete_reply")
        await channels.send("control", "shutdown_request", {"restart": False})
        await until_state(scene.alice, kernel, "dead")

    def mine() -> list[dict[str, Any]]:
        return [r for r in scene.trail() if r.get("kernel_id") == kernel and r["door"] == "websocket"]

    assert await eventually(lambda: mine()[-1]["action"] == "channels.close")
    records = mine()
    assert [(record["action"], record.get("target")) for record in records if record["outcome"] == "ok"] == [
        ("channels.open", None),
        ("kernel.interrupt", "interrupt_request"),
        ("kernel.debug", "debugInfo"),
        ("kernel.shutdown", "shutdown_request"),
        ("channels.close", None),
    ]
    assert sorted((r["action"], r["target"]) for r in records if r["outcome"] == "error") == [
        ("execution.end", msg_id),
        ("request.failed", "nonsense_request"),
    ]
    assert records[-1]["extra"] == {"is_complete_request": 2}
    assert records[-1]["duration_s"] > 0
    assert records[-1]["output_bytes"] > 0
    assert {(r["who"], r["address"], r["request_id"]) for r in records} == {
        ("alice", "127.0.0.1", records[0]["request_id"])
    }
    died = [r for r in scene.trail() if r.get("kernel_id") == kernel and r["action"] == "kernel.die"]
    assert [(r["door"], r["reason"]) for r in died] == [("gateway", "shutdown")]


async def test_a_socket_past_a_quota() -> None:
    """An execution that a quota refuses over a socket leaves a refusal like one over REST."""
    env = {"CELLBLOCK_QUOTAS__EXECUTIONS_PER_MINUTE": "1"}
    with running("--no-keep", env=env) as gateway:
        async with gateway.client("alice") as alice:
            kernel = await alice.start()
            async with alice.channels(kernel) as channels:
                for _ in range(2):
                    await channels.until_done(await channels.execute("1"))
            strict = Scene(gateway, alice, alice, kernel)
            assert await eventually(lambda: strict.trail()[-1]["action"] == "channels.close")
            [refused] = [record for record in strict.trail() if record["action"] == "limit.refused"]

    assert (refused["who"], refused["door"], refused["outcome"]) == ("alice", "websocket", "refused")
    assert (refused["kernel_id"], refused["target"]) == (kernel, "execute_request")
