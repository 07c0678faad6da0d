"""The nouns of processes in a cell, beside its kernel."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from gateway.models.base import Frozen, Model

Argument = Annotated[str, StringConstraints(max_length=64 << 10, pattern=r"^[^\x00]*$")]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
Stream = Literal["stdout", "stderr"]


class Command(Frozen):
    """What to run in a cell: a line for bash, or a program and its arguments."""

    command: Argument | None = Field(None, min_length=1, description="A line that bash runs.")
    argv: tuple[Argument, ...] | None = Field(
        None, min_length=1, max_length=256, description="A program and its arguments, without a shell."
    )
    cwd: Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00]*$")] | None = Field(
        None, description="Where it starts: the home when left out, or relative to it."
    )
    env: dict[EnvName, Argument] = Field(
        default_factory=dict, max_length=64, description="Variables beside the kernel's own."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.command is None) == (self.argv is None):
            raise ValueError("give either command or argv")
        return self


class CommandRun(Command):
    """A command that is run to its end. `timeout_s` in seconds, `output_bytes` for each of its streams."""

    timeout_s: float = Field(60.0, gt=0, le=3600, description="Seconds until it is killed.")
    stdin: str | None = Field(None, max_length=1 << 20, description="What it reads; nothing when left out.")
    output_bytes: int = Field(
        64 << 10, ge=1024, le=1 << 20, description="What is kept of each stream: head and tail, and a mark."
    )


class CommandResult(Model):
    """How a command ended. `exit_code` is negative for a signal, as in Python's subprocess."""

    status: Literal["ok", "error", "timeout"]
    exit_code: int | None
    stdout: str
    stderr: str
    truncated: bool
    duration_s: float


class ProcessStart(Command):
    """A process that goes on by itself."""

    stdin: bool = Field(True, description="Keep its standard input open, to be written to.")


class Process(Model):
    """A process that was started beside the kernel: `exit_code` is negative for a signal."""

    id: str
    pid: int
    argv: tuple[str, ...]
    state: Literal["running", "ended"]
    exit_code: int | None = None
    started_at: str
    ended_at: str | None = None


class Chunk(Model):
    """A piece of a process's output, in the order in which it came."""

    stream: Stream
    text: str


class ProcessOutput(Model):
    """Output from a cursor on; `lost` counts bytes that were let go of before they were read."""

    chunks: list[Chunk]
    cursor: int
    lost: int = 0
    process: Process


class CellProcess(Model):
    """Any process of a cell as /proc in it shows it: what it says of itself is the cell's own word."""

    pid: int
    parent: int
    name: str
    command: str
    state: str
    memory_bytes: int
    cpu_s: float
    threads: int


class FileSystem(Model):
    """A file system that the cell may write to. Bytes."""

    path: str
    size_bytes: int
    free_bytes: int


class Snapshot(Model):
    """The system as the cell sees it."""

    hostname: str
    system: str
    python: str
    user: str
    home: str
    cpus: float
    memory_bytes: int
    uptime_s: float
    processes: list[CellProcess]
    file_systems: list[FileSystem]
    packages: dict[str, str] = Field(
        default_factory=dict, description="Python distributions of the kernel's environment, by name."
    )
