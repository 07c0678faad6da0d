"""Executions: results, deadlines, deaths, and callers that go away."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.errors import BadRequest, Forbidden, KernelDead, LimitReached, NotFound
from gateway.models import DeathReason, ExecuteRequest, ExecutionStatus, Message, Scope
from gateway.protocol.messages import make
from gateway.services.executions import ExecutionService
from gateway.settings import ExecutionsSettings, Settings
from tests.doubles import MemoryKernel, principal

ALICE, BOB = principal("alice"), principal("bob")


@pytest.fixture
def executions(kernels, clock, audit):
    """The service, with a cap of 100 s and 8 KiB."""
    settings = Settings(executions=ExecutionsSettings(max_timeout_s=100, max_output_bytes=8192))
    return ExecutionService(kernels, clock, settings, audit)


@pytest.fixture
async def kernel(kernels, host) -> MemoryKernel:
    """A kernel of Alice's."""
    return host.kernels[(await kernels.create(ALICE)).id]


class Socket:
    """Another subscriber of a kernel, such as a notebook's socket."""

    def __init__(self) -> None:
        self.types: list[str] = []

    def deliver(self, message: Message) -> None:
        """Note the type."""
        self.types.append(message.msg_type)

    def ended(self, reason: DeathReason) -> None:
        """Note the end."""
        self.types.append(f"ended:{reason}")


def request(code: str) -> Message:
    """Return an execute_request as a socket sends it."""
    return make("shell", "execute_request", {"code": code}, parent=None, session="s")


async def until(condition) -> None:
    """Give the loop turns until something holds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def running(executions, kernel, code="wait", **fields):
    """Start an execution in a task and wait until the kernel has its request."""
    before = len(kernel.sent)
    task = asyncio.create_task(executions.run(ALICE, kernel.id, ExecuteRequest(code=code, **fields)))
    await until(lambda: len(kernel.sent) > before)
    await asyncio.sleep(0)
    return task


async def test_result_is_folded(executions, kernel):
    """Output and reply become one result, and the private subscriber is no connection and leaves."""
    result = await executions.run(ALICE, kernel.id, ExecuteRequest(code="print hello"))

    assert (result.status, result.stdout, result.execution_count) == (ExecutionStatus.OK, "hello\n", 1)
    assert kernel.subscribers == 0


async def test_error_of_the_codes_own(executions, kernel):
    """An exception is the result's, not ours."""
    result = await executions.run(ALICE, kernel.id, ExecuteRequest(code="raise ValueError"))

    assert result.status is ExecutionStatus.ERROR
    assert result.error is not None
    assert result.error.ename == "ValueError"


async def test_the_request_sent(executions, kernel):
    """The kernel gets an execute_request that allows no stdin, with the caller's flags."""
    task = await running(executions, kernel, silent=True, stop_on_error=False)
    message, _ = kernel.sent[0]
    assert (kernel.connections, kernel.subscribers) == (0, 1)
    kernel.expire()
    await task

    assert (message.channel, message.msg_type, message.authored) == ("shell", "execute_request", True)
    assert json.loads(message.content) == {
        "code": "wait",
        "silent": True,
        "store_history": False,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": False,
    }
    assert b"alice" not in message.header


@pytest.mark.parametrize("wanted", [None, 7])
async def test_timeout_is_the_requests(executions, kernel, wanted):
    """The deadline that a request asks for is passed on; the kernel's own limits cap it."""
    await executions.run(ALICE, kernel.id, ExecuteRequest(code="1", timeout_s=wanted))

    assert kernel.sent[0][1] == wanted


async def test_deadline_is_told(executions, kernel):
    """An execution that its deadline interrupted has status and reason timeout."""
    task = await running(executions, kernel)
    kernel.expire()
    result = await task

    assert (result.status, result.reason) == (ExecutionStatus.TIMEOUT, DeathReason.TIMEOUT)


async def test_interrupt_by_another_is_told(executions, kernel, kernels):
    """An interrupt that was asked for is no timeout."""
    task = await running(executions, kernel)
    await kernels.interrupt(ALICE, kernel.id)

    assert (await task).status is ExecutionStatus.INTERRUPTED


async def test_death_is_told_with_its_reason(executions, kernel):
    """A kernel that dies in the middle answers: dead, of what, with the output so far."""
    task = await running(executions, kernel)
    kernel.die(DeathReason.OOM)
    result = await task

    assert (result.status, result.reason) == (ExecutionStatus.DEAD, DeathReason.OOM)
    assert kernel.subscribers == 0


async def test_dead_kernel_answers_at_once(executions, kernel):
    """A request to a dead kernel is answered like one that it died under."""
    kernel.die(DeathReason.CPU)
    result = await executions.run(ALICE, kernel.id, ExecuteRequest(code="1"))

    assert (result.status, result.reason) == (ExecutionStatus.DEAD, DeathReason.CPU)


async def test_end_without_an_answer(executions, kernel, monkeypatch):
    """Were a kernel removed without any answer, its end is one."""
    task = await running(executions, kernel)
    monkeypatch.setattr(kernel, "_answer_all", lambda _: None)
    await kernel.shutdown(DeathReason.CULLED)
    result = await task

    assert (result.status, result.reason) == (ExecutionStatus.DEAD, DeathReason.CULLED)


async def test_a_kernel_cannot_feign_its_death(executions, kernel):
    """The reason of a death is believed to the gateway's own messages only."""
    task = await running(executions, kernel)
    message, _ = kernel.sent[0]
    for channel, kind, body in (
        ("shell", "execute_reply", {"status": "error", "ename": "X", "evalue": "", "traceback": []}),
        ("iopub", "status", {"execution_state": "idle"}),
    ):
        lie = make(
            channel, kind, body, parent=message, session="s", metadata={"cellblock": {"reason": "oom"}}
        )
        lie.authored = False
        for subscriber, _ in list(kernel._subscribers.values()):
            subscriber.deliver(lie)
    result = await task

    assert (result.status, result.reason) == (ExecutionStatus.ERROR, None)


async def test_output_is_bounded_by_settings(executions, kernel):
    """Output beyond the settings' cap is cut and the result says so."""
    result = await executions.run(ALICE, kernel.id, ExecuteRequest(code="print " + "x" * 50_000))

    assert result.truncated
    assert len(result.stdout) < 10_000


async def test_duration_is_the_clocks(executions, kernel, clock):
    """The duration is measured from sending to the end."""
    task = await running(executions, kernel)
    clock.advance(2.5)
    kernel.expire()

    assert (await task).duration_s == 2.5


async def test_messages_are_seen_as_they_come(executions, kernel):
    """`on_message` sees this execution's messages in order, and none of another's."""
    seen: list[str] = []
    other = Socket()
    kernel.attach(other)
    kernel.send(request("print other"), other)
    await executions.run(
        ALICE,
        kernel.id,
        ExecuteRequest(code="print x"),
        on_message=lambda message: seen.append(message.msg_type),
    )

    assert seen == ["status", "execute_input", "stream", "execute_reply", "status"]


async def test_a_failing_observer_fails_its_run_alone(executions, kernel):
    """What `on_message` raises comes out of run, the execution is interrupted, other subscribers get all."""
    other = Socket()
    kernel.attach(other)

    def fail(message: Message) -> None:
        raise RuntimeError("observer")

    with pytest.raises(RuntimeError, match="observer"):
        await executions.run(ALICE, kernel.id, ExecuteRequest(code="wait"), on_message=fail)

    assert kernel.interrupts == 1
    assert other.types == ["status", "execute_input", "error", "status"]
    assert kernel.subscribers == 1


async def test_cancelled_caller_interrupts(executions, kernel):
    """When the client goes away, its execution is interrupted before the cancellation goes on."""
    task = await running(executions, kernel)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert kernel.interrupts == 1
    assert kernel.subscribers == 0


async def test_cancelled_twice_interrupts_all_the_same(executions, kernel, monkeypatch):
    """An impatient second cancellation does not stop the interrupt."""
    task = await running(executions, kernel)
    gate, interrupt = asyncio.Event(), kernel.interrupt

    async def slow() -> None:
        await gate.wait()
        await interrupt()

    monkeypatch.setattr(kernel, "interrupt", slow)
    task.cancel()
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    await until(lambda: kernel.subscribers == 0)

    assert kernel.interrupts == 1


async def test_cancelled_while_waiting_spares_what_runs(executions, kernel):
    """A cancelled execution that has not begun is taken back, and the one before it is left alone."""
    notebook = Socket()
    kernel.attach(notebook)
    kernel.send(request("wait"), notebook)
    task = await running(executions, kernel)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert kernel.interrupts == 0
    assert "error" not in notebook.types
    assert kernel.subscribers == 1

    await kernel.interrupt()
    assert notebook.types.count("execute_input") == 1


async def test_an_interrupt_that_is_lost_is_repeated(executions, kernel, monkeypatch):
    """A kernel in the first moments of an execution passes an interrupt over: it comes again."""
    monkeypatch.setattr("gateway.services.executions._HEED_S", 0.02)
    lost, interrupt = 0, kernel.interrupt

    async def once_in_vain() -> None:
        nonlocal lost
        if lost:
            await interrupt()
        lost += 1

    monkeypatch.setattr(kernel, "interrupt", once_in_vain)
    task = await running(executions, kernel)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: kernel.subscribers == 0)

    assert (lost, kernel.interrupts) == (2, 1)


async def test_interrupt_after_cancel_is_best_effort(executions, kernel, monkeypatch):
    """A kernel that cannot be interrupted does not turn a cancellation into another error."""

    async def refuse() -> None:
        raise KernelDead("The kernel is dead.")

    monkeypatch.setattr(kernel, "interrupt", refuse)
    task = await running(executions, kernel)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert kernel.subscribers == 0


async def test_too_many_waiting(executions, kernel):
    """A refused request interrupts nothing and leaves no subscriber."""
    notebook = Socket()
    kernel.attach(notebook)
    kernel.send(request("wait"), notebook)
    await until(lambda: "execute_input" in notebook.types)
    for _ in range(100):
        kernel.send(request("1"), notebook)
    with pytest.raises(LimitReached):
        await executions.run(ALICE, kernel.id, ExecuteRequest(code="1"))

    assert (kernel.interrupts, kernel.subscribers) == (0, 1)


async def test_owner_and_scope(executions, kernel):
    """Another's kernel does not exist, and a credential without `execute` runs nothing."""
    with pytest.raises(NotFound, match="Kernel does not exist"):
        await executions.run(BOB, kernel.id, ExecuteRequest(code="1"))
    with pytest.raises(Forbidden, match="'execute'"):
        await executions.run(principal("alice", Scope.KERNELS), kernel.id, ExecuteRequest(code="1"))
    assert kernel.sent == []

    await executions.run(principal("alice", Scope.EXECUTE), kernel.id, ExecuteRequest(code="1"))
    assert len(kernel.sent) == 1


async def test_code_must_be_text(executions, kernel):
    """Code that JSON cannot carry is the caller's error."""
    with pytest.raises(BadRequest, match="text"):
        await executions.run(ALICE, kernel.id, ExecuteRequest.model_construct(code="\ud800"))

    assert kernel.sent == []
