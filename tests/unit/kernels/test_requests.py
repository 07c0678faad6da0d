"""The order of requests: what may go to the kernel, what waits, and what is answered when."""

from __future__ import annotations

import asyncio

import pytest

from gateway.kernels.requests import Pending, Requests
from gateway.models import Message
from gateway.protocol.messages import make


class Listener:
    """A subscriber that only counts as one."""

    def deliver(self, message: Message) -> None:
        """Take a message."""

    def ended(self, reason: object) -> None:
        """Take the news."""


class Log:
    """Requests, with what they called back."""

    def __init__(self) -> None:
        self.released: list[Pending] = []
        self.overrun: list[Pending] = []
        self.done: list[Pending] = []
        self.requests = Requests(
            on_release=self.released.append, on_deadline=self.overrun.append, on_done=self.done.append
        )

    def ask(self, kind: str = "execute_request", *, timeout_s: float = 60, aside: bool = False) -> Pending:
        """Add a request on shell."""
        message = make("shell", kind, {}, parent=None, session="s")
        deadline_s = timeout_s if kind == "execute_request" else None
        pending = Pending(message, Listener(), deadline_s, aside=aside)
        self.requests.add(pending)
        return pending

    def finish(self, pending: Pending) -> None:
        """Reply and be idle."""
        self.requests.replied(pending)
        self.requests.idle(pending)


@pytest.fixture
async def log() -> Log:
    """Open requests."""
    log = Log()
    log.requests.open()
    return log


async def test_executions_go_one_by_one(log: Log) -> None:
    """A second execution waits for the first one's end, and what came after it on shell waits with it."""
    first, second, after = log.ask(), log.ask(), log.ask("complete_request")
    assert log.released == [first]

    log.finish(first)

    assert log.released == [first, second, after]


async def test_other_requests_pass_a_running_execution(log: Log) -> None:
    """Where no execution waits before it, anything else goes to the kernel at once."""
    running, completion = log.ask(), log.ask("complete_request")

    assert log.released == [running, completion]


async def test_a_subshell_waits_for_nobody(log: Log) -> None:
    """Executions in a subshell run beside the others."""
    running, waiting, aside = log.ask(), log.ask(), log.ask(aside=True)

    assert log.released == [running, aside]
    assert waiting.held


async def test_nothing_is_released_while_closed() -> None:
    """Without a kernel everything waits, in order."""
    log = Log()
    first, second = log.ask("kernel_info_request"), log.ask()
    assert log.released == []

    log.requests.open()

    assert log.released == [first, second]


async def test_a_request_is_over_with_reply_and_idle(log: Log) -> None:
    """Neither the reply nor the idle status alone ends a request, in whichever order they come."""
    first = log.ask()
    log.requests.idle(first)
    assert log.done == []
    log.requests.replied(first)
    assert log.done == [first]

    comm = log.ask("comm_msg")
    log.requests.idle(comm)
    assert log.done == [first, comm]


async def test_a_deadline_runs_from_release(log: Log) -> None:
    """The clock of a waiting execution stands still; it starts when its turn comes."""
    first, second = log.ask(timeout_s=60), log.ask(timeout_s=0.05)
    await asyncio.sleep(0.1)
    assert log.overrun == []

    log.finish(first)
    await asyncio.sleep(0.1)

    assert log.overrun == [second]


async def test_a_pause_keeps_what_was_left(log: Log) -> None:
    """Frozen clocks do not run; thawed, they go on with what was left."""
    running = log.ask(timeout_s=0.3)
    await asyncio.sleep(0.1)
    log.requests.freeze()
    await asyncio.sleep(0.4)
    assert log.overrun == []

    log.requests.thaw()
    await asyncio.sleep(0.1)
    assert log.overrun == []
    await asyncio.sleep(0.2)
    assert log.overrun == [running]


async def test_draining_forgets_everything(log: Log) -> None:
    """A drained request is over, its clock stopped, and nothing waits any more."""
    first, second = log.ask(timeout_s=0.05), log.ask()

    assert log.requests.drain() == [first, second]
    await asyncio.sleep(0.1)

    assert first.over.is_set()
    assert log.overrun == []
    assert len(log.requests) == 0
