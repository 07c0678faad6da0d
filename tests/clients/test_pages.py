"""What the pages for agent builders show to be copied works as it stands, against a real gateway."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.docs.markdown import blocks, page, section

if TYPE_CHECKING:
    from tests.gateway import Gateway

PAGE, AGENTS = page("rpc.md"), page("agents.md")
# What the examples of a section must print, somewhere.
SHELL = {
    "REST": ('"stdout":"42\\n"', '"text/plain":"21"', "data.csv", "a,b"),
    "Streams": ('"type":"stdout","task":0,"text":"0\\n"', "event: ended"),
    "Jobs": ('"status":"ok"', '"stdout":"done\\n"'),
    "Schemas of tools": ('"type":"function"', '"input_schema"', "42"),
    "Result blocks": ('"stdout":"42\\n"', '"return_code":0', "bash_code_execution_tool_result"),
}


async def ran(gateway: Gateway, *command: str) -> str:
    """Run a command with the gateway's URL and a key in its environment; return what it prints."""
    env = {**os.environ, "CELLBLOCK_URL": gateway.url, "CELLBLOCK_KEY": gateway.key("reader")}
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**env, "URL": gateway.url, "KEY": env["CELLBLOCK_KEY"], "NODE_NO_WARNINGS": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, out.decode()
    return out.decode()


async def test_the_rpc_client_in_python(gateway: Gateway, tmp_path: Path) -> None:
    """The Python client runs code in a context, and shows its output as it comes."""
    [example] = blocks(section(PAGE, "In Python"), "python")
    file = tmp_path / "client.py"
    file.write_text(example)

    assert (await ran(gateway, sys.executable, str(file))).splitlines() == [
        "output: hello",
        "",
        "output: result",
        "ok 42",
    ]


async def test_the_rpc_client_in_javascript(gateway: Gateway, tmp_path: Path) -> None:
    """So does the JavaScript client."""
    [example] = blocks(section(PAGE, "In JavaScript"), "js")
    file = tmp_path / "client.mjs"
    file.write_text(example)
    node = shutil.which("node")
    assert node, "Node is not installed; run `make setup`"

    said = await ran(gateway, node, "--experimental-websocket", str(file))

    assert said.splitlines() == ["output: hello", "", "output: result", "ok 42"]


@pytest.mark.parametrize("name", SHELL)
async def test_the_starts_in_the_shell(gateway: Gateway, name: str) -> None:
    """Every command of a section succeeds, and together they show what they are for."""
    [example] = blocks(section(AGENTS, name), "sh")

    said = await ran(gateway, "bash", "-euo", "pipefail", "-c", example)

    for expected in SHELL[name]:
        assert expected in said, said


async def test_the_start_of_the_typed_client(gateway: Gateway, tmp_path: Path) -> None:
    """The client runs code in a context."""
    assert await example_of(gateway, "The typed client", tmp_path) == "ok hello\n 42\n"


async def test_the_start_of_tools_that_call_back(gateway: Gateway, tmp_path: Path) -> None:
    """Code in the cell gets its prices from the program that runs it."""
    assert await example_of(gateway, "Tools that call back", tmp_path) == "7\n\n"


async def example_of(gateway: Gateway, name: str, place: Path) -> str:
    """Run a section's Python example; return what it prints."""
    [example] = blocks(section(AGENTS, name), "python")
    file = place / "example.py"
    file.write_text(example)
    return await ran(gateway, sys.executable, str(file))
