"""The nouns of executions that are resources of their own: what is asked for, its events, and its view."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictFloat, StrictInt, StringConstraints, model_validator

from gateway.models import DeathReason, ExecutionResult, Limits
from gateway.models.base import Frozen, Model

ContextName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}$")]
ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$")]


class JobStatus(StrEnum):
    """Where an execution is: the first two are on their way, the rest are ends.

    A failed one could not be run at all: its failure is the gateway's or the request's, never the code's.
    """

    QUEUED = "queued"
    RUNNING = "running"
    OK = "ok"
    ERROR = "error"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    ABORTED = "aborted"
    DEAD = "dead"
    CANCELLED = "cancelled"
    LOST = "lost"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self not in {JobStatus.QUEUED, JobStatus.RUNNING}


class ToolOffer(Frozen):
    """A tool of the client's that the code may call; `parameters` is a JSON Schema, for people and models."""

    name: ToolName
    description: str = Field("", max_length=4096)
    parameters: dict[str, Any] = Field(default_factory=dict)


class Task(Frozen):
    """One piece of work: code, or a file of the kernel's home to run."""

    code: str | None = Field(None, max_length=8 << 20, description="Code.")
    path: str | None = Field(
        None, min_length=1, max_length=4096, description="A file of the home, whose text is run."
    )
    name: str | None = Field(None, max_length=256, description="What the caller calls it.")
    timeout_s: float | None = Field(None, gt=0, description="Seconds; capped by the kernel's limits.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.code is None) == (self.path is None):
            raise ValueError("give either code or path")
        return self


class KernelOptions(Frozen):
    """What a kernel shall be that is started for an execution or a context."""

    kernel: str | None = Field(None, max_length=128, description="Kernelspec; the default one if left out.")
    env: dict[str, str] = Field(default_factory=dict, description="`KERNEL_*` and other allowed variables.")
    limits: dict[str, StrictInt | StrictFloat] = Field(
        default_factory=dict, description="Limits lower than the profile's."
    )
    workspace: str | None = Field(None, max_length=128, description="A workspace as its home.")
    shared: bool = Field(False, description="Share the workspace with other kernels that say the same.")


class JobRequest(KernelOptions):
    """The body of POST /api/executions."""

    code: str | None = Field(None, max_length=8 << 20, description="Code: one task.")
    path: str | None = Field(None, max_length=4096, description="A file of the home: one task.")
    tasks: tuple[Task, ...] = Field((), max_length=256, description="Several tasks, run in order.")
    on_error: Literal["stop", "continue"] = Field("stop", description="What an error does to what follows.")
    timeout_s: float | None = Field(
        None, gt=0, description="Seconds for each task that names none; capped by the kernel's limits."
    )
    kernel_id: str | None = Field(None, max_length=64, description="The kernel to run in.")
    context: ContextName | None = Field(None, description="A context to run in; made when it is new.")
    ttl_s: float | None = Field(
        None, gt=0, description="Idle seconds after which a context that is made ends."
    )
    mode: Literal["wait", "stream", "job"] = Field("wait", description="How it is answered.")
    wait_s: float = Field(0.0, ge=0, le=60, description="For a job: seconds to wait for its end.")
    artifacts: bool = Field(False, description="List the files that it made or changed; takes `files`.")
    dataframes: bool = Field(False, description="Show pandas' DataFrames as JSON too (Table Schema).")
    text_chars: int | None = Field(
        None, ge=200, le=8 << 20, description="Cut each text of the result to so many characters."
    )
    tools: tuple[ToolOffer, ...] = Field((), max_length=64, description="Tools that the code may call.")
    parent_call: str | None = Field(
        None, max_length=64, description="The tool call that this execution helps to answer."
    )
    ttl_result_s: float | None = Field(
        None, gt=0, description="Seconds that the result is kept; capped by the gateway's setting."
    )

    @model_validator(mode="after")
    def _plain(self) -> Self:
        if [self.code is not None, self.path is not None, bool(self.tasks)].count(True) != 1:
            raise ValueError("give one of code, path and tasks")
        if self.kernel_id is not None and self.context is not None:
            raise ValueError("give kernel_id or context, not both")
        if self.kernel_id is not None and (self.kernel or self.env or self.limits or self.workspace):
            raise ValueError("kernel, env, limits and workspace are for a kernel that is started")
        return self

    def work(self) -> tuple[Task, ...]:
        """Return the tasks, however they were given."""
        if self.tasks:
            return self.tasks
        return (Task(code=self.code, path=self.path),)


EventType = Literal[
    "started",
    "stdout",
    "stderr",
    "display",
    "result",
    "update_display",
    "clear",
    "error",
    "tool_call",
    "tool_answer",
    "paused",
    "resumed",
    "task_ended",
    "gap",
    "ended",
]


class Event(Frozen):
    """One thing that happened in an execution. `seq` numbers them from 1 on; what does not apply is left out.

    A `gap` stands for events that were let go of before this reader came: `bytes` of them.
    """

    seq: int
    type: EventType
    task: int = Field(0, description="Index of the task.")
    text: str | None = None
    data: dict[str, Any] | None = Field(None, description="A mime bundle.")
    metadata: dict[str, Any] | None = None
    display_id: str | None = None
    execution_count: int | None = None
    wait: bool | None = None
    ename: str | None = None
    evalue: str | None = None
    traceback: list[str] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: dict[str, Any] | None = None
    status: JobStatus | None = None
    reason: str | None = None
    kernel_id: str | None = None
    bytes: int | None = None

    def wire(self) -> dict[str, Any]:
        """Return it as a JSON object, without what does not apply."""
        return self.model_dump(mode="json", exclude_none=True)


class TaskUsage(Model):
    """What a task took: seconds, and bytes at the cell's peak so far; None where this machine cannot tell."""

    wall_s: float
    cpu_s: float | None = None
    memory_peak_bytes: int | None = None


class TaskResult(ExecutionResult):
    """What one task gave. `clean` is the error as people read it: no colours, the code's own frames only."""

    clean: str | None = None
    usage: TaskUsage | None = None


class TaskView(Model):
    """One task of a list."""

    name: str | None = None
    status: JobStatus
    result: TaskResult | None = None


class Failure(Model):
    """Why an execution could not be run: the shape of every error."""

    message: str
    reason: str | None = None
    code: str


class JobView(Model):
    """An execution as the API shows it: `result` of the one task, or `tasks` of a list."""

    id: str
    status: JobStatus
    reason: str | None = Field(None, description="Why it ended as it did, where that has a name.")
    kernel_id: str | None = None
    context: str | None = None
    created_at: str
    started_at: str | None = None
    ended_at: str | None = None
    expires_at: str | None = None
    failure: Failure | None = None
    result: TaskResult | None = None
    tasks: list[TaskView] | None = None
    pending_calls: list[Event] = Field(
        default_factory=list, description="Tool calls that wait for an answer."
    )
    events: list[Event] | None = None
    cursor: int = Field(0, description="Where to go on: the number of the last event.")


class JobRecord(Frozen):
    """What the store keeps of an execution; `body` has its results and events, compressed."""

    id: str
    owner: str
    idempotency_key: str | None = None
    request_sha256: str
    status: JobStatus
    reason: str | None = None
    kernel_id: str | None = None
    context: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: datetime
    body: bytes = Field(b"", repr=False)


class JobSummary(Model):
    """An execution in a list."""

    id: str
    status: JobStatus
    kernel_id: str | None = None
    context: str | None = None
    created_at: str
    ended_at: str | None = None


class TextPage(Model):
    """A part of a text of a result: characters from `offset` on."""

    text: str
    offset: int
    next_offset: int | None
    total: int


class CallAnswer(Frozen):
    """What a client answers to a tool call: a JSON value, or why there is none."""

    result: Any = None
    error: str | None = Field(None, max_length=64 << 10, description="What went wrong, for the code to see.")


class ContextView(Model):
    """A named context: its kernel, and until when it lives unless it is used."""

    name: str
    kernel_id: str
    kernel: str
    state: str
    reason: DeathReason | None = None
    created_at: str
    expires_at: str | None
    limits: Limits
    workspace: str | None = None


class ContextChange(KernelOptions):
    """The body of PUT /api/contexts/{name}: what its kernel shall be, if it has to be made."""

    ttl_s: float | None = Field(None, gt=0, description="Idle seconds after which it ends.")
