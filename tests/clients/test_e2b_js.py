"""E2B's JavaScript SDK, unmodified, in Node: pointed at a gateway by two variables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients import e2b_program as e2b
from tests.conftest import ROOM
from tests.gateway import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gateway import Gateway

SHARED = (
    *("results", "environment", "contexts", "files", "commands"),
    *("deadline", "life", "not_offered"),
)
QUOTED = 'it\'s a "b" \\ $HOME `id`\nnext'
TRICK = "');import os;os.environ['HACKED']='1';('"


@pytest.fixture(scope="module")
def roomy() -> Iterator[Gateway]:
    """A gateway for all of these tests."""
    env = {**ROOM, "CELLBLOCK_QUOTAS__STORAGE_BYTES": "unlimited"}
    with running("--no-keep", env=env) as gateway:
        yield gateway


@pytest.fixture(scope="module")
async def outcome(roomy: Gateway) -> Any:
    """What came of all scenarios."""
    return await e2b.run("js", roomy, *SHARED)


def test_results(outcome: Any) -> None:
    """Streams, results, plots with their data, data frames and errors arrive, and callbacks see them."""
    found = outcome["results"]
    assert (found["text"], found["count"]) == ("42", 1)
    assert found["logs"] == {"stdout": ["out\n"], "stderr": ["err\n"]}
    assert found["seen"] == [["stdout", "out\n"], ["stderr", "err\n"], ["result", "42"]]
    assert found["error"] == ["ZeroDivisionError", "division by zero"]
    assert found["png"] == "iVBORw0K"
    assert found["points"] == [[1, 3], [2, 4]]
    assert (found["data"], found["html"]) == ({"a": [1, 2]}, True)


def test_environment(outcome: Any) -> None:
    """Variables hold for a sandbox, or for one execution or command alone."""
    found = outcome["environment"]
    assert found["lasting"] == found["after"] == [QUOTED, None, None]
    assert found["once"] == [QUOTED, TRICK, None]
    assert found["command"] == f"{QUOTED}|1"


def test_contexts(outcome: Any) -> None:
    """Contexts have their own state and directory, and files in common."""
    assert {
        name: value for name, value in outcome["contexts"].items() if name not in {"removed", "language"}
    } == {
        "made": ["python", "/home/user/work"],
        "apart": "NameError",
        "files": "['shared']",
        "listed": 2,
        "restarted": "NameError",
        "left": 1,
    }
    assert outcome["contexts"]["removed"][0] == "NotFoundError"
    assert outcome["contexts"]["language"][0] == "SandboxError"


def test_files(outcome: Any) -> None:
    """Files are written, read, listed, renamed and removed; what is outside or missing is the SDK's error."""
    found = outcome["files"]
    assert found["written"] == ["ü.txt", "/home/user/f/ü.txt", "file"]
    assert found["several"] == ["/home/user/f/1", "/home/user/f/2"]
    assert (found["read"], found["bytes"]) == ("öne", [50, 50])
    assert found["listed"] == [["1", "file"], ["2", "file"], ["ü.txt", "file"]]
    assert (found["exists"], found["made"], found["gone"]) == ([True, False], [True, False], False)
    assert found["renamed"] == "/home/user/f/d/one"
    assert found["outside"][0] == "InvalidArgumentError"
    assert found["missing"][0] == "FileNotFoundError"


def test_commands(outcome: Any) -> None:
    """Commands have output, codes and input, and are killed, or end in time."""
    found = outcome["commands"]
    assert (found["plain"], found["seen"]) == (["out\n", "err\n", 0], ["out\n"])
    assert found["failed"][0] == found["afterKill"][0] == "CommandExitError"
    assert (found["running"], found["echoed"]) == (1, "line\nend\n")
    assert (found["killed"], found["deadline"]) == ([True, False], "TimeoutError")


def test_a_deadline(outcome: Any) -> None:
    """A deadline of the client's interrupts the code, and the kernel keeps what it knew."""
    found = outcome["deadline"]
    assert (found["raised"][0], found["kept"]) == ("TimeoutError", "here")
    assert 900 <= found["took"] < 5000


def test_life(outcome: Any) -> None:
    """A sandbox is made, shown, listed, paused, come back to, and ended."""
    found = outcome["life"]
    assert found["info"] == [True, "code-interpreter-v1", {"life": "1"}, "running"]
    assert (found["listed"], found["running"]) == ([True], True)
    assert (found["paused"], found["cameBack"]) == ([True, False], [True, "1"])
    assert found["killed"] == [True, False]
    # files and code: this SDK has no other error for a sandbox that does not run
    assert found["gone"] == ["SandboxNotFoundError", "TimeoutError", "TimeoutError", "SandboxNotFoundError"]


def test_what_is_not_offered(outcome: Any) -> None:
    """What is out of scope fails at once and says what it is."""
    found = outcome["not_offered"]
    for name, words in {
        "snapshot": "501: POST /sandboxes/",
        "network": "cells have no network",
        "template": "code-interpreter-v1",
        "pty": "Terminals are not offered",
        "watch": "Directories cannot be watched",
    }.items():
        assert words in found[name][1], (name, found[name])


async def test_somebody_elses(roomy: Gateway) -> None:
    """Another's sandbox is what does not exist."""
    made = (await e2b.run("js", roomy, "create_one", principal="carol"))["create_one"]["id"]
    found = (await e2b.run("js", roomy, "foreign", principal="mallory", id=made))["foreign"]
    theirs, nothing = found[made], found["0" * 20]
    assert json.dumps(theirs).replace(made, "ID") == json.dumps(nothing).replace("0" * 20, "ID")
    assert [name for name, *_ in theirs] == [*["SandboxNotFoundError"] * 3, "false"]
