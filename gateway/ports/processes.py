"""What the use cases need of the processes in a cell, and of tools that code in it calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gateway.models.processes import CellProcess, Command, Process, ProcessOutput, Snapshot


class KernelProcesses(Protocol):
    """The processes of one cell. They run beside the kernel, in its cell and under its limits.

    All raise KernelDead, and SandboxUnavailable where the cell has no attendant any more (its own doing).
    """

    async def start(self, command: Command, *, stdin: bool) -> Process:
        """Start a process. Raises BadRequest (what cannot be run), LimitReached (too many at a time)."""
        ...

    async def listing(self) -> Sequence[Process]:
        """Return the processes that were started so, oldest first; ended ones are kept for a while."""
        ...

    async def read(self, process_id: str, *, cursor: int, wait_s: float) -> ProcessOutput:
        """Return output from a cursor (bytes; 0 is the start) on, when there is some, or it has ended.

        Waits `wait_s` seconds at most. Raises NotFound.
        """
        ...

    async def write(self, process_id: str, data: bytes, *, eof: bool = False) -> None:
        """Write to its standard input, and close that where asked.

        Raises NotFound, Conflict (it is closed), LimitReached (it does not read).
        """
        ...

    async def signal(self, process_id: str, number: int) -> None:
        """Signal the process and its children. Raises NotFound, BadRequest (no such signal)."""
        ...

    async def remove(self, process_id: str) -> None:
        """Kill the process and its children, if it runs, and forget it. Raises NotFound."""
        ...

    async def tree(self) -> Sequence[CellProcess]:
        """Return every process of the cell, the kernel's own included."""
        ...

    async def kill(self, pid: int, number: int) -> None:
        """Signal any process of the cell, by its pid in it. Raises NotFound, BadRequest."""
        ...

    async def snapshot(self, *, packages: bool = False) -> Snapshot:
        """Return the system as the cell sees it, with the Python packages of its environment."""
        ...


class ToolDesk(Protocol):
    """Somebody who answers what code in a cell asks of the client's tools."""

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Return a tool's result, a JSON value.

        Raises GatewayError, whose message and code the cell is told.
        """
        ...
