"""nbclient and papermill execute notebooks in cells, through jupyter_server's own gateway client."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest
from nbformat import v4

from tests.notebooks import EXAMPLES, check_executed

if TYPE_CHECKING:
    from tests.gateway import Client, Gateway

PROGRAM = Path(__file__).with_name("execute_notebook.py")


@pytest.mark.parametrize("notebook", EXAMPLES, ids=lambda path: path.stem)
async def test_the_examples(gateway: Gateway, client: Client, notebook: Path, tmp_path: Path) -> None:
    """Every example runs to its end by an unchanged nbclient, and its kernel is gone afterwards."""
    before = await client.json("GET", "/api/kernels")
    target = tmp_path / notebook.name
    done = await execute("nbclient", gateway, notebook, target)

    assert done.returncode == 0, done.stderr
    check_executed(target, notebook.stem)
    assert len(await client.json("GET", "/api/kernels")) == len(before)


async def test_papermill(gateway: Gateway, tmp_path: Path) -> None:
    """An unchanged papermill puts its parameters in, and an error of the code's is papermill's own."""
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = v4.new_notebook(metadata={"kernelspec": kernelspec})
    notebook.cells = [
        v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]}),
        v4.new_code_cell("print(n * 6)"),
    ]
    source, target = tmp_path / "source.ipynb", tmp_path / "target.ipynb"
    nbformat.write(notebook, source)
    done = await execute("papermill", gateway, source, target)
    assert done.returncode == 0, done.stderr
    assert nbformat.read(target, as_version=4).cells[-1].outputs[0].text == "42\n"

    notebook.cells.append(v4.new_code_cell("1 / 0"))
    nbformat.write(notebook, source)
    done = await execute("papermill", gateway, source, target)
    assert done.returncode != 0
    assert "PapermillExecutionError" in done.stderr
    assert "ZeroDivisionError" in done.stderr


async def execute(
    tool: str, gateway: Gateway, source: Path, target: Path
) -> subprocess.CompletedProcess[str]:
    """Run the program in an environment that knows the gateway."""
    env = {
        **os.environ,
        "HOME": str(target.parent),
        "JUPYTER_GATEWAY_URL": gateway.url,
        "JUPYTER_GATEWAY_AUTH_TOKEN": gateway.key(),
    }
    command = [sys.executable, str(PROGRAM), tool, str(source), str(target)]
    return await asyncio.to_thread(
        subprocess.run, command, env=env, capture_output=True, text=True, timeout=110, check=False
    )
