"""The tool that runs a shell command beside a session's kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gateway.models import Frozen, Model, Scope
from gateway.models.processes import CommandRun
from gateway.toolbox.handles import SessionId
from gateway.toolbox.progress import reporting
from gateway.toolbox.tool import RUNS, Call, Tool

if TYPE_CHECKING:
    from gateway.services.processes import ProcessService
    from gateway.settings import McpSettings
    from gateway.toolbox.handles import Handles

SCOPES = frozenset({Scope.EXECUTE, Scope.KERNELS})


class RunCommand(Frozen):
    """Which command to run, and where."""

    session_id: SessionId
    command: str = Field(min_length=1, max_length=64 << 10, description="A line for bash.")
    cwd: str | None = Field(
        None, max_length=4096, description="Where to run it: the home if left out, or relative to it."
    )
    stdin: str | None = Field(None, max_length=1 << 20, description="What it reads.")
    timeout_s: float = Field(60.0, gt=0, le=3600, description="Seconds until it is killed.")


class CommandOutcome(Model):
    """How a command ended; `exit_code` is negative for a signal."""

    session_id: str
    status: Literal["ok", "error", "timeout"]
    exit_code: int | None = None
    stdout: str
    stderr: str
    truncated: bool
    duration_ms: int


class CommandTools:
    """Commands for agents."""

    def __init__(self, processes: ProcessService, handles: Handles, settings: McpSettings) -> None:
        self._processes = processes
        self._handles = handles
        self._progress_s = settings.progress_s
        self._text_chars = settings.text_chars

    async def run(self, call: Call, given: RunCommand) -> CommandOutcome:
        """Run a command to its end; a caller that goes away has it killed."""
        session = await self._handles.find(call.principal, given.session_id)
        request = CommandRun(
            command=given.command,
            cwd=given.cwd,
            stdin=given.stdin,
            timeout_s=given.timeout_s,
            output_bytes=max(1024, min(self._text_chars, 1 << 20)),
        )
        async with reporting(call.report, self._progress_s) as tail:
            result = await self._processes.run(call.principal, session.kernel_id, request, on_output=tail.add)
        return CommandOutcome(
            session_id=given.session_id,
            status=result.status,
            exit_code=result.exit_code,
            stdout=result.stdout,
            stderr=result.stderr,
            truncated=result.truncated,
            duration_ms=round(result.duration_s * 1000),
        )

    def tools(self) -> tuple[Tool, ...]:
        """Return these tools."""
        return (
            Tool(
                "run_command",
                "Run a command",
                "Run a line of bash in a session's sandbox, beside its kernel (also while that is busy), and "
                "return its exit code and output. It is killed at timeout_s.",
                RunCommand,
                CommandOutcome,
                self.run,
                SCOPES,
                RUNS,
            ),
        )
