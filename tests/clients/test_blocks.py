"""Result blocks: tool calls that are answered as otari's code-execution contract, version 1, has it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp
import jsonschema
import pytest

from tests.lifecycle import until_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.gateway import Client, Gateway

BASE = "/otari/v1/sessions"
# The contract's schema of an answer, as its OpenAPI document has it.
ANSWER = {
    "type": "object",
    "required": ["tool_use_id", "result_block"],
    "properties": {
        "tool_use_id": {"type": "string"},
        "execution_time_ms": {"type": "integer", "minimum": 0},
        "result_block": {
            "type": "object",
            "required": ["type", "tool_use_id", "content"],
            "properties": {
                "type": {"type": "string"},
                "tool_use_id": {"type": "string"},
                "content": {
                    "type": "object",
                    "properties": {
                        "type": {"const": "code_execution_result"},
                        "stdout": {"type": "string"},
                        "stderr": {"type": "string"},
                        "return_code": {"type": "integer"},
                        "content": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["file_id", "filename"],
                                "properties": {
                                    "type": {"const": "code_execution_output"},
                                    "file_id": {"type": "string"},
                                    "filename": {"type": "string"},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


@pytest.fixture(scope="module")
async def owner(gateway: Gateway) -> AsyncIterator[Client]:
    """An owner of this module's own."""
    async with gateway.client("blocks-owner") as client:
        yield client


@pytest.fixture(scope="module")
async def session(owner: Client) -> AsyncIterator[str]:
    """A session that the tests share."""
    made = await owner.json("POST", BASE, {"idle_timeout_seconds": 300}, status=201)
    yield made["session_id"]
    await owner.json("DELETE", f"{BASE}/{made['session_id']}", status=204)


async def call(client: Client, session: str, tool: str, *, status: int = 200, **wanted: Any) -> Any:
    """Make a tool call; return what came of it, or the error."""
    timeout = {"timeout_seconds": wanted.pop("timeout_seconds")} if "timeout_seconds" in wanted else {}
    body = {"tool": tool, "input": wanted, "tool_use_id": "srvtoolu_1", **timeout}
    answer = await client.json("POST", f"{BASE}/{session}/exec", body, status=status)
    if status != 200:
        return answer
    jsonschema.validate(answer, ANSWER)
    block = answer["result_block"]
    assert (block["type"], block["tool_use_id"], answer["tool_use_id"]) == (
        f"{tool}_tool_result",
        "srvtoolu_1",
        "srvtoolu_1",
    )
    return block["content"]


async def test_a_session_and_its_times(owner: Client) -> None:
    """A session says what is in force: what was asked for, or less; released it is gone."""
    asked = {"idle_timeout_seconds": 30, "max_lifetime_seconds": 10**9, "more": "ignored"}
    made = await owner.json("POST", BASE, asked, status=201)

    assert made["idle_timeout_seconds"] == 30
    assert 0 < made["max_lifetime_seconds"] < 10**9
    await owner.json("DELETE", f"{BASE}/{made['session_id']}", status=204)
    await owner.json("DELETE", f"{BASE}/{made['session_id']}", status=404)
    await call(owner, made["session_id"], "code_execution", code="1", status=404)


async def test_code(owner: Client, session: str) -> None:
    """Code keeps its state; what it prints, its value, its files and its failure are in the block."""
    first = await call(
        owner, session, "code_execution", code="open('made.txt', 'w').write('x'); n = 20\nprint('hi')\nn + 1"
    )
    assert (first["stdout"], first["stderr"], first["return_code"]) == ("hi\n21\n", "", 0)
    assert [(each["file_id"], each["filename"]) for each in first["content"]] == [("made.txt", "made.txt")]

    failed = await call(owner, session, "code_execution", code="print(n)\n1 / 0")
    assert (failed["stdout"], failed["return_code"]) == ("20\n", 1)
    assert "ZeroDivisionError: division by zero" in failed["stderr"]
    assert "\x1b" not in failed["stderr"]

    late = await call(owner, session, "code_execution", code="import time; time.sleep(60)", timeout_seconds=1)
    assert late["return_code"] == 124
    assert "time limit" in late["stderr"]


async def test_commands(owner: Client, session: str) -> None:
    """A command runs in the same home; its exit code, files and time limit are in the block."""
    done = await call(
        owner, session, "bash_code_execution", command="echo a; echo b >&2; touch by-bash; exit 3"
    )
    assert (done["stdout"], done["stderr"], done["return_code"]) == ("a\n", "b\n", 3)
    assert [each["filename"] for each in done["content"]] == ["by-bash"]

    killed = await call(owner, session, "bash_code_execution", command="kill -9 $$")
    assert killed["return_code"] == 137
    late = await call(owner, session, "bash_code_execution", command="sleep 60", timeout_seconds=1)
    assert late["return_code"] == 124


async def test_the_editor(owner: Client, session: str) -> None:
    """Files are made, shown, changed; a change that does not fit is told, and changes nothing."""

    async def edit(command: str, **more: Any) -> Any:
        return await call(
            owner, session, "text_editor_code_execution", command=command, path="notes.txt", **more
        )

    assert (await edit("create", file_text="one\ntwo\ntwo\n"))["return_code"] == 0
    assert (await edit("view"))["stdout"] == "one\ntwo\ntwo\n"
    assert (await edit("view", view_range=[2, -1]))["stdout"] == "two\ntwo\n"
    assert (await edit("str_replace", old_str="one", new_str="eins"))["return_code"] == 0
    assert (await edit("insert", insert_line=1, new_str="new"))["return_code"] == 0
    assert (await edit("view", view_range=[1, 3]))["stdout"] == "eins\nnew\ntwo\n"
    for wrong in (
        {"command": "str_replace", "old_str": "two", "new_str": "x"},
        {"command": "str_replace", "old_str": "absent", "new_str": "x"},
        {"command": "insert", "insert_line": 99, "new_str": "x"},
        {"command": "view", "view_range": [9, 9]},
        {"command": "create"},
        {"command": "undo_edit"},
    ):
        refused = await edit(**wrong)
        assert refused["return_code"] == 1, wrong
        assert refused["stderr"], wrong
    assert (await edit("view"))["stdout"] == "eins\nnew\ntwo\ntwo\n"
    outside = {"command": "view", "path": "../../etc/passwd"}
    assert (await call(owner, session, "text_editor_code_execution", **outside))["return_code"] == 1


async def test_files(owner: Client, session: str) -> None:
    """Files go in by a form and come out as they are; a path out of the home is 403, none there 404."""
    form = aiohttp.FormData()
    form.add_field("path", "in/data.bin")
    form.add_field("file", bytes(range(256)), filename="data.bin")
    await call(owner, session, "bash_code_execution", command="mkdir -p in")
    async with owner.http.post(f"{BASE}/{session}/files", data=form) as response:
        assert (response.status, (await response.json())["size_bytes"]) == (201, 256)

    listed = await owner.json("GET", f"{BASE}/{session}/files/list?path=in")
    assert [(each["path"], each["size_bytes"]) for each in listed["files"]] == [("in/data.bin", 256)]
    async with owner.http.get(f"{BASE}/{session}/files?path=in/data.bin") as response:
        assert await response.read() == bytes(range(256))
    await owner.json("GET", f"{BASE}/{session}/files?path=../../etc/passwd", status=403)
    await owner.json("GET", f"{BASE}/{session}/files?path=absent", status=404)
    async with owner.http.post(f"{BASE}/{session}/files", data=b"x") as response:
        assert response.status == 400


async def test_what_is_refused(owner: Client, session: str) -> None:
    """An unknown tool and an input without its fields are refused before anything runs."""
    await call(owner, session, "no_such_tool", status=400)
    await call(owner, session, "code_execution", status=400)
    await call(owner, session, "text_editor_code_execution", command="delete", path="a", status=400)


async def test_another_owners_session(gateway: Gateway, session: str) -> None:
    """Another's session is answered like one that is not there, by every route."""
    async with gateway.client("blocks-stranger") as stranger:
        for method, end in (
            ("DELETE", ""),
            ("POST", "/exec"),
            ("GET", "/files"),
            ("GET", "/files/list"),
            ("POST", "/files"),
        ):
            answers = []
            for name in (session, "nobodys"):
                body = {"tool": "code_execution", "input": {"code": "1"}} if end == "/exec" else None
                async with stranger.http.request(method, f"{BASE}/{name}{end}?path=a", json=body) as response:
                    answers.append((response.status, (await response.text()).replace(name, "ID")))
            assert answers[0] == answers[1]
            assert answers[0][0] == 404, end


async def test_a_client_that_leaves(owner: Client, session: str) -> None:
    """A tool call whose client goes away is interrupted."""
    kernel = (await owner.json("GET", f"/api/contexts/{session}"))["kernel_id"]
    task = asyncio.create_task(call(owner, session, "code_execution", code="import time; time.sleep(60)"))
    await until_state(owner, kernel, "busy")
    task.cancel()

    await until_state(owner, kernel, "idle", 5)
