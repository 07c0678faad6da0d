"""nbclient executes the example notebooks in cells, through jupyter_server's own gateway client."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.notebooks import EXAMPLES, check_executed

if TYPE_CHECKING:
    from tests.gateway import Client, Gateway

PROGRAM = Path(__file__).with_name("execute_notebook.py")


@pytest.mark.parametrize("notebook", EXAMPLES, ids=lambda path: path.stem)
async def test_the_examples(gateway: Gateway, client: Client, notebook: Path, tmp_path: Path) -> None:
    """Every example runs to its end by an unchanged nbclient, and its kernel is gone afterwards."""
    before = await client.json("GET", "/api/kernels")
    target = tmp_path / notebook.name
    env = {
        **os.environ,
        "HOME": str(tmp_path),
        "JUPYTER_GATEWAY_URL": gateway.url,
        "JUPYTER_GATEWAY_AUTH_TOKEN": gateway.key(),
    }
    command = [sys.executable, str(PROGRAM), str(notebook), str(target)]
    done = await asyncio.to_thread(
        subprocess.run, command, env=env, capture_output=True, text=True, timeout=110, check=False
    )

    assert done.returncode == 0, done.stderr
    check_executed(target, notebook.stem)
    assert len(await client.json("GET", "/api/kernels")) == len(before)
