"""Doors of E2B's SDKs, unmodified, each in a process of its own that is told what to do by lines of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from typing import TYPE_CHECKING, Any, ClassVar

from tests.agents import CLIENTS, PYTHON
from tests.clients.door import Door, Failure, Outcome, Refused
from tests.clients.e2b_program import JS, environment

if TYPE_CHECKING:
    from collections.abc import Mapping

LINE_BYTES = 32 << 20
DEADS = {"KernelKilled": "killed", "KernelOom": "oom", "KernelCrashed": "crashed"}


class Run:
    """One run_code."""

    def __init__(self, door: E2bPython, code: str, timeout_s: float | None) -> None:
        self._door = door
        self._task = asyncio.create_task(door.ask("run", code=code, timeout_s=timeout_s))

    async def cancel(self) -> None:
        """Give the call up."""
        await self._door.tell("cancel")

    async def disconnect(self) -> None:
        """Kill the process that waits."""
        await self._door.die()
        with contextlib.suppress(EOFError):
            await self._task

    async def outcome(self) -> Outcome:
        """Wait for its end. Raises Refused."""
        found = await self._task
        status, error, reason = "ok", None, None
        if found["raised"]:
            name, text = found["raised"]
            if text.startswith("429 ") or name.startswith("RateLimit"):
                raise Refused("limit_reached", None)
            assert name.startswith(("Timeout", "Cancelled")), found["raised"]
            status = "timeout" if name.startswith("Timeout") else "cancelled"
        elif found["error"]:
            error = Failure(*found["error"])
            reason = DEADS.get(error.ename)
            status = "dead" if reason else "error"
        return Outcome(
            status, found["stdout"], found["stderr"], tuple(found["results"]), error, reason=reason
        )


class E2bPython(Door):
    """The SDK for Python."""

    name = "E2B: Python"
    command: ClassVar[tuple[str, ...]] = (str(PYTHON), str(CLIENTS / "run_e2b_door.py"))

    async def opened(self) -> None:
        """Begin without a process."""
        self._process: asyncio.subprocess.Process | None = None
        self._sandbox: str | None = None
        self._home = self.held.enter_context(tempfile.TemporaryDirectory())
        self.held.push_async_callback(self._end)

    async def ask(self, operation: str, **order: Any) -> Any:
        """Have something done, and return what came of it. Raises EOFError when the process dies."""
        process = await self.tell(operation, **order)
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise EOFError
        answer = json.loads(line)
        assert "failed" not in answer, answer["failed"]
        return answer["answer"]

    async def tell(self, operation: str, **order: Any) -> asyncio.subprocess.Process:
        """Say what is to be done."""
        process = self._process or await self._started()
        assert process.stdin is not None
        process.stdin.write(json.dumps({"op": operation, **order}).encode() + b"\n")
        return process

    async def die(self) -> None:
        """Kill the process; the next one comes back to the sandbox."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None

    async def kernel_id(self) -> str:
        """Return the kernel of the sandbox's first context."""
        if self._process is None or self._kernel_id is None:
            found = await self.ask("open", sandbox=self._sandbox)
            self._sandbox, self._kernel_id = found["sandbox"], found["kernel"]
        return str(self._kernel_id)

    async def start(self, code: str, *, timeout_s: float | None = None) -> Run:
        """Call run_code."""
        await self.kernel_id()
        return Run(self, code, timeout_s)

    async def handle(self) -> str:
        """Return the sandbox's id."""
        await self.kernel_id()
        return str(self._sandbox)

    def nowhere(self) -> str:
        """Return an id of the same form that nothing has."""
        return "0" * 20

    async def foreign(self, handle: str) -> object:
        """Come back to it, look at it, change it, end it."""
        return await self.ask("foreign", sandbox=handle)

    async def _started(self) -> asyncio.subprocess.Process:
        self._process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment(self.gateway, self.principal, self._home),
            cwd=JS,
            limit=LINE_BYTES,
        )
        return self._process

    async def _end(self) -> None:
        if self._process is not None and self._sandbox is not None:
            await self.ask("close")
        await self.die()


class E2bJavaScript(E2bPython):
    """The SDK for JavaScript, in Node."""

    name = "E2B: JavaScript"
    without: ClassVar[Mapping[str, str]] = {"cancel": "this SDK can give nothing up but by a timeout"}
    command: ClassVar[tuple[str, ...]] = ("/usr/bin/node", str(JS / "run_e2b_door.mjs"))
