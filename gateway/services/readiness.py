"""Readiness: whether a kernel can be had now, found out by having one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from gateway.errors import GatewayError, KernelStartFailed
from gateway.models import AuditAction, AuditEvent, AuditOutcome, ExecutionStatus
from gateway.protocol.messages import make
from gateway.protocol.outputs import Collector

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.models import DeathReason, ExecutionResult, KernelSpec, Message
    from gateway.ports import Audit, Clock, KernelHandle, KernelHost, Store
    from gateway.settings import Settings

# how long a failure answers for what is asked after it
FAILED_S = 5.0
# how long what the store has said answers likewise, whoever asks how often
STORE_S = 1.0
ANSWER_S = 10.0
CODE, VALUE = "1+1", "2"
OUTPUT_BYTES = 64 << 10
# everybody may ask: what exactly is wrong stands in the log and in the audit trail
SENTENCE = "The gateway is not ready: the check of its {} failed, and its log says why."

log = structlog.get_logger(__name__)


class Readiness:
    """Tells whether the gateway can do its work; owns the trial that is under way, one at most.

    A trial starts a kernel of the default kernelspec in a proved cell, has it compute, and ends it. Its
    outcome holds for `server.ready_cache_s`, a failure for some seconds.
    """

    def __init__(
        self,
        host: KernelHost,
        store: Store,
        audit: Audit,
        clock: Clock,
        settings: Settings,
        *,
        told: Callable[[float], None],
    ) -> None:
        self._host = host
        self._audit = audit
        self._clock = clock
        self._told = told
        cached_s, kernels = settings.server.ready_cache_s, settings.kernels
        self._longest_s = settings.sandbox.start_timeout_s + kernels.ready_timeout_s + ANSWER_S
        self._cell = _Check("cell", self._try_cell, clock, good_s=cached_s, bad_s=FAILED_S)
        self._store = _Check("store", store.audit_head, clock, good_s=STORE_S, bad_s=STORE_S)

    async def check(self) -> dict[str, str]:
        """Return what was checked, each with "ok".

        Raises the kind of error that the failing part met: SandboxUnavailable, KernelStartFailed,
        StoreUnavailable, AuditUnavailable.
        """
        try:
            self._audit.admit()
        except GatewayError as error:
            raise unready(error, "audit trail") from None
        await self._store.good()
        await self._cell.good()
        return {"audit": "ok", "store": "ok", "cell": "ok"}

    async def close(self) -> None:
        """End what is under way."""
        await self._store.close()
        await self._cell.close()

    async def _try_cell(self) -> None:
        began = self._clock.monotonic()
        failure: str | None = "cancelled"
        try:
            await self._trial()
            failure = None
        except Exception as error:
            failure = error.code if isinstance(error, GatewayError) else type(error).__name__
            raise
        finally:
            self._told(1 if failure is None else 0)
            self._audit.record(
                AuditEvent(
                    action=AuditAction.GATEWAY_TRIAL,
                    outcome=AuditOutcome.OK if failure is None else AuditOutcome.ERROR,
                    door="gateway",
                    reason=failure,
                    duration_s=round(self._clock.monotonic() - began, 6),
                )
            )

    async def _trial(self) -> None:
        spec = (await self._host.specs()).get(self._host.default_spec())
        if spec is None:
            raise KernelStartFailed("There is no default kernelspec.", reason="no_kernelspec")
        most = self._host.profile_limits(spec.profile)
        limits = most.model_copy(update={"timeout_s": ANSWER_S, "max_timeout_s": ANSWER_S})
        try:
            async with asyncio.timeout(self._longest_s), self._host.trial(spec, limits) as handle:
                result = await _compute(handle, self._clock)
        except TimeoutError:
            raise KernelStartFailed("The kernel did not answer in time.", reason="timeout") from None
        if not _is_sum(result, spec):
            raise KernelStartFailed(f"The kernel answered {CODE} wrongly.", reason="answer")


class _Check:
    """One check, made once for all who ask at the same time and for a while after."""

    def __init__(
        self, name: str, look: Callable[[], Awaitable[object]], clock: Clock, *, good_s: float, bad_s: float
    ) -> None:
        self._name = name
        self._look = look
        self._clock = clock
        self._good_s = good_s
        self._bad_s = bad_s
        self._failure: GatewayError | None = None
        self._until = clock.monotonic()
        self._task: asyncio.Task[None] | None = None

    async def good(self) -> None:
        """Return when the check is good; raise of what it failed."""
        if self._task is None and self._clock.monotonic() >= self._until:
            self._task = asyncio.create_task(self._run())
        if self._task is not None:
            # who goes away leaves it to the others
            await asyncio.shield(self._task)
        if self._failure is not None:
            left_s = max(0.0, self._until - self._clock.monotonic())
            raise unready(self._failure, self._name, retry_after_s=left_s)

    async def close(self) -> None:
        """End the look that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        failure: GatewayError | None = None
        try:
            await self._look()
        except GatewayError as error:
            failure = error
            log.warning(
                "not_ready", check=self._name, code=error.code, reason=error.reason, error=error.message
            )
        except Exception:  # a check that cannot be made is not good
            failure = GatewayError("The check failed in an unexpected way.")
            log.exception("not_ready", check=self._name)
        self._failure = failure
        self._until = self._clock.monotonic() + (self._good_s if failure is None else self._bad_s)
        self._task = None


class _Listener:
    """Folds the messages of one execution."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self.finished = asyncio.Event()

    def deliver(self, message: Message) -> None:
        """Take a message."""
        if not self.finished.is_set() and self._collector.feed(message, trusted=message.authored):
            self.finished.set()

    def ended(self, reason: DeathReason) -> None:  # noqa: ARG002 - what it was is in the log
        """Learn that the kernel is gone."""
        self.finished.set()

    def result(self, now: float) -> ExecutionResult:
        """Return what the execution gave."""
        return self._collector.result(now)


async def _compute(handle: KernelHandle, clock: Clock) -> ExecutionResult:
    content = {"code": CODE, "silent": False, "store_history": False, "allow_stdin": False}
    message = make("shell", "execute_request", content, parent=None, session=uuid4().hex)
    listener = _Listener(Collector(message.msg_id, max_bytes=OUTPUT_BYTES, started=clock.monotonic()))
    handle.attach(listener, counts=False)
    try:
        handle.send(message, listener, timeout_s=ANSWER_S)
        await listener.finished.wait()
    finally:
        handle.detach(listener)
    return listener.result(clock.monotonic())


def _is_sum(result: ExecutionResult, spec: KernelSpec) -> bool:
    """Tell whether a kernel has answered; of Python it is known what it must say."""
    if spec.language != "python":
        return result.status in {ExecutionStatus.OK, ExecutionStatus.ERROR}
    said = [output.get("data", {}).get("text/plain") for output in result.outputs]
    return result.status is ExecutionStatus.OK and VALUE in said


def unready(error: GatewayError, part: str, *, retry_after_s: float | None = None) -> GatewayError:
    """Return an error of the same kind that everybody may see, as 503: the service cannot be had now."""
    shown = type(error)(SENTENCE.format(part), reason=error.reason, retry_after_s=retry_after_s or FAILED_S)
    shown.status = 503
    return shown
