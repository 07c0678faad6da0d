"""The conversation between a kernel and those who listen to it: who asked what, who gets which answer."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from gateway.errors import LimitReached, NotFound
from gateway.kernels import answers
from gateway.kernels.advice import REFUSED, Advice
from gateway.kernels.overflow import Overflow
from gateway.kernels.replay import Gap, Replay
from gateway.kernels.requests import Pending, Requests
from gateway.models import (
    Channel,
    DeathReason,
    Execution,
    ExecutionRecord,
    ExecutionState,
    ExecutionStatus,
    Limits,
    Message,
    Origin,
    Page,
    timestamp,
)
from gateway.ports import Audit, Clock, ExecutionGate, ExecutionObserver, Subscriber
from gateway.telemetry import Metrics

REMEMBERED_TIMEOUTS = 1000
# how long the reply of an idle kernel is waited for
MUTE_S = 2.0
# how long the pages of an earlier gateway's clients may take to come back (JupyterLab tries for two minutes)
RETURN_S = 120.0
MAYBE_MISSED = "The gateway was restarted while this ran: output in between may be missing."
TOO_LARGE = "The kernel's reply was too large and was dropped."


class Nobody:
    """The subscriber of requests whose own has left, and of the gateway's own."""

    def deliver(self, message: Message) -> None:
        """Take a message and do nothing."""

    def ended(self, reason: DeathReason) -> None:
        """Take the news and do nothing."""


NOBODY = Nobody()


class Conversation:
    """Routes one kernel's messages. It outlives the kernel's runs: every request is answered, come what may.

    `transmit` sends a message to the kernel of the moment; `on_overrun` is called for an execution whose
    time is over.
    """

    def __init__(
        self,
        *,
        kernel_id: str,
        owner: str,
        limits: Limits,
        session: str,
        max_pending: int,
        replay_bytes: int,
        clock: Clock,
        observer: ExecutionObserver,
        gate: ExecutionGate,
        audit: Audit,
        advice: Advice,
        metrics: Metrics,
        transmit: Callable[[Message], None],
        on_overrun: Callable[[Pending], None],
    ) -> None:
        self._kernel_id = kernel_id
        self._owner = owner
        self._limits = limits
        self._session = session
        self._max_pending = max_pending
        self._clock = clock
        self._observer = observer
        self._gate = gate
        self._audit = audit
        self._advice = advice
        self._asked_bytes = metrics.relayed("to_kernel")
        self._said_bytes = metrics.relayed("from_kernel")
        self._transmit = transmit
        self._on_overrun = on_overrun
        self._requests = Requests(on_release=self._release, on_deadline=self._deadline, on_done=self._record)
        self._subscribers: dict[Subscriber, bool] = {}
        self._replay = Replay(replay_bytes)
        self._probe: Pending | None = None
        self._maybe_missed = False
        self._timed_out: deque[str] = deque(maxlen=REMEMBERED_TIMEOUTS)
        self.executions = 0
        self.active_at = clock.monotonic()
        self.last_activity = clock.now()

    @property
    def connections(self) -> int:
        """How many client sockets are attached."""
        return sum(self._subscribers.values())

    @property
    def busy(self) -> bool:
        """Whether the kernel has work."""
        return self._requests.busy

    def timed_out(self, msg_id: str) -> bool:
        """Tell whether this execution was interrupted by its deadline."""
        return msg_id in self._timed_out

    def pending(self, msg_id: str) -> Pending:
        """Return an execution that has not ended. Raises NotFound."""
        pending = self._requests.get(msg_id)
        if pending is None or not pending.executes:
            raise NotFound(f"Execution does not exist: {msg_id}")
        return pending

    def listing(self) -> list[Execution]:
        """List the executions that have not ended, oldest first; the gateway's own are left out."""
        now = self._clock.monotonic()
        return [
            Execution(
                id=pending.message.msg_id,
                kernel_id=self._kernel_id,
                state="queued" if pending.held else "running",
                timeout_s=pending.timeout_s or 0,
                asked_at=timestamp(self._clock.now() - timedelta(seconds=now - pending.asked)),
            )
            for pending in self._requests
            if pending.executes and pending.origin is not None
        ]

    def attach(
        self, subscriber: Subscriber, *, counts: bool, page: Page | None = None, current: bool = False
    ) -> list[Message]:
        """Deliver messages to a subscriber from now on; return what its page missed."""
        self._subscribers[subscriber] = counts
        if page is None:
            return []
        joined = self._replay.join(subscriber, page, current=current)
        missed = [self._shown(item) for item in joined.items]
        for pending in self._requests.own(subscriber, page, alone=joined.alone):
            asked = pending.question
            # another page has it; this one, if it is the same, has confirmed it or finds it among the rest
            same = page.session is not None and pending.page == page
            if asked and not same and asked.offset <= joined.since:
                missed.append(asked)
        return missed

    def confirm(self, subscriber: Subscriber, offset: int) -> None:
        """Note that a subscriber's page has every message up to an offset."""
        self._replay.confirm(subscriber, offset)

    def detach(self, subscriber: Subscriber) -> None:
        """Stop delivering to a subscriber; what it asked goes on within its deadline."""
        self._subscribers.pop(subscriber, None)
        self._requests.disown(subscriber, NOBODY)
        self._replay.leave(subscriber)

    def forget(self) -> None:
        """Let go of the output that is kept for clients that are not there."""
        self._replay.clear()

    def _shown(self, item: Message | Gap) -> Message:
        if isinstance(item, Gap):
            return answers.missing(item, self._session)
        return item

    def say_ended(self, reason: DeathReason) -> None:
        """Tell everybody that the kernel is gone for good."""
        for subscriber in list(self._subscribers):
            subscriber.ended(reason)
        self._subscribers.clear()

    # -- requests -----------------------------------------------------------------------------------------

    def send(
        self, message: Message, subscriber: Subscriber, *, timeout_s: float | None, origin: Origin | None
    ) -> None:
        """Take a client's message.

        Raises:
            LimitReached: too many wait, or a quota is used up.
            AuditUnavailable: an execution's record could not be kept.
        """
        self._asked_bytes[origin.door if origin else "gateway"].inc(message.size)
        if message.channel == "stdin":
            if message.msg_type == "input_reply":
                for asking in self._requests:
                    asking.question = None
            self._transmit(message)
            return
        if len(self._requests) >= self._max_pending or self._requests.get(message.msg_id):
            raise LimitReached("Too many requests are waiting for this kernel.", retry_after_s=1)
        deadline_s = None
        if message.msg_type == "execute_request":
            self._audit.admit()
            # the gateway's own, which prepare a kernel for somebody's, have none: they are not counted
            if origin is not None:
                self._gate.admit(self._owner, self._kernel_id)
                if self._advised_against(message, subscriber, origin):
                    self._gate.release(self._owner, self._kernel_id, 0)
                    return
            deadline_s = min(timeout_s or self._limits.timeout_s, self._limits.max_timeout_s)
            self.executions += 1
            self.touch()
        aside = answers.in_subshell(message)
        pending = Pending(message, subscriber, deadline_s, origin, self._clock.monotonic(), aside)
        pending.overflow = Overflow(self._limits.relay_bytes) if deadline_s else None
        pending.page = self._replay.page_of(subscriber)
        self._requests.add(pending)

    def _advised_against(self, message: Message, subscriber: Subscriber, origin: Origin | None) -> bool:
        """Warn of an execution or answer it in the kernel's place, as the profile's policy has it."""
        verdict, text = self._advice.on(message, origin)
        if verdict == "warn":
            self.notice(text, message)
        elif verdict == "reject":
            for answer in answers.for_policy(message, REFUSED, text, self._session):
                self._deliver(answer, subscriber, self._replay.page_of(subscriber))
        return verdict == "reject"

    def probe(self, message: Message) -> None:
        """Ask something on behalf of an adopted kernel's former clients: it is timed like an execution."""
        pending = Pending(message, NOBODY, self._limits.timeout_s, None, self._clock.monotonic())
        self._probe = pending
        self._requests.add(pending)

    def inherit(self) -> None:
        """Keep what the kernel says for the clients of an earlier gateway, which may come back."""
        self._replay.inherit()
        self._maybe_missed = True
        asyncio.get_running_loop().call_later(RETURN_S, self._replay.disinherit)

    def refuse(self, message: Message, subscriber: Subscriber, reason: DeathReason) -> None:
        """Answer a request in place of a dead kernel."""
        self._refuse(message, subscriber, self._replay.page_of(subscriber), reason)

    def _refuse(
        self, message: Message, subscriber: Subscriber, page: Page | None, reason: DeathReason
    ) -> None:
        text = answers.explain(reason, self._limits)
        for answer in answers.for_dead(message, reason, text, self._session):
            self._deliver(answer, subscriber, page)

    def refuse_all(self, reason: DeathReason) -> None:
        """Answer all that is pending in place of a kernel that died."""
        for pending in self._requests.drain():
            pending.reason = DeathReason.TIMEOUT if pending.timed_out else reason
            self._say_rest(pending)
            self._refuse(pending.message, pending.subscriber, pending.page, pending.reason)
            self._record(pending)

    def cancel(self, pending: Pending) -> None:
        """Answer an execution that the kernel has not seen, as aborted."""
        pending.status = ExecutionStatus.ABORTED
        for answer in answers.aborted(pending.message, self._session):
            self._deliver(answer, pending.subscriber, pending.page)
        self._requests.done(pending)

    def open(self) -> None:
        """Pass requests on: there is a kernel that answers."""
        self.touch()
        self._requests.open()

    def close(self) -> None:
        """Hold requests: there is none for now."""
        self._requests.close()

    def freeze(self) -> None:
        """Stop the clocks of all deadlines."""
        self._requests.freeze()

    def thaw(self) -> None:
        """Let the clocks go on."""
        self._requests.thaw()

    def drop(self) -> None:
        """Forget everything without an answer: another gateway will take the kernel over."""
        self._requests.drain()

    # -- messages -----------------------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Route one checked message of the kernel's; called by the channels' readers."""
        pending = self._requests.get(message.parent_id) if message.parent_id else None
        whose = pending.origin if pending else None
        self._said_bytes[whose.door if whose else "gateway"].inc(message.size)
        if pending and pending.executes:
            self.touch()
        if message.channel == "iopub":
            if pending is None:
                self._note_inherited(message)
                self.broadcast(message)
            else:
                self._receive_iopub(message, pending)
        elif pending:
            said = answers.timed_out(message, pending.timeout_s or 0) if pending.timed_out else message
            if message.msg_type == "input_request":
                pending.question = said
            self._deliver(said, pending.subscriber, pending.page)
            if message.channel == pending.message.channel:
                self._note_reply(message, pending)
        elif self._inherits:
            # asked through an earlier gateway, nobody knows by which of the pages: each knows its own
            self.broadcast(message)

    def cut(self, channel: Channel) -> None:
        """Say that a message was too large and was dropped; a reply that went so is made up for later."""
        if channel == "iopub":
            parent = next((pending.message for pending in self._requests if pending.working), None)
            self.notice("A message was too large and was dropped.", parent, cut=True)

    def broadcast(self, message: Message) -> None:
        """Deliver a message to everybody."""
        self._replay.add(message)
        for subscriber in list(self._subscribers):
            subscriber.deliver(message)

    def notice(self, text: str, parent: Message | None, *, cut: bool = False) -> None:
        """Say a line on stderr to everybody; `cut` marks that output is missing where it stands."""
        self.broadcast(answers.notice(text, parent, self._session, cut=cut))

    def say_state(self, state: ExecutionState) -> None:
        """Tell everybody a change of the kernel's state that the kernel itself cannot tell."""
        self.broadcast(answers.status(state, None, self._session))

    def touch(self) -> None:
        """Note activity of a user's."""
        self.active_at = self._clock.monotonic()
        self.last_activity = self._clock.now()

    @property
    def _inherits(self) -> bool:
        """Whether the kernel may still be at work for an earlier gateway's clients."""
        return self._maybe_missed or (self._probe is not None and not self._probe.over.is_set())

    def _note_inherited(self, message: Message) -> None:
        """Say once that output may have been lost between an earlier gateway and this one."""
        if self._maybe_missed and message.parent_id:
            self._maybe_missed = False
            said = answers.notice(MAYBE_MISSED, None, self._session, cut=True)
            self.broadcast(replace(said, parent_header=message.parent_header, parent_id=message.parent_id))

    def _deliver(self, message: Message, subscriber: Subscriber, page: Page | None) -> None:
        if message.channel == "iopub":
            self.broadcast(message)
            if subscriber in self._subscribers:
                return
        elif page is not None:
            self._replay.add(message, page)
        subscriber.deliver(message)

    def _release(self, pending: Pending) -> None:
        if pending.executes:
            self._replay.begin(pending.message.msg_id)
        try:
            self._transmit(pending.message)
        except LimitReached as error:
            for answer in answers.for_limit(pending.message, error.message, self._session):
                self._deliver(answer, pending.subscriber, pending.page)
            self._requests.done(pending)

    def _deadline(self, pending: Pending) -> None:
        self._timed_out.append(pending.message.msg_id)
        self._on_overrun(pending)

    def _receive_iopub(self, message: Message, pending: Pending) -> None:
        pending.output_bytes += message.size
        state = answers.state_of(message) if message.msg_type == "status" else None
        if state == "idle":
            self._say_rest(pending)
        if pending.timed_out and message.msg_type == "error":
            message = answers.timed_out(message, pending.timeout_s or 0)
        if pending.overflow is None or pending.overflow.passes(message):
            self.broadcast(message)
        if state == "busy":
            if pending.begun is None:
                pending.begun = self._clock.monotonic()
            self._requests.begun(pending)
        elif state == "idle":
            self._requests.idle(pending)
            if not pending.over.is_set():
                self._presume_reply_soon(pending)

    def _say_rest(self, pending: Pending) -> None:
        """Send the mark and the tail of an execution that sent more than is passed on."""
        if pending.overflow:
            cut, tail = pending.overflow.end()
            if cut:
                pending.cut_bytes += cut
                self.notice(f"{cut} bytes of output were cut here.", pending.message, cut=True)
            for message in tail:
                self.broadcast(message)

    def _note_reply(self, message: Message, pending: Pending) -> None:
        if pending.executes:
            pending.status = answers.status_of(message)
            failed = pending.status in {ExecutionStatus.ERROR, ExecutionStatus.INTERRUPTED}
            if failed and answers.stops_on_error(pending.message):
                # as the kernel would abort what waits in its own queue
                for held in self._requests.held_executions():
                    self.cancel(held)
        self._requests.replied(pending)

    def _presume_reply_soon(self, pending: Pending) -> None:
        """Reply in the kernel's place where it is idle and its reply does not come: it was too large."""

        def presume() -> None:
            if pending.over.is_set():
                return
            for answer in answers.for_limit(pending.message, TOO_LARGE, self._session):
                if answer.channel != "iopub":
                    pending.status = ExecutionStatus.ERROR
                    self._deliver(answer, pending.subscriber, pending.page)
            self._requests.replied(pending)

        asyncio.get_running_loop().call_later(MUTE_S, presume)

    def _record(self, pending: Pending) -> None:
        """Tell of an execution that has ended; the gateway's own requests have no origin."""
        self._replay.end(pending.message.msg_id)
        if pending is self._probe:
            self._maybe_missed = False
        if pending.origin is None:
            return
        if pending.message.msg_type == "execute_request":
            self._gate.release(self._owner, self._kernel_id, pending.output_bytes)
        if not pending.executes:
            return
        if pending.timed_out:
            pending.status, pending.reason = ExecutionStatus.TIMEOUT, DeathReason.TIMEOUT
        duration_s = self._clock.monotonic() - pending.asked
        code = answers.code_of(pending.message)
        self._observer.ended(
            ExecutionRecord(
                id=pending.message.msg_id,
                kernel_id=self._kernel_id,
                owner=self._owner,
                origin=pending.origin,
                code_sha256=hashlib.sha256(code.encode("utf-8", "surrogatepass")).hexdigest(),
                code=code,
                status=pending.status,
                reason=pending.reason,
                started_at=self._clock.now() - timedelta(seconds=duration_s),
                duration_s=duration_s,
                output_bytes=pending.output_bytes,
                queue_s=None if pending.begun is None else pending.begun - pending.asked,
                cut_bytes=pending.cut_bytes,
            )
        )
