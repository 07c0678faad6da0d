"""E2B's Python SDK, unmodified, in its sync and its async form: pointed at a gateway by two variables."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients import e2b_program as e2b
from tests.conftest import ROOM
from tests.docs.markdown import code, page, rows
from tests.gateway import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gateway import Gateway

SHARED = (
    "results",
    "environment",
    "contexts",
    "files",
    "commands",
    "deadline",
    "death",
    "life",
    "not_offered",
)
QUOTED = 'it\'s a "b" \\ $HOME `id`\nnext'
TRICK = "');import os;os.environ['HACKED']='1';('"


@pytest.fixture(scope="module")
def roomy() -> Iterator[Gateway]:
    """A gateway for all of these tests, where nobody runs out of room."""
    env = {**ROOM, "CELLBLOCK_QUOTAS__STORAGE_BYTES": "unlimited"}
    with running("--no-keep", env=env) as gateway:
        yield gateway


@pytest.fixture(scope="module")
async def outcomes(roomy: Gateway) -> dict[str, Any]:
    """What came of all scenarios, with both forms of the SDK at the same time."""
    forms = ("sync", "async")
    runs = (e2b.run(form, roomy, *SHARED, principal=f"owner-{form}") for form in forms)
    found = await asyncio.gather(*runs)
    return dict(zip(forms, found, strict=True))


@pytest.fixture(params=["sync", "async"])
def outcome(request: pytest.FixtureRequest, outcomes: dict[str, Any]) -> Any:
    """What came of all scenarios, with one form of the SDK."""
    return outcomes[request.param]


def test_results(outcome: Any) -> None:
    """Streams, results in all formats, data frames and errors arrive; callbacks see them in order."""
    found = outcome["results"]
    streams = found["streams"]
    assert (streams["text"], streams["stdout"], streams["stderr"]) == ("42", "out\n", "err\n")
    assert (streams["count"], streams["error"]) == (1, None)
    assert found["seen"] == [["stdout", "out\n"], ["stderr", "err\n"], ["result", "shown"], ["result", "42"]]
    assert found["error"]["error"] == ["ZeroDivisionError", "division by zero"]
    assert (found["error"]["stdout"], found["raised"]) == ("before\n", ["ZeroDivisionError"])
    assert "1\x1b[39m / " in found["traceback"] or "1 / 0" in found["traceback"]
    assert found["plot"]["formats"] == [["chart", "png", "text"]]
    assert found["html"]["formats"] == [["html", "text"]]
    assert found["frame"]["formats"] == [["data", "html", "text"]]
    assert found["data"] == {"a": [1.0, None], "b": ["x", "y"]}
    assert (found["quotes"], found["kept"]) == ("a text", "5")


def test_charts(outcome: Any) -> None:
    """A plot comes with its points, labels and units, as the SDK's own class; bars with labels and values."""
    found = outcome["results"]
    assert found["chart_class"] == "LineChart"
    assert found["chart"]["elements"] == [{"label": "L", "points": [[1, 3], [2, 4]]}]
    assert (found["chart"]["x_label"], found["chart"]["x_unit"]) == ("t (s)", "s")
    assert [(bar["label"], bar["value"]) for bar in found["bars"]] == [("a", "3"), ("b", "4")]


def test_environment(outcome: Any) -> None:
    """Variables hold for a sandbox, or for one execution or command alone; no value ever becomes code."""
    found = outcome["environment"]
    lasting = json.dumps([QUOTED, "p", None, None]) + "\n"
    assert found["lasting"] == found["after"] == lasting
    assert json.loads(found["once"]) == [QUOTED, "q", TRICK, None]
    assert found["after_error"] == ["ZeroDivisionError", lasting]
    assert found["bash"] == found["bash_after"] == f"{QUOTED}|p|unset\n"
    assert found["bash_once"] == f"{QUOTED}|q|$(id)\n'\"\n"
    assert found["command"] == f"{QUOTED}|c|1"


def test_contexts(outcome: Any) -> None:
    """Contexts have their own state, directory and language, and one home; each language has its own."""
    found = outcome["contexts"]
    assert found["first"] == [["python", "/home/user"]]
    assert found["made"] == ["python", "/home/user/work"]
    assert found["apart"] == found["restarted"] == ["NameError", "name 'state' is not defined"]
    assert found["files"] == "['shared']"
    assert found["absolute"] == "x"
    assert (found["directory"], found["first_state"]) == ("work", "first")
    assert (found["bash"], found["bash_state"]) == ("5\n", "hello\n")
    assert (found["listed"], found["bash_again"], found["left"]) == (2, 3, 2)
    assert found["removed"][0] == found["nowhere"][0] == "NotFoundException"
    assert found["unremovable"][0] == found["language"][0] == found["cwd"][0] == "SandboxException"
    assert "bash, python" in found["language"][1]
    assert "nowhere" in found["cwd"][1]


def test_files(outcome: Any) -> None:
    """Files are written in every form the SDK has, read, listed, renamed and removed."""
    found = outcome["files"]
    assert found["written"] == ["ü text.txt", "/home/user/f/ü text.txt", "file"]
    assert (found["read"], found["bytes"]) == ("öne\n", [256_000, 100_000])
    assert found["several"] == [f"/home/user/f/many/{n}" for n in range(3)]
    assert found["seen"] == "['many', 'raw', 'zipped', 'ü text.txt']"
    assert found["listed"][0] == ["many", "dir", "/home/user/f/many"]
    assert (len(found["listed"]), found["deep"]) == (4, 7)
    assert found["info"] == [256_000, "-rw-r--r--", "user", True]
    assert (found["exists"], found["made"], found["gone"]) == ([True, False], [True, False], False)
    assert found["renamed"] == "/home/user/f/a/moved"
    assert found["kinds"] == {"a": "dir", "link": "symlink"}


def test_files_that_are_not_there(outcome: Any) -> None:
    """What is outside of the home is refused in the SDK's form, links too; what is missing is told."""
    found = outcome["files"]
    assert {name for name, _ in found["outside"]} == {"InvalidArgumentException"}
    assert all("outside of /home/user" in text for _, text in found["outside"][:3])
    assert "link" in found["outside"][3][1]
    assert {name for name, _ in found["missing"]} == {"FileNotFoundException"}


def test_commands(outcome: Any) -> None:
    """Commands have output, codes and input, run beside busy code, and are killed, or end in time."""
    found = outcome["commands"]
    assert found["plain"] == ["out", "err\n", 0]
    assert found["seen"] == ["stderr", "stdout"]
    assert (found["python"], found["failed"]) == ("42\n", [3, "some\n"])
    assert (found["running"], found["echoed"]) == (["cat; echo end"], "line\nend\n")
    assert found["while_busy"] == "2"
    assert found["killed"] == [True, False]
    assert found["after_kill"][0] == "CommandExitException"
    assert (found["none"], found["ended"]) == ([], [])
    assert (found["deadline"], found["nowhere"]) == ("TimeoutException", "InvalidArgumentException")
    assert 1 <= found["deadline_s"] < 5


def test_a_deadline(outcome: Any) -> None:
    """A deadline of the client's interrupts the code; what the kernel knew is there, and it answers."""
    found = outcome["deadline"]
    assert found["raised"][0] == "TimeoutException"
    # the sync client gives up after twice the time that it was given
    assert 1 <= found["took"] < 5
    assert (found["kept"], found["next_took"] < 5) == ("here", True)


def test_a_death(outcome: Any) -> None:
    """A kernel that dies is told of with what it had printed; the next code has files and variables again."""
    found = outcome["death"]
    assert found["died"]["stdout"] == "last\n"
    assert found["died"]["error"] == ["KernelKilled", "The kernel was killed."]
    assert (found["after"], found["env"]) == ("yes", "p")


def test_life(outcome: Any) -> None:
    """A sandbox is made, shown, listed by pages and metadata, put off, paused, come back to, and ended."""
    found = outcome["life"]
    assert found["info"] == [True, "code-interpreter-v1", {"life": "1"}, "running"]
    assert (found["left_s"], found["listed"], found["running"]) == (600, True, True)
    assert found["by_metadata"] == ["shared one"]
    assert found["put_off"]
    assert found["paused"] == [True, False, False, "paused"]
    assert found["while_paused"] == "SandboxNotRunningException"
    assert found["came_back"] == [True, "1", "1"]
    assert found["metrics"] == [True]
    assert found["killed"] == [True, False, False]
    assert [name if isinstance(name, str) else name[0] for name in found["gone"]] == [
        "SandboxNotFoundException",
        "SandboxNotFoundException",
        "TimeoutException",
        "SandboxNotRunningException",
        "SandboxNotRunningException",
    ]


def test_what_is_not_offered(outcome: Any) -> None:
    """What is out of scope fails at once and says what it is, in the SDK's own errors."""
    found = outcome["not_offered"]
    for name, words in {
        "snapshot": "501: POST /sandboxes/",
        "fork": "501: POST /sandboxes/",
        "network": "cells have no network",
        "volume": "there are no volumes",
        "template": "code-interpreter-v1 (e2b.templates)",
        "timeout": "86400 s (e2b.max_timeout_s)",
        "pty": "Terminals are not offered",
        "watch": "Directories cannot be watched",
    }.items():
        assert found[name][0] == "SandboxException", name
        assert words in found[name][1], name
    assert found["metadata"][0] == "TemplateException"


async def test_somebody_elses(roomy: Gateway) -> None:
    """Another's sandbox is what does not exist, by every method; it is in no list, and goes on."""
    made = (await e2b.run("sync", roomy, "create_one", principal="carol"))["create_one"]["id"]
    found = (await e2b.run("sync", roomy, "foreign", principal="mallory", id=made))["foreign"]
    theirs, nothing = found[made], found["0" * 20]
    assert json.dumps(theirs).replace(made, "ID") == json.dumps(nothing).replace("0" * 20, "ID")
    assert [name for name, *_ in theirs[:4]] == ["SandboxNotFoundException"] * 4
    assert theirs[4:] == [["False"], []]
    again = await e2b.run("sync", roomy, "come_back", principal="carol", id=made)
    assert again["come_back"] == {"kept": "before", "file": "f", "ran": 0}


async def test_nothing_is_left(roomy: Gateway) -> None:
    """After the end of a sandbox its kernels, workspace and processes are gone."""
    async with roomy.client("owner-sync") as owner:
        assert await owner.json("GET", "/api/kernels") == []
        assert await owner.json("GET", "/api/workspaces") == []


async def test_an_end_comes(roomy: Gateway) -> None:
    """A sandbox ends when its time is over, whatever it does, and leaves nothing."""
    made = (await e2b.run("sync", roomy, "create_one", principal="dora", timeout=6))["create_one"]["id"]
    async with roomy.client("dora") as dora:
        [kernel] = await dora.json("GET", "/api/kernels")
        busy = asyncio.create_task(dora.run(kernel["id"], "while True: pass"))
        began = time.monotonic()
        while await dora.json("GET", "/api/workspaces"):
            assert time.monotonic() - began < 20
            await asyncio.sleep(0.1)
        await asyncio.gather(busy, return_exceptions=True)
        assert await dora.json("GET", "/sandboxes") == []
        assert await dora.json("GET", "/api/kernels") == []
        await dora.json("GET", f"/sandboxes/{made}", status=404)


async def test_another_gateway_goes_on() -> None:
    """After a gateway was killed the next one has the sandbox, with state, files, token and end."""
    with running() as own:
        made = (await e2b.run("async", own, "create_one"))["create_one"]["id"]
        async with own.client() as alice:
            before = await alice.json("GET", f"/sandboxes/{made}")
        own.end(signal.SIGKILL)
        own.start()
        found = await e2b.run("async", own, "come_back", id=made)
        async with own.client() as alice:
            after = await alice.json("GET", f"/sandboxes/{made}")
            await alice.json("DELETE", f"/sandboxes/{made}", status=204)
    assert found["come_back"] == {"kept": "before", "file": "f", "ran": 0}
    # to come back puts the end off
    assert after.pop("endAt") >= before.pop("endAt")
    assert after == before


async def test_its_gateway_ends_with_its_kernels() -> None:
    """A sandbox whose kernels went with their gateway is gone with its home when the next one looks."""
    with running("--no-keep") as own:
        await e2b.run("sync", own, "create_one")
        own.end()
        own.start()
        async with own.client() as alice:
            began = time.monotonic()
            while await alice.json("GET", "/api/workspaces"):
                assert time.monotonic() - began < 20
                await asyncio.sleep(0.1)
            assert await alice.json("GET", "/sandboxes") == []


async def test_quotas_and_keys() -> None:
    """A quota is the SDK's error for that, at once; a revoked key takes its sandboxes' tokens with it."""
    env = {"CELLBLOCK_KERNELS__MAX_KERNELS_PER_OWNER": "1"}
    with running("--no-keep", env=env) as own:
        made = (await e2b.run("sync", own, "create_one"))["create_one"]
        refused = (await e2b.run("sync", own, "create_one"))["create_one"]["refused"]
        assert refused[0] == "RateLimitException"
        assert "You have 1 kernels" in refused[1]
        # nothing of what was refused is there
        async with own.client() as alice:
            assert [each["sandboxID"] for each in await alice.json("GET", "/sandboxes")] == [made["id"]]
            assert len(await alice.json("GET", "/api/workspaces")) == 1
            connected = await alice.json("POST", f"/sandboxes/{made['id']}/connect", {"timeout": 300})
        token = {"X-Access-Token": connected["envdAccessToken"], "E2b-Sandbox-Id": made["id"]}

        async def health() -> int:
            async with own.client("nobody") as somebody:
                del somebody.http.headers["Authorization"]
                async with somebody.http.get("/health", headers=token) as response:
                    return response.status

        assert await health() == 204
        line = own.command("keys", "revoke", "alice", "--state-dir", str(own.state_dir))
        subprocess.run(line, check=True, capture_output=True, cwd="/")
        assert await health() == 401


def test_the_page(roomy: Gateway) -> None:
    """docs/e2b.md says of each scenario whether it works, and names no other test."""
    cells = [row[-1] for row in rows(page("e2b.md"), "of the SDKs", "here", "held by")]
    told = {name for cell in cells for name in code(cell)}
    known = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert told <= known, told - known


def test_nothing_crashed(roomy: Gateway) -> None:
    """Nothing of all this made the gateway fail in a way that it did not foresee."""
    assert not [line for line in roomy.log() if line["event"] == "request_crashed"]
    assert "Traceback" not in roomy.log_path.read_text()
