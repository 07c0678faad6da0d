"""The gateway's end of the trail: takes events from the loop, has a thread write them, a task copy them."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import structlog

from gateway.audit.folding import Folding
from gateway.audit.journal import Entry, Journal, Position
from gateway.errors import AuditUnavailable, Conflict, StoreUnavailable
from gateway.models import AuditAction, AuditEvent, AuditHead, AuditOutcome, ExecutionRecord, ExecutionStatus
from gateway.origin import current
from gateway.ports import Clock, Store
from gateway.settings import AuditSettings

log = structlog.get_logger(__name__)

BATCH = 256
COPIED_AT_ONCE = 200
SYNC_S = 0.1
WINDOW_S = 1.0
RETRY_S = 0.5
CLOSE_S = 5.0
EVENT_BYTES = 1024
MAX_CODE_BYTES = 64 << 10


class AuditTrail:
    """A `ports.Audit` and a `ports.ExecutionObserver`: owns one writer thread and one copying task.

    The files are what counts; the store's copy follows. What has happened is always taken. When the disk
    refuses, or more waits for it than `audit.queue_bytes`, nothing new is admitted until it is written.
    """

    def __init__(self, journal: Journal, store: Store, clock: Clock, settings: AuditSettings) -> None:
        self._journal = journal
        self._store = store
        self._clock = clock
        self._settings = settings
        self._folding = Folding(settings.refusals_per_s)
        self._unfold: asyncio.TimerHandle | None = None
        self._position = Position(0)
        self._queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._copier: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._taken = self._done = self._waiting_bytes = 0
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._failure: str | None = None
        self._closing = self._stopped = False

    async def start(self) -> None:
        """Begin to write, after the newest record that files or store know. Raises StoreUnavailable."""
        head = await self._store.audit_head()
        self._thread = threading.Thread(target=self._write, args=(head,), name="audit", daemon=True)
        self._thread.start()
        self._position = Position(head.seq)
        self._copier = asyncio.create_task(self._follow())
        self._news.set()

    def record(self, event: AuditEvent) -> None:
        """Take an event; one without a door is the present request's."""
        event = _signed(event)
        if event.outcome is not AuditOutcome.REFUSED and event.action is not AuditAction.REQUEST_FAILED:
            self._put(event)
            return
        if due := self._folding.take(event, fold=self._stalled is not None):
            self._put(due)
        if self._unfold is None:
            self._unfold = self._loop.call_later(WINDOW_S, self._flush)

    def admit(self) -> None:
        """Let something new begin. Raises AuditUnavailable."""
        if why := self._stalled:
            raise AuditUnavailable(f"The audit trail takes no new work: {why}.", retry_after_s=1)

    async def written(self) -> None:
        """Wait until all that was recorded so far is in the files. Raises AuditUnavailable."""
        if self._done >= self._taken:
            return
        if self._failure is not None:
            self.admit()
        future = self._loop.create_future()
        self._waiters.append((self._taken, future))
        await future

    def ended(self, record: ExecutionRecord) -> None:
        """Record an execution's end."""
        ok = record.status is ExecutionStatus.OK
        code = record.code.encode("utf-8", "replace")[:MAX_CODE_BYTES].decode("utf-8", "ignore")
        self.record(
            AuditEvent(
                action=AuditAction.EXECUTION_END,
                outcome=AuditOutcome.OK if ok else AuditOutcome.ERROR,
                who=record.origin.principal,
                key_id=record.origin.key_id,
                address=record.origin.address,
                door=record.origin.door,
                request_id=record.origin.request_id,
                kernel_id=record.kernel_id,
                target=record.id,
                reason=(record.reason or record.status).value,
                code_sha256=record.code_sha256,
                code=code if self._settings.keep_code else None,
                duration_s=round(record.duration_s, 6),
                output_bytes=record.output_bytes,
                extra={} if record.owner == record.origin.principal else {"owner": record.owner},
            )
        )

    @property
    def waiting(self) -> int:
        """How many records wait for the disk."""
        return self._taken - self._done

    @property
    def waiting_bytes(self) -> int:
        """How large they are, about."""
        return self._waiting_bytes

    async def close(self) -> None:
        """Write and copy what is left, for some seconds at most; what the disk refuses goes to the log."""
        if self._unfold is not None:
            self._unfold.cancel()
        for event in self._folding.flush():
            self._put(event)
        self._closing = True
        self._queue.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, CLOSE_S)
        self._stopped = True
        while not self._queue.empty():
            if entry := self._queue.get_nowait():
                _keep_in_log(entry)
        if self._copier is not None:
            # its last round, which the next start repeats if it fails
            self._news.set()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._copier, CLOSE_S)

    @property
    def _stalled(self) -> str | None:
        """Why nothing new may begin, if so."""
        if self._failure is not None:
            return self._failure
        return "the disk is too slow" if self._waiting_bytes > self._settings.queue_bytes else None

    def _put(self, event: AuditEvent) -> None:
        self._taken += 1
        self._waiting_bytes += _size(event)
        self._queue.put((self._clock.now(), event))

    def _flush(self) -> None:
        self._unfold = self._loop.call_later(WINDOW_S, self._flush) if self._stalled else None
        if self._unfold is None:
            for event in self._folding.flush():
                self._put(event)

    # -- the thread ---------------------------------------------------------------------------------------

    def _write(self, head: AuditHead) -> None:
        """Write batches until told to stop, each as often as it takes."""
        last = False
        while not last:
            batch, last = self._batch()
            while batch:
                try:
                    head = self._journal.append(batch, head)
                except Exception as error:  # noqa: BLE001 - whatever it is, no new work without a record
                    self._tell(self._failed, getattr(error, "strerror", None) or type(error).__name__)
                    if self._closing:
                        for entry in batch:
                            _keep_in_log(entry)
                        return
                    time.sleep(RETRY_S)
                else:
                    self._tell(self._wrote, len(batch), sum(_size(event) for _, event in batch))
                    batch = []

    def _batch(self) -> tuple[list[Entry], bool]:
        """Wait for events; return those that are there, and whether they are the last."""
        batch: list[Entry] = []
        entry = self._queue.get()
        while entry is not None:
            batch.append(entry)
            if len(batch) == BATCH:
                return batch, False
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _tell(self, what: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(what, *arguments)

    # -- back in the loop ---------------------------------------------------------------------------------

    def _wrote(self, count: int, size: int) -> None:
        self._done += count
        self._waiting_bytes -= size
        if self._failure is not None:
            log.warning("the audit trail is written again")
            self._failure = None
        while self._waiters and self._waiters[0][0] <= self._done:
            _, future = self._waiters.popleft()
            if not future.done():
                future.set_result(None)
        self._news.set()

    def _failed(self, why: str) -> None:
        if self._failure is None:
            log.error("the audit trail cannot be written: no new work is taken", why=why)
        self._failure = why
        while self._waiters:
            _, future = self._waiters.popleft()
            if not future.done():
                future.set_exception(AuditUnavailable(f"The audit trail cannot be written: {why}."))

    async def _follow(self) -> None:
        """Bring the files to the disk and copy them into the store, whenever something was written."""
        failing = closing = False
        while not closing:
            await self._news.wait()
            if not self._closing:
                await asyncio.sleep(SYNC_S)
            self._news.clear()
            # a close during this round wants another
            closing = self._stopped
            try:
                await self._catch_up()
                failing = False
            except (OSError, StoreUnavailable, Conflict) as error:
                if not failing:
                    log.warning("the audit trail's copy in the store is behind", error=str(error))
                failing = True
                self._news.set()
                await asyncio.sleep(RETRY_S)

    async def _catch_up(self) -> None:
        """Sync, then copy: the store never knows of a record that a power cut could take from the files."""
        await asyncio.to_thread(self._journal.sync)
        while True:
            records, reached = await asyncio.to_thread(self._journal.read, self._position, COPIED_AT_ONCE)
            if not records:
                return
            await self._store.add_audit(records)
            self._position = reached
            for record in records:
                if record.action is AuditAction.AUDIT_PRUNE:
                    await self._store.delete_audit(int(record.extra.get("through") or 0))


def _signed(event: AuditEvent) -> AuditEvent:
    """Put under an event whose request it belongs to; the gateway's own acts say so themselves."""
    if event.door is not None:
        return event
    origin = current()
    if origin is None:
        return event.model_copy(update={"door": "gateway"})
    # the credential's name, and not that of whom it acts for
    theirs = origin.model_dump(exclude={"principal", "traceparent"})
    return event.model_copy(update=theirs | {"who": origin.principal})


def _size(event: AuditEvent) -> int:
    return EVENT_BYTES + len(event.code or "")


def _keep_in_log(entry: Entry) -> None:
    at, event = entry
    facts = event.model_dump(mode="json", exclude_defaults=True)
    log.error("audit record not written", at=at.isoformat(), **facts)
