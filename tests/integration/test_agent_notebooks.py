"""The examples for agents: executed outside any cell, as clients of a gateway, with the SDKs they show."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest

from tests.agents import PYTHON as AGENTS_PYTHON

if TYPE_CHECKING:
    from tests.gateway import Client, Gateway

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "notebooks" / "examples" / "agents"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
# what each must say, and how many pictures it shows
SAYS = {
    "agent_loop": ("178 wines; their kinds are told apart with an accuracy of 0.98, and a plot of them.", 1),
    "e2b_sdk": ("IndexError - list index out of range", 1),
    "mcp_client": ("an error of the tool: True", 1),
    "tool_callbacks": ("most calls at once: 4", 0),
}
# an absolute path of somebody's machine, an address, a key
LOCAL = re.compile(r"(?<![\w.])/(?:home|root|tmp|var|srv|usr|work)/|127\.0\.0\.1|localhost|\bcb_[0-9a-z]")


def check(path: Path) -> None:
    """Assert that a notebook was executed to its end, without errors, and says and shows what it must."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    said, pictures = SAYS[path.stem]

    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for output in outputs if output.output_type == "error"]
    assert said in text
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == pictures


async def outside(gateway: Gateway, *command: str | Path) -> str:
    """Run a program as alice's client and return what it printed."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, *map(str, command)],
        env={**os.environ, "CELLBLOCK_URL": gateway.url, "CELLBLOCK_KEY": gateway.key()},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
async def test_the_examples(gateway: Gateway, client: Client, notebook: Path, tmp_path: Path) -> None:
    """Every example runs to its end, says what it must, and leaves no kernel behind."""
    before = {model["id"] for model in await client.json("GET", "/api/kernels")}
    python = AGENTS_PYTHON if notebook.stem == "e2b_sdk" else sys.executable

    await outside(gateway, ROOT / "scripts" / "outside.py", notebook, tmp_path / notebook.name, python)

    check(tmp_path / notebook.name)
    async with asyncio.timeout(10):
        while {model["id"] for model in await client.json("GET", "/api/kernels")} - before:
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_outputs_that_are_kept(notebook: Path) -> None:
    """The outputs in the repository are those of a whole run, small, and tell nothing of where it was."""
    check(notebook)

    assert notebook.stat().st_size < 64 << 10
    assert not LOCAL.search(notebook.read_text())


async def test_the_agent_that_is_a_program(gateway: Gateway) -> None:
    """The example agent reads its documents through tools, and prints what the model said of each."""
    printed = await outside(gateway, EXAMPLES / "callback_agent.py")

    assert printed == "ok, 3 documents read\nmonday: yes\ntuesday: no\nwednesday: yes\n"


def test_none_is_left_out() -> None:
    """Every example has its entry here."""
    assert {path.stem for path in NOTEBOOKS} == set(SAYS)
