"""What an operator's own programs may be told of: that something ended, died or was refused."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from uuid import uuid4

from pydantic import Field

from gateway.models.base import Frozen


class NoticeKind(StrEnum):
    """What a notice is about."""

    EXECUTION_FINISHED = "execution.finished"
    JOB_FINISHED = "job.finished"
    KERNEL_DIED = "kernel.died"
    KERNEL_CULLED = "kernel.culled"
    LIMIT_HIT = "limit.hit"


def _new_id() -> str:
    return f"msg_{uuid4().hex}"


class Notice(Frozen):
    """One thing that happened, without code and without outputs; what does not apply is None.

    `id` stays the same however often the notice is sent. `owner` is whose it was, `principal` who did it
    where that is another; `reason` is a short code.
    """

    id: str = Field(default_factory=_new_id)
    kind: NoticeKind
    at: datetime
    owner: str
    principal: str | None = None
    door: str | None = None
    kernel_id: str | None = None
    execution_id: str | None = None
    job_id: str | None = None
    request_id: str | None = None
    status: str | None = None
    reason: str | None = None
    duration_s: float | None = None
    queue_s: float | None = None
    output_bytes: int | None = None
