"""The door of the command line: a notebook with one cell, executed by `cellblock run`."""

from __future__ import annotations

import asyncio
import re
import signal
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import nbformat

from tests.clients.door import Door, Failure, Outcome, refused_by_name
from tests.clients.door_channels import GOES_ON

ENDED = re.compile(r"\[1/1\] cell 1 … (\w+)(?: \((\w+)\))? ")


class Run:
    """A `cellblock run` at work."""

    def __init__(self, process: asyncio.subprocess.Process, written: Path) -> None:
        self._process = process
        self._written = written

    async def cancel(self) -> None:
        """Press Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    async def disconnect(self) -> None:
        """Kill the command."""
        self._process.kill()
        await self._process.wait()

    async def outcome(self) -> Outcome:
        """Wait for its end, and read the notebook that it wrote."""
        _, said = await asyncio.wait_for(self._process.communicate(), 60)
        ended = ENDED.search(said.decode())
        assert ended, said.decode()
        outputs: list[Any] = nbformat.read(self._written, as_version=4).cells[0].outputs
        text = {
            name: "".join(o.text for o in outputs if o.output_type == "stream" and o.name == name)
            for name in ("stdout", "stderr")
        }
        error = next((o for o in outputs if o.output_type == "error"), None)
        if error is not None and (refusal := refused_by_name(error.ename)):
            raise refusal
        return Outcome(
            ended[1],
            **text,
            results=tuple(dict(o.data) for o in outputs if "data" in o),
            error=Failure(error.ename, error.evalue) if error else None,
            reason=ended[2],
        )


class CommandLine(Door):
    """`cellblock run NOTEBOOK --kernel-id ID`."""

    name = "cellblock run"
    without: ClassVar = {"disconnect": GOES_ON}

    async def opened(self) -> None:
        """Make a place for notebooks and the key."""
        self._place = Path(self.held.enter_context(tempfile.TemporaryDirectory()))
        self._key = self._place / "key"
        self._key.write_text(self.gateway.key(self.principal))
        self._key.chmod(0o600)

    async def start(self, code: str, *, timeout_s: float | None = None) -> Run:
        """Run a notebook with this code in it."""
        extra = ("--timeout", str(timeout_s)) if timeout_s else ()
        return await self._run(code, await self.kernel_id(), *extra)

    async def foreign(self, handle: str) -> object:
        """Run something in it."""
        run = await self._run("1", handle)
        out, said = await asyncio.wait_for(run._process.communicate(), 60)
        return run._process.returncode, out, said

    async def _run(self, code: str, kernel_id: str, *extra: str) -> Run:
        notebook, written = self._place / "in.ipynb", self._place / "out.ipynb"
        written.unlink(missing_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), notebook)
        where = ("--url", self.gateway.url, "--key-file", str(self._key), "--kernel-id", kernel_id)
        process = await asyncio.create_subprocess_exec(
            *self.gateway.command("run", str(notebook), *where, "-o", str(written), *extra),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        return Run(process, written)
