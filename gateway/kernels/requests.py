"""The requests that one kernel has been asked and has not answered, and the deadlines of executions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from gateway.models import DeathReason, ExecutionStatus, Message, Origin
from gateway.ports import Subscriber


@dataclass(slots=True, eq=False)
class Pending:
    """A request on its way. `timeout_s` is set for executions; their clock starts when they begin to run.

    `asked` is in monotonic seconds; `status`, `reason` and `output_bytes` become an execution's record.
    """

    message: Message
    subscriber: Subscriber
    timeout_s: float | None = None
    origin: Origin | None = None
    asked: float = 0.0
    status: ExecutionStatus = ExecutionStatus.DEAD
    reason: DeathReason | None = None
    output_bytes: int = 0
    working: bool = False
    replied: bool = False
    idle: bool = False
    timed_out: bool = False
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)
    over: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def stop_clock(self) -> None:
        """Forget the deadline."""
        if self.timer:
            self.timer.cancel()
            self.timer = None


class Requests:
    """Pending requests by msg_id; executions among them run in the order in which they came."""

    def __init__(self, *, on_deadline: Callable[[Pending], None], on_done: Callable[[Pending], None]) -> None:
        self._pending: dict[str, Pending] = {}
        self._on_deadline = on_deadline
        self._on_done = on_done

    def __len__(self) -> int:
        return len(self._pending)

    def __iter__(self) -> Iterator[Pending]:
        return iter(list(self._pending.values()))

    def get(self, msg_id: str) -> Pending | None:
        """Return a pending request."""
        return self._pending.get(msg_id)

    @property
    def busy(self) -> bool:
        """Whether an execution is pending, or the kernel works on anything else that came by shell."""
        return any(
            pending.timeout_s is not None or (pending.working and pending.message.channel == "shell")
            for pending in self._pending.values()
        )

    def add(self, pending: Pending) -> None:
        """Note a request that is being sent; the first execution's clock starts at once."""
        self._pending[pending.message.msg_id] = pending
        self._start_next()

    def begun(self, pending: Pending) -> None:
        """Note that the kernel works on a request: its clock starts, if it has not."""
        pending.working = True
        self._start_clock(pending)

    def replied(self, pending: Pending) -> None:
        """Note the reply to a request; on shell, the kernel still has to say that it is idle."""
        pending.replied = True
        if pending.idle or pending.message.channel == "control":
            self.done(pending)

    def idle(self, pending: Pending) -> None:
        """Note that the kernel has finished with a request; comm messages never get a reply."""
        pending.idle = True
        if pending.replied or pending.message.msg_type in {"comm_open", "comm_msg", "comm_close"}:
            self.done(pending)

    def done(self, pending: Pending) -> None:
        """Forget a request that is answered in full; the next execution's clock starts."""
        pending.stop_clock()
        pending.over.set()
        if self._pending.get(pending.message.msg_id) is pending:
            del self._pending[pending.message.msg_id]
            self._on_done(pending)
        self._start_next()

    def drain(self) -> list[Pending]:
        """Forget all requests and return them, oldest first: their kernel will not answer any more."""
        drained = list(self._pending.values())
        self._pending.clear()
        for pending in drained:
            pending.stop_clock()
            pending.over.set()
        return drained

    def disown(self, subscriber: Subscriber, heir: Subscriber) -> None:
        """Let a subscriber go; what it asked goes on, with its deadlines."""
        for pending in self._pending.values():
            if pending.subscriber is subscriber:
                pending.subscriber = heir

    def _start_next(self) -> None:
        # a kernel that never says "busy" is timed all the same: the oldest execution is the running one
        for pending in self._pending.values():
            if pending.timeout_s is not None:
                self._start_clock(pending)
                return

    def _start_clock(self, pending: Pending) -> None:
        if pending.timeout_s is not None and pending.timer is None and not pending.timed_out:
            loop = asyncio.get_running_loop()
            pending.timer = loop.call_later(pending.timeout_s, self._expire, pending)

    def _expire(self, pending: Pending) -> None:
        pending.timer = None
        pending.timed_out = True
        self._on_deadline(pending)
