"""`cellblock run` on the example notebooks, against a real gateway."""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import TYPE_CHECKING

import nbformat
import pytest

from tests.notebooks import EXAMPLES, check_executed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.gateway import Client, Gateway


async def cellblock_run(
    gateway: Gateway, directory: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run `cellblock run` in a directory, with alice's key in a file."""
    key = directory / "key"
    key.write_text(gateway.key())
    key.chmod(0o600)
    command = gateway.command("run", *arguments, "--url", gateway.url, "--key-file", str(key))
    return await asyncio.to_thread(
        subprocess.run,
        command,
        cwd=directory,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.mark.parametrize("notebook", EXAMPLES, ids=lambda path: path.stem)
async def test_the_examples(gateway: Gateway, client: Client, notebook: Path, tmp_path: Path) -> None:
    """Every example runs to its end: exit code 0, its outputs in the executed notebook, no kernel left."""
    before = await client.json("GET", "/api/kernels")
    untouched = notebook.read_bytes()

    done = await cellblock_run(gateway, tmp_path, str(notebook))

    assert done.returncode == 0, done.stdout + done.stderr
    check_executed(tmp_path / f"{notebook.stem}.executed.ipynb", notebook.stem)
    assert notebook.read_bytes() == untouched
    assert len(await client.json("GET", "/api/kernels")) == len(before)


async def test_a_notebook_that_fails(gateway: Gateway, tmp_path: Path) -> None:
    """A cell that raises ends the run with exit code 1; what was done is written, the error too."""
    source = nbformat.v4.new_notebook()
    source.cells = [nbformat.v4.new_code_cell(code) for code in ("print('done')", "1 / 0", "print('never')")]
    nbformat.write(source, tmp_path / "fails.ipynb")

    done = await cellblock_run(gateway, tmp_path, "fails.ipynb", "--output", "out.ipynb")

    written = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stdout + done.stderr
    assert [len(cell.outputs) for cell in written.cells] == [1, 1, 0]
    assert written.cells[1].outputs[0].ename == "ZeroDivisionError"


async def test_a_cell_that_runs_out_of_time(gateway: Gateway, tmp_path: Path) -> None:
    """A cell beyond --timeout is interrupted, and the exit code is 124."""
    source = nbformat.v4.new_notebook()
    source.cells = [nbformat.v4.new_code_cell("print('early', flush=True)\nimport time; time.sleep(60)")]
    nbformat.write(source, tmp_path / "slow.ipynb")

    done = await cellblock_run(gateway, tmp_path, "slow.ipynb", "--timeout", "1")

    written = nbformat.read(tmp_path / "slow.executed.ipynb", as_version=4)
    assert done.returncode == 124
    assert written.cells[0].outputs[0].text.startswith("early\n")
