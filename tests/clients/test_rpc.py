"""JSON-RPC over a WebSocket, against real kernels: what the scenarios of all doors do not show."""

from __future__ import annotations

import asyncio
import hashlib
import json
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import aiohttp
import jsonschema
import pytest

from gateway.http.rpc.connection import MAX_FEEDS, MAX_REQUESTS
from tests.clients.rpc import RpcError, connected, opened
from tests.gateway import Client, running
from tests.integration.test_ownership import authorized, command
from tests.lifecycle import eventually, until_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.clients.rpc import Rpc
    from tests.gateway import Gateway

SLEEP = "print('begun', flush=True)\nimport time; time.sleep(60)"


@pytest.fixture(scope="module")
async def owner(gateway: Gateway) -> AsyncIterator[Client]:
    """An owner of this module's own."""
    async with gateway.client("rpc-owner") as client:
        yield client


@pytest.fixture(scope="module")
async def kernel_id(owner: Client) -> AsyncIterator[str]:
    """A kernel that the tests share; each leaves it idle."""
    made = await owner.start()
    yield made
    await owner.delete(made)


@pytest.fixture
async def rpc(owner: Client) -> AsyncIterator[Rpc]:
    """A connection of its own."""
    async with connected(owner) as rpc:
        yield rpc


def trail(gateway: Gateway) -> list[dict[str, Any]]:
    """Return what is in the audit trail's files now."""
    files = sorted((gateway.state_dir / "gateway" / "audit").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def text(events: list[dict[str, Any]]) -> str:
    """Join what events tell of stdout."""
    return "".join(event["text"] for event in events if event["type"] == "stdout")


# -- the protocol -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "number", "own"),
    [
        ("{", -32700, None),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), -32700, None),
        ("[]", -32600, None),
        ('[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', -32600, None),
        ("1", -32600, None),
        ('{"id": "a", "method": "ping"}', -32600, "a"),
        ('{"jsonrpc": "1.0", "id": "a", "method": "ping"}', -32600, "a"),
        ('{"jsonrpc": "2.0", "id": "a", "method": 1}', -32600, "a"),
        ('{"jsonrpc": "2.0", "id": null, "method": "ping"}', -32600, None),
        ('{"jsonrpc": "2.0", "id": 1.5, "method": "ping"}', -32600, None),
        ('{"jsonrpc": "2.0", "id": true, "method": "ping"}', -32600, None),
        ('{"jsonrpc": "2.0", "id": {}, "method": "ping"}', -32600, None),
        (json.dumps({"jsonrpc": "2.0", "id": "x" * 129, "method": "ping"}), -32600, None),
        ('{"jsonrpc": "2.0", "id": "a"}', -32600, "a"),
        ('{"jsonrpc": "2.0", "id": "a", "result": 1, "error": {}}', -32600, "a"),
        ('{"jsonrpc": "2.0", "id": "a", "method": "no.such"}', -32601, "a"),
        ('{"jsonrpc": "2.0", "id": "a", "method": "__class__"}', -32601, "a"),
        ('{"jsonrpc": "2.0", "id": "a", "method": "ping", "params": [1]}', -32602, "a"),
        ('{"jsonrpc": "2.0", "id": "a", "method": "ping", "params": {"more": 1}}', -32602, "a"),
        ('{"jsonrpc": "2.0", "id": "a", "method": "get", "params": {}}', -32602, "a"),
        (
            '{"jsonrpc": "2.0", "id": "a", "method": "execute", "params": {"code": "1", "mode": "wait"}}',
            -32602,
            "a",
        ),
        ('{"jsonrpc": "2.0", "id": "a", "method": "control", "params": {"action": "cancel"}}', -32602, "a"),
        ("[" * 5000, -32700, None),
    ],
)
async def test_what_is_no_good_request(rpc: Rpc, frame: str, number: int, own: str | None) -> None:
    """Each is answered with the standard's number and the id as far as it can be known; the socket stays."""
    answer = await rpc.raw(frame)

    assert (answer["id"], answer["error"]["code"]) == (own, number)
    assert set(answer["error"]["data"]) == {"code", "reason", "retry_after_s"}
    assert (await rpc.call("ping"))["principal"] == "rpc-owner"


async def test_a_notification_is_not_answered(rpc: Rpc, owner: Client) -> None:
    """A request without an id is carried out, or not, in silence."""
    await rpc.socket.send_json({"jsonrpc": "2.0", "method": "no.such"})
    await rpc.socket.send_json({"jsonrpc": "2.0", "method": "contexts.close", "params": {"name": "none"}})

    assert (await rpc.call("ping"))["principal"] == "rpc-owner"


async def test_an_answer_that_nobody_asked_for(rpc: Rpc) -> None:
    """An answer to no request of the gateway's does nothing."""
    await rpc.socket.send_json({"jsonrpc": "2.0", "id": "gateway-1", "result": 1})

    assert (await rpc.call("ping"))["principal"] == "rpc-owner"


async def test_describe(rpc: Rpc) -> None:
    """Every method is described with JSON Schemas that are schemas, and that its own result satisfies."""
    described = await rpc.call("describe")

    for method in described["methods"]:
        for schema in filter(None, (method["params"], method["result"])):
            jsonschema.Draft202012Validator.check_schema(schema)
    [own] = [method for method in described["methods"] if method["name"] == "describe"]
    jsonschema.validate(described, own["result"])
    [execute] = [method for method in described["methods"] if method["name"] == "execute"]
    assert {"code", "kernel_id", "detach", "tools"} <= set(execute["params"]["properties"])
    assert not {"mode", "wait_s"} & set(execute["params"]["properties"])


async def test_too_many_at_once(rpc: Rpc, kernel_id: str) -> None:
    """The request past the bound is refused, those before it go on, and afterwards there is room again."""
    slow = await rpc.call("start", code=SLEEP, kernel_id=kernel_id)
    waiting = [
        await rpc.ask("get", execution_id=slow["execution_id"], wait_s=30) for _ in range(MAX_REQUESTS)
    ]

    with pytest.raises(RpcError) as refused:
        await rpc.call("ping")

    assert (refused.value.number, refused.value.code, refused.value.reason) == (
        -32029,
        "limit_reached",
        "requests",
    )
    async with connected_like(rpc) as other:
        await other.call("control", action="cancel", execution_id=slow["execution_id"])
    views = await asyncio.wait_for(asyncio.gather(*waiting), 20)
    assert {view["status"] for view in views} == {"cancelled"}
    assert await rpc.call("ping")


async def test_the_same_id_twice(rpc: Rpc, kernel_id: str) -> None:
    """A second request under an id that is under way is refused: its answers could not be told apart."""
    slow = await rpc.call("start", code=SLEEP, kernel_id=kernel_id)
    body = {"execution_id": slow["execution_id"], "wait_s": 30}
    await rpc.socket.send_json({"jsonrpc": "2.0", "id": "same", "method": "get", "params": body})

    answer = await rpc.raw('{"jsonrpc": "2.0", "id": "same", "method": "ping"}')

    assert (answer["error"]["code"], answer["error"]["data"]["reason"]) == (-32600, "id")
    first = rpc.expect()
    await rpc.call("control", action="cancel", execution_id=slow["execution_id"])
    assert (await first)["result"]["id"] == slow["execution_id"]


async def test_a_frame_that_is_too_large() -> None:
    """A frame past the bound closes the socket with 1009."""
    with running("--no-keep", env={"CELLBLOCK_SERVER__MAX_FRAME_BYTES": "65536"}) as small:
        async with opened(small) as rpc:
            await rpc.socket.send_str("x" * 70_000)
            assert await eventually(lambda: rpc.socket.closed)
            assert rpc.socket.close_code == 1009


async def test_without_an_upgrade(owner: Client) -> None:
    """A plain GET is told what this route speaks, and a handshake without a key is refused."""
    refused = await owner.json("GET", "/api/rpc", status=400)

    assert "WebSocket" in refused["message"]
    async with aiohttp.ClientSession(str(owner.http._base_url)) as nobody:
        with pytest.raises(aiohttp.WSServerHandshakeError) as handshake:
            await nobody.ws_connect("/api/rpc")
    assert handshake.value.status == 401


# -- executions ---------------------------------------------------------------------------------------------


async def test_what_is_told_meanwhile(rpc: Rpc, kernel_id: str) -> None:
    """The notifications of an execution come in order, numbered without gaps, and before its answer."""
    view = await rpc.call("execute", code="print('one')\n2", kernel_id=kernel_id)

    told = [(method, params) for method, params in rpc.told if params["execution_id"] == view["id"]]
    assert [method for method, _ in told] == [
        "execution.accepted",
        "execution.started",
        "execution.output",
        "execution.output",
        "execution.task_completed",
        "execution.completed",
    ]
    assert [params["cursor"] for _, params in told] == list(range(len(told)))
    assert told[0][1]["request_id"] in range(1, 100)
    assert told[2][1] | {"text": "one\n", "type": "stdout", "task": 0} == told[2][1]
    assert told[3][1]["data"]["text/plain"] == "2"
    assert (view["status"], view["result"]["stdout"], view["cursor"]) == (
        "ok",
        "one\n",
        told[-1][1]["cursor"],
    )


async def test_resume_after_a_drop(owner: Client, kernel_id: str) -> None:
    """Whoever comes back with the last cursor misses nothing and gets nothing twice."""
    count = "import time\nfor n in range(40): print(n, flush=True); time.sleep(.03)"
    seen: list[dict[str, Any]] = []
    async with connected(owner) as first:
        begun = (await first.call("start", code=count, kernel_id=kernel_id))["execution_id"]
        await first.call("subscribe", execution_id=begun)
        while len(seen) < 6:
            await asyncio.sleep(0.02)
            seen = first.events(begun)
        await first.socket.close()
    for _ in range(2):
        async with connected(owner) as again:
            await again.call("subscribe", execution_id=begun, cursor=seen[-1]["cursor"])
            if _ == 0:
                await again.until("execution.output")
            else:
                await again.until("execution.completed")
            await again.socket.close()
            seen += again.events(begun)

    assert [event["cursor"] for event in seen] == list(range(1, len(seen) + 1))
    assert text(seen) == "".join(f"{n}\n" for n in range(40))
    assert seen[-1]["status"] == "ok"


async def test_a_gap_is_told() -> None:
    """Where more was said than is kept, a late subscriber is told how much is missing, and gets the rest."""
    with running("--no-keep", env={"CELLBLOCK_EXECUTIONS__JOURNAL_BYTES": "65536"}) as small:
        async with opened(small) as rpc:
            flood = "for n in range(20_000): print(n, 'x' * 60)"
            view = await rpc.call("execute", code=flood, detach=True, text_chars=1000)
            await rpc.call("subscribe", execution_id=view["id"], cursor=0)
            gap = await rpc.until("execution.gap")
            done = await rpc.until("execution.completed", cursor=view["cursor"])

    assert gap["bytes"] > 100_000
    assert done["status"] == "ok"
    assert len(view["result"]["stdout"]) < 1100


async def test_detached(owner: Client, kernel_id: str) -> None:
    """An execution that was asked to goes on after its connection has dropped."""
    async with connected(owner) as rpc:
        await rpc.ask(
            "execute", code="import time; time.sleep(1); print('done')", kernel_id=kernel_id, detach=True
        )
        begun = (await rpc.until("execution.started"))["execution_id"]
    async with connected(owner) as rpc:
        view = await rpc.call("get", execution_id=begun, wait_s=20)

    assert (view["status"], view["result"]["stdout"]) == ("ok", "done\n")


async def test_the_same_key_begins_nothing_new(rpc: Rpc, kernel_id: str) -> None:
    """A request that is sent again under its key, by a client that saw no answer, is the same execution."""
    key = uuid4().hex
    once = await rpc.call("execute", code="print('once')", kernel_id=kernel_id, idempotency_key=key)
    twice = await rpc.call("execute", code="print('once')", kernel_id=kernel_id, idempotency_key=key)

    assert once["id"] == twice["id"]
    with pytest.raises(RpcError) as other:
        await rpc.call("start", code="print('other')", kernel_id=kernel_id, idempotency_key=key)
    assert (other.value.number, other.value.code) == (-32009, "conflict")


async def test_pause_and_resume(rpc: Rpc, kernel_id: str, owner: Client) -> None:
    """A paused execution does not run, and says so; resumed it goes on to its end."""
    count = "import time\nfor n in range(10): print(n, flush=True); time.sleep(.1)"
    answer = await rpc.ask("execute", code=count, kernel_id=kernel_id)
    begun = (await rpc.until("execution.output"))["execution_id"]

    await rpc.call("control", action="pause", execution_id=begun)
    await rpc.until("execution.paused", execution_id=begun)
    assert (await owner.kernel(kernel_id))["paused"]
    before = len(rpc.events(begun))
    await asyncio.sleep(0.5)
    assert len(rpc.events(begun)) <= before + 1
    await rpc.call("control", action="resume", execution_id=begun)
    await rpc.until("execution.resumed", execution_id=begun)

    view = await asyncio.wait_for(answer, 20)
    assert view["result"]["stdout"] == "".join(f"{n}\n" for n in range(10))


async def test_tasks_and_text(rpc: Rpc, kernel_id: str) -> None:
    """A list of tasks stops at the error, is told task by task, and its texts can be had in parts."""
    tasks = [{"code": "print('a' * 1000)"}, {"code": "1 / 0", "name": "wrong"}, {"code": "print('never')"}]
    view = await rpc.call("execute", tasks=tasks, kernel_id=kernel_id)

    assert [task["status"] for task in view["tasks"]] == ["ok", "error", "aborted"]
    ended = [params for method, params in rpc.told if method == "execution.task_completed"]
    assert [(each["task"], each["status"]) for each in ended] == [(0, "ok"), (1, "error")]
    part = await rpc.call("text", execution_id=view["id"], what="stdout", offset=990, limit=8)
    assert (part["text"], part["next_offset"], part["total"]) == ("a" * 8, 998, 1001)


async def test_control_of_a_kernel(rpc: Rpc, owner: Client, kernel_id: str) -> None:
    """A kernel can be interrupted and restarted by its own id."""
    answer = await rpc.ask("execute", code=SLEEP, kernel_id=kernel_id)
    await rpc.until("execution.output")
    await rpc.call("control", action="interrupt", kernel_id=kernel_id)
    assert (await asyncio.wait_for(answer, 20))["status"] == "interrupted"

    await rpc.call("execute", code="kept = 1", kernel_id=kernel_id)
    restarted = await rpc.call("control", action="restart", kernel_id=kernel_id)
    assert restarted["id"] == kernel_id
    view = await rpc.call("execute", code="kept", kernel_id=kernel_id)
    assert view["result"]["error"]["ename"] == "NameError"


async def test_too_many_subscriptions(rpc: Rpc, kernel_id: str) -> None:
    """Only so many executions are followed at a time; those that have ended take no place."""
    ended = await rpc.call("execute", code="1", kernel_id=kernel_id)
    for _ in range(MAX_FEEDS + 1):
        await rpc.call("subscribe", execution_id=ended["id"])
    going = await rpc.call("start", code=SLEEP, kernel_id=kernel_id)
    queued = [
        (await rpc.call("start", code="1", kernel_id=kernel_id))["execution_id"] for _ in range(MAX_FEEDS)
    ]
    for execution_id in (going["execution_id"], *queued[:-1]):
        await rpc.call("subscribe", execution_id=execution_id)
    with pytest.raises(RpcError) as refused:
        await rpc.call("subscribe", execution_id=queued[-1])
    assert (refused.value.code, refused.value.reason) == ("limit_reached", "subscriptions")

    await rpc.call("unsubscribe", execution_id=queued[0])
    await rpc.call("subscribe", execution_id=queued[-1])
    await rpc.call("control", action="cancel", execution_id=going["execution_id"])
    await rpc.until("execution.completed", execution_id=queued[-1])


# -- kernels, contexts, files -------------------------------------------------------------------------------


async def test_kernels_and_contexts(rpc: Rpc, owner: Client) -> None:
    """Kernels and contexts are made, shown, listed and ended as over REST."""
    made = await rpc.call("kernels.create", name="python3", env={"KERNEL_MARK": "m"})
    assert made["id"] in {kernel["id"] for kernel in await rpc.call("kernels.list")}
    assert (await rpc.call("kernels.get", kernel_id=made["id"]))["owner"] == "rpc-owner"
    assert (await rpc.call("kernels.usage", kernel_id=made["id"]))["memory_bytes"] > 0
    assert await rpc.call("kernels.delete", kernel_id=made["id"]) is None

    context = await rpc.call("contexts.open", name="chat:1", ttl_s=600)
    await rpc.call("execute", code="kept = 7", context="chat:1")
    view = await rpc.call("execute", code="kept", context="chat:1")
    assert view["kernel_id"] == context["kernel_id"]
    assert view["result"]["outputs"][0]["data"]["text/plain"] == "7"
    assert (await rpc.call("contexts.keep", name="chat:1"))["name"] == "chat:1"
    assert [each["name"] for each in await rpc.call("contexts.list")] == ["chat:1"]
    assert await rpc.call("contexts.close", name="chat:1") is None
    assert {context["kernel_id"], made["id"]}.isdisjoint(
        kernel["id"] for kernel in await owner.json("GET", "/api/kernels")
    )


async def test_files(rpc: Rpc, kernel_id: str) -> None:
    """Files are written, read in parts, edited and removed, and nothing is overwritten by mistake."""

    async def call(method: str, **params: Any) -> Any:
        return await rpc.call(f"files.{method}", kernel_id=kernel_id, **params)

    await call("mkdir", path="data/in")
    written = await call("write", path="data/in/a.txt", text="grün\n")
    assert written["sha256"] == hashlib.sha256("grün\n".encode()).hexdigest()
    with pytest.raises(RpcError) as changed:
        await call("write", path="data/in/a.txt", text="x", expected_sha256="0" * 64)
    assert (changed.value.number, changed.value.code) == (-32012, "precondition_failed")
    with pytest.raises(RpcError):
        await call("write", path="data/in/a.txt", text="x", absent=True)
    await call("append", path="data/in/a.txt", text="blau\n")
    await call("edit", path="data/in/a.txt", old="grün", new="rot")
    with pytest.raises(RpcError) as conflict:
        await call("edit", path="data/in/a.txt", old="rot", new="x", expected_replacements=2)
    assert conflict.value.reason == "replacements"
    part = await call("read", path="data/in/a.txt", offset=4, limit=4)
    assert (part["text"], part["size"], part["next_offset"]) == ("blau", 9, 8)

    raw = bytes(range(256))
    await call("write", path="raw", data=b64encode(raw).decode())
    assert b64decode((await call("read", path="raw", encoding="base64"))["data"]) == raw
    view = await rpc.call("execute", code="print(len(open('raw', 'rb').read()))", kernel_id=kernel_id)
    assert view["result"]["stdout"] == "256\n"
    await call("move", path="raw", to="data/raw")
    listed = await call("list", recursive=True)
    assert {"data/raw", "data/in/a.txt"} <= {each["path"] for each in listed["files"]}
    assert (await call("stat", path="data/raw"))["size"] == 256
    await call("delete", path="data", recursive=True)
    for wrong in ("../etc/passwd", "/etc/passwd", "data/raw"):
        with pytest.raises(RpcError):
            await call("read", path=wrong)
    with pytest.raises(RpcError) as no_base64:
        await call("write", path="raw", data="?")
    assert (no_base64.value.number, no_base64.value.reason) == (-32602, "data")


async def test_commands_and_processes(rpc: Rpc, kernel_id: str) -> None:
    """Commands and processes run beside a busy kernel: input, output by a cursor, signals, a look around."""
    slow = await rpc.call("start", code=SLEEP, kernel_id=kernel_id)

    async def call(method: str, **params: Any) -> Any:
        return await rpc.call(method, kernel_id=kernel_id, **params)

    done = await call("command.run", command="cat; exit 3", stdin="in")
    assert (done["status"], done["exit_code"], done["stdout"]) == ("error", 3, "in")
    process = await call("process.start", argv=["cat"])
    await call("process.input", process_id=process["id"], text="one\n")
    output = await call("process.read", process_id=process["id"], wait_s=10)
    assert [chunk["text"] for chunk in output["chunks"]] == ["one\n"]
    assert process["pid"] in {each["pid"] for each in await call("system.tree")}
    await call("process.signal", process_id=process["id"], signal="TERM")
    output = await call("process.read", process_id=process["id"], cursor=output["cursor"], wait_s=10)
    assert (output["process"]["state"], output["process"]["exit_code"]) == ("ended", -15)
    assert [each["id"] for each in await call("process.list")] == [process["id"]]
    await call("process.remove", process_id=process["id"])
    assert await call("process.list") == []
    sleeper = await call("process.start", command="sleep 60")
    await call("system.kill", pid=sleeper["pid"], signal="KILL")
    output = await call("process.read", process_id=sleeper["id"], wait_s=10)
    assert output["process"]["exit_code"] == -9
    assert (await call("system.snapshot"))["memory_bytes"] > 0
    with pytest.raises(RpcError) as wrong:
        await call("process.signal", process_id=sleeper["id"], signal="NONE")
    assert (wrong.value.number, wrong.value.reason) == (-32602, "signal")

    assert (await rpc.call("get", execution_id=slow["execution_id"]))["status"] == "running"
    await rpc.call("control", action="cancel", execution_id=slow["execution_id"])


async def test_a_command_ends_with_its_connection(owner: Client, kernel_id: str) -> None:
    """A command whose connection drops is killed."""
    async with connected(owner) as rpc:
        await rpc.ask("command.run", kernel_id=kernel_id, command="exec -a left-alone sleep 60")
        async with asyncio.timeout(20):
            while not await found(rpc, kernel_id, "left-alone"):
                await asyncio.sleep(0.05)
        await rpc.socket.close()
    async with connected(owner) as rpc, asyncio.timeout(20):
        while await found(rpc, kernel_id, "left-alone"):
            await asyncio.sleep(0.05)


async def found(rpc: Rpc, kernel_id: str, name: str) -> bool:
    """Tell whether a process of this name runs in a cell."""
    tree = await rpc.call("system.tree", kernel_id=kernel_id)
    return any(each["command"].startswith(name) for each in tree)


# -- tools --------------------------------------------------------------------------------------------------

CALLS = """
import asyncio, cellblock
async def main():
    return await asyncio.gather(*(cellblock.acall("double", number=n) for n in range(5)))
print(await main())
try:
    cellblock.call("fail")
except cellblock.ToolError as error:
    print("refused:", error)
"""


async def test_tools_that_call_back(owner: Client, kernel_id: str) -> None:
    """Code calls the tools of the connection that offered them, in parallel, and sees what goes wrong."""
    together = asyncio.Barrier(5)

    async def double(number: int) -> int:
        async with asyncio.timeout(20):
            await together.wait()
        return number * 2

    async def fail() -> None:
        raise ValueError("no such thing")

    offers = [{"name": "double"}, {"name": "fail", "description": "Fails."}]
    async with connected(owner, {"double": double, "fail": fail}) as rpc:
        view = await rpc.call("execute", code=CALLS, kernel_id=kernel_id, tools=offers)

    lines = view["result"]["stdout"].splitlines()
    assert lines[0] == "[0, 2, 4, 6, 8]", view["result"]
    assert "no such thing" in lines[1]


async def test_a_tool_call_waits_for_who_comes_back(owner: Client, kernel_id: str) -> None:
    """A call that a dropped connection did not answer is put again to the one that subscribes with tools."""
    code = "import cellblock; print(cellblock.call('ask'))"
    async with connected(owner) as rpc:
        begun = (await rpc.call("start", code=code, kernel_id=kernel_id, tools=[{"name": "ask"}]))[
            "execution_id"
        ]
        await rpc.call("subscribe", execution_id=begun)
        cursor = (await rpc.until("execution.tool_call", name="ask"))["cursor"]

    async def ask() -> dict[str, int]:
        return {"answer": 42}

    async with connected(owner, {"ask": ask}) as rpc:
        await rpc.call("subscribe", execution_id=begun, cursor=cursor, tools=True)
        await rpc.until("execution.completed", execution_id=begun)
        view = await rpc.call("get", execution_id=begun)

    assert view["result"]["stdout"] == "{'answer': 42}\n"


async def test_a_tool_call_answered_by_a_request(rpc: Rpc, kernel_id: str) -> None:
    """A subscriber without tools sees the call and may answer it by the method `answer`, once."""
    code = "import cellblock; print(cellblock.call('ask', what='it'))"
    offers = [{"name": "ask"}]
    begun = (await rpc.call("start", code=code, kernel_id=kernel_id, tools=offers))["execution_id"]
    await rpc.call("subscribe", execution_id=begun)
    asked = await rpc.until("execution.tool_call", execution_id=begun)

    await rpc.call("answer", execution_id=begun, call_id=asked["call_id"], result=[asked["arguments"]])
    with pytest.raises(RpcError) as again:
        await rpc.call("answer", execution_id=begun, call_id=asked["call_id"], result=1)

    assert again.value.code == "not_found"
    await rpc.until("execution.tool_answer", call_id=asked["call_id"])
    await rpc.until("execution.completed", execution_id=begun)
    assert (await rpc.call("get", execution_id=begun))["result"]["stdout"] == "[{'what': 'it'}]\n"


# -- who may do what, and what is left ----------------------------------------------------------------------


async def test_scopes(gateway: Gateway, kernel_id: str) -> None:
    """A key does by this door what it may do by REST, and nothing more."""
    wanted = {
        "kernels": {"kernels.list": {}, "control": {"action": "interrupt", "kernel_id": kernel_id}},
        "execute": {"execute": {"code": "1", "kernel_id": kernel_id}, "list": {}},
        "files": {"files.list": {"kernel_id": kernel_id}},
    }
    for scope in wanted:
        async with opened(gateway, "rpc-owner", scope) as rpc:
            for needed, calls in wanted.items():
                for method, params in calls.items():
                    if needed == scope:
                        await rpc.call(method, **params)
                        continue
                    with pytest.raises(RpcError) as refused:
                        await rpc.call(method, **params)
                    assert (refused.value.number, refused.value.reason) == (-32003, "missing_scope"), method


async def test_everything_of_anothers_is_not_there(gateway: Gateway, owner: Client, kernel_id: str) -> None:
    """Every method that names a kernel, context or execution says the same of another's as of none."""
    nowhere = str(uuid4())
    async with connected(owner) as rpc, opened(gateway, "rpc-stranger") as stranger:
        await rpc.call("contexts.open", name="theirs")
        described = (await rpc.call("describe"))["methods"]
        tried = 0
        for method in described:
            names = method["params"].get("properties", {})
            if "kernel_id" not in names and "name" not in names:
                continue
            if method["name"] in {"kernels.create", "contexts.open"}:
                continue
            answers = []
            for kernel, context in ((kernel_id, "theirs"), (nowhere, "nobodys")):
                given = {"kernel_id": kernel} if "kernel_id" in names else {"name": context}
                with pytest.raises(RpcError) as refused:
                    await stranger.call(method["name"], **given, **MORE.get(method["name"], {}))
                assert refused.value.code == "not_found", method["name"]
                answers.append(repr(refused.value.args).replace(kernel, "ID").replace(context, "ID"))
            assert answers[0] == answers[1], method["name"]
            tried += 1
        await rpc.call("contexts.close", name="theirs")
    assert tried >= 15


MORE: dict[str, dict[str, Any]] = {
    "execute": {"code": "1"},
    "start": {"code": "1"},
    "control": {"action": "interrupt"},
    "command.run": {"command": "id"},
    "process.start": {"command": "id"},
    "process.input": {"process_id": "p", "text": "x"},
    "process.read": {"process_id": "p"},
    "process.signal": {"process_id": "p", "signal": "INT"},
    "process.remove": {"process_id": "p"},
    "system.kill": {"pid": 1},
    "files.stat": {"path": "a"},
    "files.read": {"path": "a"},
    "files.write": {"path": "a", "text": "x"},
    "files.append": {"path": "a", "text": "x"},
    "files.edit": {"path": "a", "old": "a", "new": "b"},
    "files.mkdir": {"path": "a"},
    "files.move": {"path": "a", "to": "b"},
    "files.delete": {"path": "a"},
}


async def test_what_is_done_is_recorded(gateway: Gateway, owner: Client, kernel_id: str) -> None:
    """A connection's begin and end, what it did, and what was refused stand in the trail, by this door."""
    async with connected(owner) as rpc:
        await rpc.call("files.write", kernel_id=kernel_id, path="told", text="x")
        await rpc.call("execute", code="1", kernel_id=kernel_id)
        with pytest.raises(RpcError):
            await rpc.call("kernels.delete", kernel_id=str(uuid4()))

    def mine() -> list[dict[str, Any]]:
        found = [r for r in trail(gateway) if r.get("who") == "rpc-owner" and r["door"] == "rpc"]
        opened = max(n for n, r in enumerate(found) if r["action"] == "channels.open")
        # the connection of the test before may still be closing
        return [r for r in found[opened:] if r["request_id"].startswith(found[opened]["request_id"])]

    assert await eventually(lambda: mine()[-1]["action"] == "channels.close")
    records = mine()
    assert [r["action"] for r in records] == [
        "channels.open",
        "file.write",
        "job.create",
        "execution.end",
        "access.refused",
        "channels.close",
    ]
    assert records[0]["target"] == records[-1]["target"] == "rpc"
    assert records[4]["target"] == "GET /api/rpc kernels.delete"
    assert records[-1]["extra"] == {"requests": 3, "refused": 1}
    # each request has a name of its own below the connection's
    names = [r["request_id"] for r in records]
    assert len({names[0], names[1], names[2], names[4]}) == 4


async def test_a_key_that_has_ended(gateway: Gateway) -> None:
    """When its key is revoked, a connection is closed with 1008, and what hangs on it is interrupted."""
    token = await command(gateway, "create", "rpc-late")
    async with authorized(gateway, token) as late, connected(late) as rpc:
        answer = await rpc.ask("execute", code=SLEEP)
        await rpc.until("execution.output")
        await command(gateway, "revoke", "rpc-late")

        assert await eventually(lambda: rpc.socket.closed)
        assert rpc.socket.close_code == 1008
        with pytest.raises(ConnectionError):
            await answer
    async with gateway.client("rpc-late") as again:
        assert await none_left(again)


async def none_left(client: Client) -> bool:
    """Tell whether an owner's kernels come to an end by themselves."""
    async with asyncio.timeout(15):
        while await client.json("GET", "/api/kernels"):
            await asyncio.sleep(0.1)
    return True


async def test_sockets_are_counted() -> None:
    """An owner has as many connections as the quota says, those to kernels included."""
    with running("--no-keep", env={"CELLBLOCK_QUOTAS__SOCKETS": "1"}) as few:
        async with few.client() as alice, connected(alice):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await alice.http.ws_connect("/api/rpc")
            assert refused.value.status == 429
        async with few.client() as alice, connected(alice) as rpc:
            assert await rpc.call("ping")


async def test_a_gateway_that_ends(owner: Client) -> None:
    """A gateway that is told to end closes the connection with 1012, and interrupts what hangs on it."""
    with running("--no-keep") as ending:
        async with ending.client() as alice, connected(alice) as rpc:
            answer = await rpc.ask("execute", code=SLEEP)
            await rpc.until("execution.output")
            await asyncio.to_thread(ending.end)
            assert await eventually(lambda: rpc.socket.closed)
            assert rpc.socket.close_code == 1012
            with pytest.raises(ConnectionError):
                await answer


async def test_a_slow_reader_holds_nobody_up(gateway: Gateway, owner: Client, kernel_id: str) -> None:
    """A client that does not read is waited for alone: others are served, and its own gets all in the end."""
    flood = "for n in range(30_000): print('x' * 200)"
    async with connected(owner) as other, owner.http.ws_connect("/api/rpc", max_msg_size=0) as slow:
        body = {"jsonrpc": "2.0", "id": 1, "method": "execute"}
        await slow.send_json(body | {"params": {"code": flood, "kernel_id": kernel_id, "text_chars": 200}})
        await until_state(owner, kernel_id, "busy")
        await until_state(owner, kernel_id, "idle", 30)
        assert (await asyncio.wait_for(other.call("ping"), 5))["principal"] == "rpc-owner"
        last: dict[str, Any] = {}
        async with asyncio.timeout(30):
            while "result" not in last:
                last = await slow.receive_json()
    assert last["result"]["status"] == "ok"


def connected_like(rpc: Rpc) -> Any:
    """Open another connection of the same owner's."""
    session = rpc.socket._response._session
    assert session is not None
    from tests.gateway import Client

    return connected(Client(session))


async def test_a_connection_that_drops_at_once(gateway: Gateway) -> None:
    """Whenever a connection drops, before, while or after its kernel starts, its code does not go on."""
    async with gateway.client("rpc-dropper") as dropper:
        for wait_s in (0.0, 0.01, 0.05, 0.3, 0.6):
            async with connected(dropper) as rpc:
                await rpc.ask("execute", code=SLEEP)
                await asyncio.sleep(wait_s)
                await rpc.socket.close()
        assert await none_left(dropper)
        assert not [job for job in await dropper.json("GET", "/api/executions") if job["ended_at"] is None]
