"""What is told of every execution that ended: to logs and metrics, to webhooks, to traces."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import structlog

from gateway.models import ExecutionStatus
from gateway.models.notices import Notice, NoticeKind

if TYPE_CHECKING:
    from gateway.models import ExecutionRecord
    from gateway.ports import Clock
    from gateway.ports.events import Notifier
    from gateway.ports.tracing import Tracer
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

LOG_S = 0.002


class ExecutionLog:
    """Counts and logs every execution that ended, with a hash of its code: a `ports.ExecutionObserver`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def ended(self, record: ExecutionRecord) -> None:
        """Take the record of an execution."""
        self._metrics.executions.labels(record.status.value).inc()
        self._metrics.execution_seconds.observe(record.duration_s)
        if record.queue_s is not None:
            self._metrics.execution_queue_seconds.observe(record.queue_s)
        if record.status is ExecutionStatus.TIMEOUT:
            self._metrics.hit("deadline")
        if record.cut_bytes:
            self._metrics.hit("output")
        line = partial(
            log.info,
            "execution_ended",
            kernel=record.kernel_id,
            owner=record.owner,
            status=record.status.value,
            reason=record.reason,
            duration_s=round(record.duration_s, 6),
            output_bytes=record.output_bytes,
            code_sha256=record.code_sha256,
            request_id=record.origin.request_id,
        )
        # who waits for the end does not wait for its line, which takes longer to write than all else
        asyncio.get_running_loop().call_later(LOG_S, line)


class ExecutionNotices:
    """Gives notice of every execution that ended: a `ports.ExecutionObserver`."""

    def __init__(self, notifier: Notifier, clock: Clock) -> None:
        self._notifier = notifier
        self._clock = clock

    def ended(self, record: ExecutionRecord) -> None:
        """Take the record of an execution."""
        if not self._notifier.listens:
            return
        self._notifier.tell(
            Notice(
                kind=NoticeKind.EXECUTION_FINISHED,
                at=self._clock.now(),
                owner=record.owner,
                principal=record.origin.principal,
                door=record.origin.door,
                kernel_id=record.kernel_id,
                execution_id=record.id,
                request_id=record.origin.request_id,
                status=record.status.value,
                reason=record.reason and record.reason.value,
                duration_s=round(record.duration_s, 6),
                queue_s=None if record.queue_s is None else round(record.queue_s, 6),
                output_bytes=record.output_bytes,
            )
        )


class ExecutionSpans:
    """Adds every execution that ended to the trace of what asked for it: a `ports.ExecutionObserver`."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def ended(self, record: ExecutionRecord) -> None:
        """Take the record of an execution."""
        ok = record.status is ExecutionStatus.OK
        self._tracer.past(
            "execution",
            {
                "cellblock.kernel_id": record.kernel_id,
                "cellblock.execution_id": record.id,
                "cellblock.door": record.origin.door,
                "cellblock.status": record.status.value,
                "cellblock.reason": record.reason and record.reason.value,
                "cellblock.duration_s": record.duration_s,
                "cellblock.queue_s": record.queue_s,
                "cellblock.output_bytes": record.output_bytes,
            },
            parent=record.origin.traceparent,
            started_at=record.started_at,
            duration_s=record.duration_s,
            failure=None if ok else (record.reason or record.status).value,
        )
