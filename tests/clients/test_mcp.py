"""MCP with the official SDK's client, in the current revision and in an older one: the tools at work."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator
from mcp.shared.exceptions import MCPError

from tests.clients.mcp_client import Refusal, call, over_http, structured
from tests.conftest import ROOM
from tests.gateway import running
from tests.lifecycle import until_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from mcp import Client as McpClient

    from tests.gateway import Client, Gateway

DEFAULT = [
    "create_session",
    "list_sessions",
    "close_session",
    "execute_code",
    "start_execution",
    "get_execution",
    "cancel_execution",
    "interrupt",
    "restart",
    "run_command",
    "read_file",
    "write_file",
    "edit_file",
    "list_files",
    "usage",
]
EXTENDED = [
    "pause",
    "resume",
    "start_process",
    "send_input",
    "read_output",
    "stop_process",
    "list_processes",
    "kill_process",
    "system_snapshot",
    "list_packages",
    "delete_file",
    "move_file",
    "make_directory",
    "answer_tool_calls",
]
PLOT = "import matplotlib.pyplot as plt; plt.plot([1, 3]); plt.savefig('a plot.png'); plt.show()"
SLEEP = "print('begun', flush=True)\nimport time; time.sleep(60)"


@pytest.fixture(scope="module")
def wide() -> Iterator[Gateway]:
    """A gateway that offers the extended tools, looks for idle kernels all the time, and reports often."""
    env = {
        "CELLBLOCK_MCP__EXTENDED": "true",
        "CELLBLOCK_MCP__PROGRESS_S": "0.3",
        "CELLBLOCK_KERNELS__CULL_INTERVAL_S": "0.2",
    }
    with running("--no-keep", env={**ROOM, **env}) as gateway:
        yield gateway


@pytest.fixture(scope="module", params=["auto", "legacy"])
async def mcp(request: pytest.FixtureRequest, wide: Gateway) -> AsyncIterator[McpClient]:
    """A client of alice's, of the current revision and of an older one."""
    async with over_http(wide, mode=request.param) as client:
        yield client


@pytest.fixture(scope="module")
async def alice(wide: Gateway) -> AsyncIterator[Client]:
    """Alice's way to look from the side."""
    async with wide.client() as client:
        yield client


@pytest.fixture(scope="module")
async def session(mcp: McpClient) -> AsyncIterator[str]:
    """A session of alice's."""
    made = await call(mcp, "create_session")
    yield made["session_id"]
    with contextlib.suppress(Refusal):
        await call(mcp, "close_session", session_id=made["session_id"])


async def kernel_of(alice: Client, session: str) -> str:
    """Return the kernel behind a session."""
    return str((await alice.json("GET", f"/api/contexts/{session}"))["kernel_id"])


async def busy(alice: Client, session: str) -> None:
    """Wait until a session's code has printed something: an interrupt is certain to hit it then."""
    kernel = await kernel_of(alice, session)
    path = f"/api/kernels/{kernel}/executions"
    async with asyncio.timeout(20):
        while [each["state"] for each in await alice.json("GET", path)] != ["running"]:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)


async def test_the_server(mcp: McpClient) -> None:
    """Both eras are spoken by one endpoint, which says who it is and what it is for."""
    assert mcp.protocol_version in {"2026-07-28", "2025-11-25"}
    assert mcp.server_info is not None
    assert mcp.server_info.name == "cellblock"
    assert "create_session" in (mcp.instructions or "")


async def test_the_list(mcp: McpClient) -> None:
    """Tools come in one order; their schemas are JSON Schema 2020-12 without references."""
    tools = (await mcp.list_tools()).tools

    assert [tool.name for tool in tools] == DEFAULT + EXTENDED
    for tool in tools:
        for schema in (tool.input_schema, tool.output_schema):
            assert schema is not None
            Draft202012Validator.check_schema(schema)
            assert schema["type"] == "object"
            assert "$ref" not in str(schema)
        assert tool.input_schema["additionalProperties"] is False
        assert tool.annotations is not None
        assert tool.annotations.open_world_hint is False
        assert len(tool.description or "") > 20
    assert (await mcp.list_tools()).tools == tools


async def test_what_tools_say_of_themselves(mcp: McpClient) -> None:
    """Looking is told from doing, and the life of a handle stands where it is made."""
    tools = {tool.name: tool for tool in (await mcp.list_tools()).tools}
    reading = {name for name, tool in tools.items() if tool.annotations and tool.annotations.read_only_hint}

    assert reading == {
        "list_sessions",
        "get_execution",
        "read_file",
        "list_files",
        "usage",
        "read_output",
        "list_processes",
        "system_snapshot",
        "list_packages",
    }
    assert "1800" in (tools["create_session"].description or "")


async def test_by_default_a_dozen(gateway: Gateway) -> None:
    """Without the setting the extended tools are not offered, and not there."""
    async with over_http(gateway) as mcp:
        assert [tool.name for tool in (await mcp.list_tools()).tools] == DEFAULT
        with pytest.raises(MCPError, match="There is no tool 'pause'"):
            await mcp.call_tool("pause", {"session_id": "x"})


async def test_a_session(mcp: McpClient) -> None:
    """Variables and files stay in a session; another call finds it; closed, its handle leads nowhere."""
    made = await call(mcp, "create_session", ttl_s=600)
    session = made["session_id"]
    assert len(session) >= 32
    assert made["limits"]["idle_timeout_s"] == 600
    assert made["expires_at"] > made["created_at"]

    await call(mcp, "execute_code", code="x = 41; open('kept', 'w').write('!')", session_id=session)
    outcome = await call(mcp, "execute_code", code="print(open('kept').read()); x + 1", session_id=session)

    assert (outcome["status"], outcome["stdout"], outcome["execution_count"]) == ("ok", "!\n", 2)
    assert outcome["results"] == [{"text/plain": "42"}]
    assert session in [each["session_id"] for each in (await call(mcp, "list_sessions"))["sessions"]]
    restarted = await call(mcp, "restart", session_id=session)
    assert restarted["session_id"] == session
    assert (await call(mcp, "execute_code", code="x", session_id=session))["error"]["ename"] == "NameError"
    assert await call(mcp, "close_session", session_id=session) == {"session_id": session, "done": True}
    with pytest.raises(Refusal) as refused:
        await call(mcp, "execute_code", code="1", session_id=session)
    assert (refused.value.code, refused.value.reason) == ("not_found", "session")


async def test_a_session_expires(mcp: McpClient) -> None:
    """An idle session ends by itself; its handle is a tool's error then, and not the protocol's."""
    session = (await call(mcp, "create_session", ttl_s=0.5))["session_id"]

    async with asyncio.timeout(15):
        while session in [each["session_id"] for each in (await call(mcp, "list_sessions"))["sessions"]]:
            await asyncio.sleep(0.2)
    result = await mcp.call_tool("usage", {"session_id": session})

    assert result.is_error
    assert result.structured_content is None


async def test_without_a_session(mcp: McpClient, alice: Client) -> None:
    """Code without a session has a fresh kernel, of the kind that is asked for, which ends with it."""
    before = await alice.json("GET", "/api/kernels")
    outcome = await call(mcp, "execute_code", code="echo $((6 * 7))", kernel="bash")

    assert (outcome["status"], outcome["stdout"]) == ("ok", "42\n")
    assert "session_id" not in outcome
    async with asyncio.timeout(10):
        while await alice.json("GET", "/api/kernels") != before:
            await asyncio.sleep(0.1)


async def test_errors_of_the_code(mcp: McpClient, session: str) -> None:
    """An exception is a result: named, with what came before it, and a traceback without colours."""
    outcome = await call(mcp, "execute_code", code="print('before')\n1 / 0", session_id=session)

    assert (outcome["status"], outcome["stdout"]) == ("error", "before\n")
    assert outcome["error"]["ename"] == "ZeroDivisionError"
    assert "----> 2 1 / 0" in outcome["error"]["traceback"]
    assert "\x1b" not in outcome["error"]["traceback"]


@pytest.mark.parametrize(
    ("tool", "arguments", "place"),
    [
        ("execute_code", {}, "code"),
        ("execute_code", {"code": 7}, "code"),
        ("execute_code", {"code": "1", "session": "x"}, "session"),
        ("execute_code", {"code": "1", "timeout_s": -1}, "timeout_s"),
        ("read_file", {"session_id": "x"}, "path"),
    ],
)
async def test_wrong_arguments(mcp: McpClient, tool: str, arguments: dict[str, Any], place: str) -> None:
    """What is wrong with arguments is said to the model, by name, as a tool's error."""
    with pytest.raises(Refusal) as refused:
        await call(mcp, tool, **arguments)

    assert (refused.value.code, refused.value.reason) == ("bad_request", place)


async def test_an_unknown_tool(mcp: McpClient) -> None:
    """A tool that there is not is the protocol's error."""
    with pytest.raises(MCPError) as refused:
        await mcp.call_tool("rm_rf", {})

    assert refused.value.error.code == -32602


async def test_images_and_files(mcp: McpClient, session: str) -> None:
    """An image is content of its own and no text; files that code made are links that can be read."""
    code = f"{PLOT}\nopen('ü.txt', 'w').write('grüße'); None"
    result = await mcp.call_tool("execute_code", {"code": code, "session_id": session})
    outcome = structured(result)

    [image] = [each for each in result.content if each.type == "image"]
    assert image.mime_type == "image/png"
    assert base64.b64decode(image.data).startswith(b"\x89PNG")
    assert "in the content" in outcome["results"][0]["image/png"]
    assert image.data not in str(outcome)
    links = {each.name: each for each in result.content if each.type == "resource_link"}
    assert links.keys() == {"a plot.png", "ü.txt"}
    [text] = (await mcp.read_resource(links["ü.txt"].uri)).contents
    assert (text.mime_type, text.text) == ("text/plain", "grüße")  # type: ignore[union-attr]
    [binary] = (await mcp.read_resource(links["a plot.png"].uri)).contents
    assert binary.mime_type == "image/png"
    assert base64.b64decode(binary.blob).startswith(b"\x89PNG")  # type: ignore[union-attr]
    templates = (await mcp.list_resource_templates()).resource_templates
    assert [each.name for each in templates] == ["file", "output"]


async def test_the_text_copy(mcp: McpClient, session: str) -> None:
    """The first content is what the structure says, as JSON, for hosts that know no structure."""
    result = await mcp.call_tool("execute_code", {"code": "print('ß')", "session_id": session})

    assert result.content[0].type == "text"
    assert '"stdout":"ß\\n"' in result.content[0].text


async def test_long_output(mcp: McpClient, session: str) -> None:
    """Long text keeps head and tail; get_execution has all of it, page by page."""
    whole = "".join(f"{n:063d}\n" for n in range(4096))
    code = "for n in range(4096): print(f'{n:063d}')"
    outcome = await call(mcp, "execute_code", code=code, session_id=session)

    assert outcome["truncated"]
    assert len(outcome["stdout"]) < 21_000
    assert outcome["stdout"].startswith(whole[:640])
    assert outcome["stdout"].endswith(whole[-640:])
    pages, offset = [], 0
    while offset is not None:
        told = await call(mcp, "get_execution", execution_id=outcome["execution_id"], offset=offset)
        assert told["text"]["total"] == len(whole)
        pages.append(told["text"]["text"])
        offset = told["text"].get("next_offset")
    assert "".join(pages) == whole
    [uri] = outcome["full_texts"]
    [full] = (await mcp.read_resource(uri)).contents
    assert full.text == whole  # type: ignore[union-attr]


async def test_many_results_stay_small(mcp: McpClient, session: str) -> None:
    """However much is displayed, an answer fits into an event of what the SDK's client takes."""
    code = "from IPython.display import display, HTML\nfor n in range(200): display(HTML('ä' * 100_000))"
    result = await mcp.call_tool("execute_code", {"code": code, "session_id": session})

    assert structured(result)["status"] == "ok"
    assert len(result.model_dump_json()) < 400_000


async def test_progress(mcp: McpClient, session: str) -> None:
    """Code and commands tell of their progress: numbers that rise, and the end of what was printed."""
    heard: list[tuple[float, str]] = []

    async def told(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message or ""))

    for tool, arguments in (
        ("execute_code", {"code": "import time\nfor n in range(6): print('line', n); time.sleep(.25)"}),
        ("run_command", {"command": "for n in 0 1 2 3 4 5; do echo line $n; sleep .25; done"}),
    ):
        heard.clear()
        await mcp.call_tool(tool, {**arguments, "session_id": session}, progress_callback=told)

        assert len(heard) >= 2, tool
        assert all(a[0] < b[0] for a, b in itertools.pairwise(heard))
        assert "line 0\nline 1\n" in heard[-1][1]


async def test_a_call_is_taken_back(mcp: McpClient, session: str, alice: Client) -> None:
    """A client that cancels a call, as its revision has it, has the code interrupted; the kernel stays."""
    await call(mcp, "execute_code", code="kept = 1", session_id=session)
    running = asyncio.create_task(mcp.call_tool("execute_code", {"code": SLEEP, "session_id": session}))
    await busy(alice, session)

    running.cancel()
    await asyncio.wait({running})

    await until_state(alice, await kernel_of(alice, session), "idle", 5)
    assert (await call(mcp, "execute_code", code="kept", session_id=session))["status"] == "ok"


async def test_by_and_by(mcp: McpClient, session: str, alice: Client) -> None:
    """A started execution is asked after with a cursor, waited for, and stopped for good."""
    code = "import time\nprint('one'); time.sleep(1); print('two')"
    begun = await call(mcp, "start_execution", code=code, session_id=session)
    assert begun["status"] in {"queued", "running"}
    told, cursor, seen = begun, 0, ""
    async with asyncio.timeout(30):
        while told["status"] in {"queued", "running"}:
            seen += told.get("stdout", "")
            told = await call(
                mcp, "get_execution", execution_id=begun["execution_id"], cursor=cursor, wait_s=10
            )
            cursor = told.get("cursor", cursor)

    assert told["status"] == "ok"
    assert told["stdout"] == "one\ntwo\n"
    assert seen.startswith("one\n")
    long = await call(mcp, "start_execution", code=SLEEP, session_id=session)
    await busy(alice, session)
    ended = await call(mcp, "cancel_execution", execution_id=long["execution_id"])
    assert ended["status"] in {"cancelled", "interrupted"}
    again = await call(mcp, "cancel_execution", execution_id=long["execution_id"])
    assert again == ended


async def test_files(mcp: McpClient, session: str) -> None:
    """Files are written, read in parts, changed, listed; who is wrong about what is there changes nothing."""
    written = await call(mcp, "write_file", session_id=session, path="d/a.txt", content="eins zwei zwei\n")
    assert written["created"]
    assert written["sha256"] == hashlib.sha256(b"eins zwei zwei\n").hexdigest()
    with pytest.raises(Refusal, match="precondition_failed"):
        await call(
            mcp, "write_file", session_id=session, path="d/a.txt", content="", expected_sha256="0" * 64
        )
    with pytest.raises(Refusal, match="there 2 times and not 1"):
        await call(mcp, "edit_file", session_id=session, path="d/a.txt", old="zwei", new="drei")
    edited = await call(
        mcp, "edit_file", session_id=session, path="d/a.txt", old="zwei", new="ö", expected_replacements=2
    )
    assert edited["size"] == len("eins ö ö\n".encode())
    parts, offset = "", 0
    while offset is not None:
        part = await call(mcp, "read_file", session_id=session, path="d/a.txt", offset=offset, length=6)
        parts, offset = parts + part["content"], part.get("next_offset")
    assert parts == "eins ö ö\n"
    raw = base64.b64encode(bytes(range(256))).decode()
    await call(mcp, "write_file", session_id=session, path="raw", content=raw, encoding="base64")
    read = await call(mcp, "read_file", session_id=session, path="raw", encoding="base64")
    assert (read["content"], read["size"]) == (raw, 256)
    listed = await call(mcp, "list_files", session_id=session, path="d")
    assert [(each["path"], each["type"]) for each in listed["entries"]] == [("d/a.txt", "file")]
    for path in ("../x", "/etc/passwd", "d"):
        with pytest.raises(Refusal):
            await call(mcp, "read_file", session_id=session, path=path)
    with pytest.raises(Refusal, match="payload_too_large"):
        await call(mcp, "write_file", session_id=session, path="big", content="x" * ((1 << 20) + 1))


async def test_commands(mcp: McpClient, session: str) -> None:
    """A command has its exit code and both streams; at its time limit it is killed."""
    done = await call(
        mcp, "run_command", session_id=session, command="cat; echo err >&2; exit 3", stdin="in\n"
    )
    assert (done["status"], done["exit_code"], done["stdout"], done["stderr"]) == (
        "error",
        3,
        "in\n",
        "err\n",
    )
    late = await call(mcp, "run_command", session_id=session, command="echo begun; sleep 60", timeout_s=0.5)
    assert (late["status"], late["stdout"]) == ("timeout", "begun\n")


async def test_processes(mcp: McpClient, session: str) -> None:
    """A process is started, talked to, looked at, stopped; any process of the sandbox can be killed."""
    started = await call(
        mcp, "start_process", session_id=session, command="while read a; do echo got $a; done"
    )
    process = {"session_id": session, "process_id": started["id"]}
    await call(mcp, "send_input", **process, text="one\n")
    read = await call(mcp, "read_output", **process, wait_s=10)
    assert "".join(chunk["text"] for chunk in read["chunks"]) == "got one\n"
    assert read["process"]["state"] == "running"
    await call(mcp, "stop_process", **process)
    async with asyncio.timeout(10):
        while read["process"]["state"] == "running":
            read = await call(mcp, "read_output", **process, cursor=read["cursor"], wait_s=5)
    other = await call(mcp, "start_process", session_id=session, command="exec sleep 600")
    listed = await call(mcp, "list_processes", session_id=session)
    [found] = [each for each in listed["processes"] if each["command"] == "sleep 600"]
    await call(mcp, "kill_process", session_id=session, pid=found["pid"])
    async with asyncio.timeout(10):
        ended = {"process": {"state": "running"}}
        while ended["process"]["state"] == "running":
            ended = await call(mcp, "read_output", session_id=session, process_id=other["id"], wait_s=5)
    assert ended["process"]["exit_code"] == -9


async def test_looking_around(mcp: McpClient, session: str) -> None:
    """Usage, the system and the packages of a session are shown; files are moved and removed."""
    used = await call(mcp, "usage", session_id=session)
    assert 0 < used["usage"]["memory_bytes"] < used["limits"]["memory_bytes"]
    assert "numpy" in (await call(mcp, "list_packages", session_id=session))["packages"]
    assert (await call(mcp, "system_snapshot", session_id=session))["processes"]
    await call(mcp, "make_directory", session_id=session, path="new/deep")
    await call(mcp, "write_file", session_id=session, path="new/a", content="a")
    await call(mcp, "move_file", session_id=session, path="new/a", to="new/deep/b")
    await call(mcp, "delete_file", session_id=session, path="new", recursive=True)
    listed = await call(mcp, "list_files", session_id=session)
    assert "new" not in [each["path"] for each in listed["entries"]]
    await call(mcp, "pause", session_id=session)
    assert (await call(mcp, "list_sessions"))["sessions"]
    await call(mcp, "resume", session_id=session)
    assert (await call(mcp, "execute_code", code="1", session_id=session))["status"] == "ok"


async def test_code_that_calls_tools(mcp: McpClient, session: str) -> None:
    """Code that calls offered tools makes the call return; answers let it go on, an error as an exception."""
    code = (
        "import cellblock\nprint('asking')\nprint(cellblock.call('add', a=1, b=2))\n"
        "try: cellblock.call('fail')\nexcept cellblock.ToolError as error: print(error)"
    )
    tools = [{"name": "add", "description": "Add."}, {"name": "fail"}]
    asked = await call(mcp, "execute_code", code=code, session_id=session, tools=tools)

    assert asked["status"] == "tool_call_required"
    [pending] = asked["tool_calls"]
    assert (pending["name"], pending["arguments"]) == ("add", {"a": 1, "b": 2})
    answers = [{"call_id": pending["call_id"], "result": 3}]
    more = await call(mcp, "answer_tool_calls", execution_id=asked["execution_id"], answers=answers)
    assert more["status"] == "tool_call_required"
    [failing] = more["tool_calls"]
    answers = [{"call_id": failing["call_id"], "error": "out of order"}]
    done = await call(mcp, "answer_tool_calls", execution_id=asked["execution_id"], answers=answers)
    assert done["status"] == "ok", done
    assert done["stdout"].startswith("asking\n3\n")
    assert "out of order" in done["stdout"]
