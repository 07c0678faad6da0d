"""JSON-RPC against real kernels: kernels, contexts, files, processes, and tools that call back."""

from __future__ import annotations

import asyncio
import hashlib
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.rpc import RpcError, connected
from tests.gateway import Client

if TYPE_CHECKING:
    from tests.clients.rpc import Rpc

SLEEP = "print('begun', flush=True)\nimport time; time.sleep(60)"


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
for name in ("fail", "nested"):
    try:
        cellblock.call(name)
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

    async def nested() -> Any:
        value: Any = 1
        for _ in range(400):
            value = [value]
        return value

    tools = {"double": double, "fail": fail, "nested": nested}
    offers = [{"name": name, "description": "For this test."} for name in tools]
    async with connected(owner, tools) as rpc:
        view = await rpc.call("execute", code=CALLS, kernel_id=kernel_id, tools=offers)

    lines = view["result"]["stdout"].splitlines()
    assert lines[0] == "[0, 2, 4, 6, 8]", view["result"]
    assert "no such thing" in lines[1]
    assert "nested too deeply" in lines[2]


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
