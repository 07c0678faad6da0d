"""Execute a notebook outside any cell, as a client of the gateway that CELLBLOCK_URL and CELLBLOCK_KEY name.

    outside.py NOTEBOOK OUTPUT [PYTHON]

PYTHON is the interpreter of the notebook's kernel, with ipykernel in it; otherwise the one that runs this. A
cell that raises ends it with exit code 1, and what ran is written all the same.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

TIMEOUT_S = 90


async def execute(source: Path, target: Path, python: str) -> int:
    """Execute a notebook and return the exit code."""
    notebook = nbformat.read(source, as_version=4)
    with tempfile.TemporaryDirectory() as directory:
        spec = Path(directory) / "outside"
        spec.mkdir()
        argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (spec / "kernel.json").write_text(
            json.dumps({"argv": argv, "display_name": "outside", "language": "python"})
        )
        manager = AsyncKernelManager(
            kernel_name="outside",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[directory]),
            transport="ipc",
            ip=str(Path(directory) / "kernel"),
        )
        client = NotebookClient(
            notebook,
            km=manager,
            timeout=TIMEOUT_S,
            record_timing=False,
            resources={"metadata": {"path": directory}},
        )
        try:
            await client.async_execute()
        except CellExecutionError as error:
            print(f"{source.name}: {error}", file=sys.stderr)
            return 1
        finally:
            nbformat.write(notebook, target)
            if manager.has_kernel:
                await manager.shutdown_kernel(now=True)
    return 0


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(asyncio.run(execute(Path(given[0]), Path(given[1]), given[2] if given[2:] else sys.executable)))
