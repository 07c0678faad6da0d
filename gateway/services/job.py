"""One job: what it does, where it is, and how it is shown while it runs and afterwards."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from pydantic import Field

from gateway.models import Message, Principal, timestamp
from gateway.models.base import Model
from gateway.models.jobs import (
    Event,
    Failure,
    JobRecord,
    JobRequest,
    JobStatus,
    JobView,
    Task,
    TaskResult,
    TaskView,
)
from gateway.protocol.narration import shorten, tell
from gateway.services.journal import Journal

if TYPE_CHECKING:
    from gateway.errors import GatewayError
    from gateway.models import Origin
    from gateway.services.callbacks import CallDesk

# A body up to this size takes longer to compress than to write.
PLAIN_BYTES = 4096


class JobBody(Model):
    """What a job gave: its tasks' results, and its events as far as they are kept."""

    single: bool
    failure: Failure | None = None
    tasks: list[TaskView] = Field(default_factory=list)
    events: list[Event] = Field(default_factory=list)
    forgotten: Event | None = None

    def packed(self) -> bytes:
        """Return it for the store, compressed where it is large. That takes a while: meant for a thread."""
        plain = self.model_dump_json(exclude_none=True).encode()
        return plain if len(plain) <= PLAIN_BYTES else zlib.compress(plain, 1)

    def journal(self) -> Journal:
        """Return the events as a journal that has ended."""
        return Journal(1 << 62, self.events, forgotten=self.forgotten)

    @classmethod
    def unpacked(cls, packed: bytes) -> JobBody:
        """Return what `packed` gave; of a job that never ended there is nothing."""
        if not packed:
            return cls(single=True)
        # no compressed body begins as JSON does
        return cls.model_validate_json(packed if packed.startswith(b"{") else zlib.decompress(packed))


@dataclass(slots=True)
class Work:
    """One task and what has become of it."""

    task: Task
    status: JobStatus = JobStatus.QUEUED
    result: TaskResult | None = None


@dataclass(slots=True, eq=False)
class Job:
    """A job that is on its way. `current` names the execution that runs, `stopping` why no more shall.

    `placed` is set once there is a kernel for it, `done` at its end; both at its end in any case.
    """

    id: str
    principal: Principal
    request: JobRequest
    origin: Origin
    journal: Journal
    created_at: datetime
    expires_at: datetime
    request_sha256: str
    idempotency_key: str | None = None
    depth: int = 1
    desk: CallDesk | None = None
    status: JobStatus = JobStatus.QUEUED
    reason: str | None = None
    error: GatewayError | None = None
    kernel_id: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    current: str | None = None
    stopping: str | None = None
    runner: asyncio.Task[None] | None = None
    work: list[Work] = field(default_factory=list)
    placed: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def owner(self) -> str:
        """The name of the principal whose job this is."""
        return self.principal.name

    def hear(self, index: int, message: Message) -> None:
        """Take a message of the task that runs into the journal."""
        told = tell(message)
        if told is not None:
            kind, fields = told
            self.journal.add(kind, task=index, **fields)

    def record(self, body: bytes = b"") -> JobRecord:
        """Return what the store keeps."""
        return JobRecord(
            id=self.id,
            owner=self.owner,
            idempotency_key=self.idempotency_key,
            request_sha256=self.request_sha256,
            status=self.status,
            reason=self.reason,
            kernel_id=self.kernel_id,
            context=self.request.context,
            created_at=self.created_at,
            started_at=self.started_at,
            ended_at=self.ended_at,
            expires_at=self.expires_at,
            body=body,
        )

    def ending(self) -> Event:
        """Return its last event, which readers get once it is kept."""
        return Event(seq=self.journal.last + 1, type="ended", status=self.status, reason=self.reason)

    def body(self) -> JobBody:
        """Return what it has given so far; with its last event, once it has ended."""
        ending = [self.ending()] if self.ended_at and not self.journal.closed else []
        return JobBody(
            single=not self.request.tasks,
            failure=Failure.model_validate(self.error.body()) if self.error else None,
            tasks=[TaskView(name=w.task.name, status=w.status, result=w.result) for w in self.work],
            events=[*self.journal.events(), *ending],
            forgotten=self.journal.forgotten,
        )

    def view(self, *, cursor: int | None, text_chars: int | None) -> JobView:
        """Show it as it is now."""
        events = self.journal.after(cursor) if cursor is not None else None
        shown = show(self.record(), self.body(), events=events, last=self.journal.last, text_chars=text_chars)
        shown.pending_calls = self.desk.pending() if self.desk else []
        return shown


def show(
    record: JobRecord, body: JobBody, *, events: list[Event] | None, last: int, text_chars: int | None
) -> JobView:
    """Show a job, each text of its results cut to `text_chars`."""
    if text_chars is not None:
        body.tasks = [
            task.model_copy(update={"result": task.result and shortened(task.result, text_chars)})
            for task in body.tasks
        ]
    moments = (record.created_at, record.started_at, record.ended_at, record.expires_at)
    created, started, ended, expires = (moment and timestamp(moment) for moment in moments)
    return JobView(
        id=record.id,
        status=record.status,
        reason=record.reason,
        kernel_id=record.kernel_id,
        context=record.context,
        created_at=created or "",
        started_at=started,
        ended_at=ended,
        expires_at=expires if ended else None,
        failure=body.failure,
        result=body.tasks[0].result if body.single and body.tasks else None,
        tasks=None if body.single else body.tasks,
        events=events,
        cursor=last if events is None else (events[-1].seq if events else last),
    )


def shortened(result: TaskResult, most: int) -> TaskResult:
    """Return a result whose texts have at most about `most` characters each; pictures stay whole."""
    outputs = []
    for output in result.outputs:
        changed = dict(output)
        if isinstance(output.get("text"), str):
            changed["text"] = shorten(output["text"], most)
        if isinstance(output.get("data"), dict):
            changed["data"] = {
                kind: shorten(value, most) if kind.startswith("text/") and isinstance(value, str) else value
                for kind, value in output["data"].items()
            }
        if isinstance(output.get("traceback"), list):
            changed["traceback"] = [shorten("\n".join(output["traceback"]), most)]
        outputs.append(changed)
    short = result.model_copy(
        update={
            "stdout": shorten(result.stdout, most),
            "stderr": shorten(result.stderr, most),
            "clean": result.clean and shorten(result.clean, most),
            "outputs": outputs,
            "error": result.error
            and result.error.model_copy(
                update={
                    "evalue": shorten(result.error.evalue, most),
                    "traceback": [shorten("\n".join(result.error.traceback), most)],
                }
            ),
        }
    )
    cut = len(result.stdout) > most or len(result.stderr) > most
    return short.model_copy(update={"truncated": result.truncated or cut})
