"""What one kernel has been asked and has not answered: in which order, and until when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from gateway.kernels.overflow import Overflow
from gateway.models import DeathReason, ExecutionStatus, Message, Origin, Page
from gateway.ports import Subscriber

_NO_REPLY = frozenset({"comm_open", "comm_msg", "comm_close"})


@dataclass(slots=True, eq=False)
class Pending:
    """A request on its way. `timeout_s` is set for executions; their clock starts when they begin to run.

    `asked` and `begun` are in monotonic seconds; `status`, `reason`, `output_bytes` and `cut_bytes` become
    an execution's record.
    `aside` says that it runs in a subshell (JEP 91), beside the others. `page` is whose it is, also when
    that one is away; `question` is the input_request that waits for an answer.
    """

    message: Message
    subscriber: Subscriber
    timeout_s: float | None = None
    origin: Origin | None = None
    asked: float = 0.0
    aside: bool = False
    held: bool = False
    status: ExecutionStatus = ExecutionStatus.DEAD
    reason: DeathReason | None = None
    output_bytes: int = 0
    cut_bytes: int = 0
    begun: float | None = None
    working: bool = False
    replied: bool = False
    idle: bool = False
    overflow: Overflow | None = None
    page: Page | None = None
    question: Message | None = None
    timed_out: bool = False
    left_s: float | None = None
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)
    over: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def executes(self) -> bool:
        """Whether this is an execution."""
        return self.timeout_s is not None

    @property
    def in_line(self) -> bool:
        """Whether the kernel takes this up only after what was asked before it."""
        return self.message.channel == "shell" and not self.aside

    def stop_clock(self) -> None:
        """Stop the deadline's clock, and keep what was left of it."""
        if self.timer:
            self.left_s = max(0.0, self.timer.when() - asyncio.get_running_loop().time())
            self.timer.cancel()
            self.timer = None


class Requests:
    """Pending requests by msg_id, in the order in which they came.

    While an execution runs, the next one is held here, and with it whatever comes after it on shell: so a
    held execution can be cancelled before the kernel has ever seen it. While closed, everything is held.
    """

    def __init__(
        self,
        *,
        on_release: Callable[[Pending], None],
        on_deadline: Callable[[Pending], None],
        on_done: Callable[[Pending], None],
    ) -> None:
        self._pending: dict[str, Pending] = {}
        self._on_release = on_release
        self._on_deadline = on_deadline
        self._on_done = on_done
        self._open = False
        self._frozen = False

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
            pending.executes or (pending.working and pending.message.channel == "shell")
            for pending in self._pending.values()
        )

    def add(self, pending: Pending) -> None:
        """Take a request: it is released at once, or when its turn comes."""
        pending.held = True
        self._pending[pending.message.msg_id] = pending
        self.release()

    def open(self) -> None:
        """Let requests go to the kernel from now on."""
        self._open = True
        self.release()

    def close(self) -> None:
        """Hold requests from now on: there is no kernel to take them."""
        self._open = False

    def release(self) -> None:
        """Release every request whose turn has come."""
        waiting = running = False
        for pending in self:
            if not pending.held:
                running = running or (pending.executes and pending.in_line)
                continue
            must_wait = pending.in_line and (waiting or (running and pending.executes))
            if must_wait or not self._open:
                waiting = waiting or pending.in_line
                continue
            pending.held = False
            running = running or (pending.executes and pending.in_line)
            # a kernel that never says "busy" is timed all the same
            self._start_clock(pending)
            self._on_release(pending)

    def begun(self, pending: Pending) -> None:
        """Note that the kernel works on a request."""
        pending.working = True

    def replied(self, pending: Pending) -> None:
        """Note the reply to a request; on shell, the kernel still has to say that it is idle."""
        pending.replied = True
        if pending.idle or pending.message.channel == "control":
            self.done(pending)

    def idle(self, pending: Pending) -> None:
        """Note that the kernel has finished with a request; comm messages never get a reply."""
        pending.idle = True
        if pending.replied or pending.message.msg_type in _NO_REPLY:
            self.done(pending)

    def done(self, pending: Pending) -> None:
        """Forget a request that is answered in full; the next one may have its turn."""
        pending.stop_clock()
        pending.over.set()
        if self._pending.get(pending.message.msg_id) is pending:
            del self._pending[pending.message.msg_id]
            self._on_done(pending)
            self.release()

    def drain(self) -> list[Pending]:
        """Forget all requests and return them, oldest first: their kernel will not answer any more."""
        drained = list(self._pending.values())
        self._pending.clear()
        for pending in drained:
            pending.stop_clock()
            pending.over.set()
        return drained

    def held_executions(self) -> list[Pending]:
        """List the executions that the kernel has not seen."""
        return [pending for pending in self if pending.executes and pending.held]

    def own(self, subscriber: Subscriber, page: Page, *, alone: bool) -> list[Pending]:
        """Give a page its requests back, and where it is `alone` those of its principal's other pages too."""
        theirs = [
            pending
            for pending in self._pending.values()
            if pending.page is not None
            and pending.page.principal == page.principal
            and (alone or (pending.page == page and page.session is not None))
        ]
        for pending in theirs:
            pending.subscriber = subscriber
        return theirs

    def disown(self, subscriber: Subscriber, heir: Subscriber) -> None:
        """Let a subscriber go; what it asked goes on, with its deadlines."""
        for pending in self._pending.values():
            if pending.subscriber is subscriber:
                pending.subscriber = heir

    def freeze(self) -> None:
        """Stop the clocks: the kernel is paused."""
        self._frozen = True
        for pending in self:
            pending.stop_clock()

    def thaw(self) -> None:
        """Let the clocks go on with what was left."""
        self._frozen = False
        for pending in self:
            if not pending.held:
                self._start_clock(pending)

    def _start_clock(self, pending: Pending) -> None:
        if pending.timeout_s is None or pending.timer or pending.timed_out or self._frozen:
            return
        wait = pending.timeout_s if pending.left_s is None else pending.left_s
        pending.timer = asyncio.get_running_loop().call_later(wait, self._expire, pending)

    def _expire(self, pending: Pending) -> None:
        pending.timer = None
        pending.timed_out = True
        self._on_deadline(pending)
