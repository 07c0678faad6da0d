"""Commands and processes as use cases: time limits, quotas, records, and callers that go away."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from gateway.errors import BadRequest, Forbidden, LimitReached, NotFound, SandboxUnavailable
from gateway.models import AuditAction, Scope
from gateway.models.processes import CommandRun, ProcessStart
from gateway.services.command import Kept
from gateway.services.processes import ProcessService
from gateway.services.quotas import Quotas
from gateway.settings import AuditSettings, QuotaSettings, Settings
from tests.doubles import MemoryKernel, principal

ALICE, BOB = principal("alice"), principal("bob")


class Real:
    """A clock that goes by itself, since what is tested here waits."""

    def __init__(self, clock) -> None:
        self.now = clock.now

    def monotonic(self) -> float:
        """Return the loop's time."""
        return asyncio.get_running_loop().time()


@pytest.fixture
def quotas(store, clock) -> Quotas:
    """Five executions a minute, and 100 bytes of output a day."""
    settings = Settings(quotas=QuotaSettings(executions_per_minute=5, output_bytes_per_day=100))
    return Quotas(settings, store, clock)


@pytest.fixture
def processes(kernels, quotas, clock, audit) -> ProcessService:
    """The service; it keeps the code."""
    settings = Settings(audit=AuditSettings(keep_code=True))
    return ProcessService(kernels, quotas, Real(clock), settings, audit)


@pytest.fixture
async def kernel(kernels, host) -> MemoryKernel:
    """A kernel of alice's."""
    return host.kernels[(await kernels.create(ALICE)).id]


def run(line: str, **fields) -> CommandRun:
    """Return a command."""
    return CommandRun(command=line, **fields)


async def test_a_command_has_a_result_and_a_record(processes, kernel, audit) -> None:
    """Output, exit code, hash and bytes; nothing is left of the process."""
    heard: list[str] = []
    result = await processes.run(ALICE, kernel.id, run("say hello"), on_output=heard.append)

    assert (result.status, result.exit_code, result.stdout, result.truncated) == ("ok", 0, "hello", False)
    assert heard == ["hello"]
    assert kernel.beside.known == {}
    event = audit.events[-1]
    assert (event.action, event.outcome, event.reason, event.output_bytes) == (
        AuditAction.COMMAND_RUN,
        "ok",
        "ok",
        5,
    )
    assert (event.code, event.code_sha256) == ("say hello", hashlib.sha256(b"say hello").hexdigest())
    assert event.extra == {"exit_code": 0}


async def test_a_failing_command_is_a_result_too(processes, kernel, audit) -> None:
    """Its exit code is told; what cannot be run is an error, recorded once."""
    assert (await processes.run(ALICE, kernel.id, run("exit 3"))).status == "error"
    assert audit.events[-1].extra == {"exit_code": 3}
    with pytest.raises(BadRequest) as refused:
        await processes.run(ALICE, kernel.id, run("nonsense"))
    assert refused.value.recorded
    assert (audit.events[-1].outcome, audit.events[-1].reason) == ("error", "bad_request")


@pytest.mark.parametrize(("stubborn", "signals"), [(False, [15]), (True, [15, 9])])
async def test_a_time_limit(processes, kernel, stubborn, signals) -> None:
    """SIGTERM at the limit, and SIGKILL a second later for who goes on."""
    kernel.beside.stubborn = stubborn
    result = await asyncio.wait_for(processes.run(ALICE, kernel.id, run("wait", timeout_s=0.05)), 5)
    assert (result.status, result.exit_code, kernel.beside.signals) == ("timeout", -signals[-1], signals)


async def test_a_time_limit_waits_for_a_paused_kernel(processes, kernel) -> None:
    """Nothing is signalled while the kernel is paused, and the command ends when it goes on."""
    task = asyncio.create_task(processes.run(ALICE, kernel.id, run("wait", timeout_s=0.05)))
    await asyncio.sleep(0.02)
    kernel.beside.paused = True
    await asyncio.sleep(0.3)
    assert not task.done()
    kernel.beside.paused = False
    assert (await asyncio.wait_for(task, 5)).status == "timeout"


async def test_who_goes_away_leaves_nothing(processes, kernel, quotas, audit) -> None:
    """The command of a cancelled caller is killed, also later, when the kernel was paused."""
    task = asyncio.create_task(processes.run(ALICE, kernel.id, run("wait")))
    await asyncio.sleep(0.05)
    kernel.beside.paused = True
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (audit.events[-1].outcome, audit.events[-1].reason) == ("error", "cancelled")
    await asyncio.sleep(0.1)
    assert len(kernel.beside.known) == 1
    kernel.beside.paused = False
    async with asyncio.timeout(5):
        while kernel.beside.known:
            await asyncio.sleep(0.02)


async def test_quotas(processes, kernel) -> None:
    """Commands and starts count as executions, and their output as executions' output."""
    await processes.run(ALICE, kernel.id, run("say " + "x" * 60))
    process = await processes.start(ALICE, kernel.id, ProcessStart(command="say " + "y" * 60))
    await processes.read(ALICE, kernel.id, process.id)
    with pytest.raises(LimitReached) as refused:
        await processes.run(ALICE, kernel.id, run("exit 0"))
    assert refused.value.reason == "output_bytes_per_day"


async def test_a_minutes_quota(processes, kernel) -> None:
    """The sixth is refused, and nothing is started."""
    for _ in range(5):
        await processes.run(ALICE, kernel.id, run("exit 0"))
    with pytest.raises(LimitReached) as refused:
        await processes.start(ALICE, kernel.id, ProcessStart(command="wait"))
    assert refused.value.reason == "executions_per_minute"
    assert kernel.beside.known == {}


async def test_requests_are_activity_and_looks_are_not(processes, kernel, clock) -> None:
    """Who works with a process keeps the kernel from being culled; who lists does not."""
    process = await processes.start(ALICE, kernel.id, ProcessStart(command="wait"))
    for work in (
        lambda: processes.write(ALICE, kernel.id, process.id, b"x"),
        lambda: processes.read(ALICE, kernel.id, process.id),
        lambda: processes.kill(ALICE, kernel.id, 7, 15),
        lambda: processes.signal(ALICE, kernel.id, process.id, 15),
    ):
        clock.advance(100)
        await work()
        assert kernel.idle_for_s() == 0
    clock.advance(100)
    await processes.listing(ALICE, kernel.id)
    await processes.tree(ALICE, kernel.id)
    assert kernel.idle_for_s() == 100


async def test_everything_has_an_owner_and_a_scope(processes, kernel) -> None:
    """Another's kernel does not exist; a credential without `execute` is refused."""
    looker = principal("alice", Scope.KERNELS)
    for who, error in ((BOB, NotFound), (looker, Forbidden)):
        for work in (
            processes.run(who, kernel.id, run("exit 0")),
            processes.start(who, kernel.id, ProcessStart(command="wait")),
            processes.listing(who, kernel.id),
            processes.read(who, kernel.id, "x"),
            processes.write(who, kernel.id, "x", b""),
            processes.signal(who, kernel.id, "x", 9),
            processes.remove(who, kernel.id, "x"),
            processes.tree(who, kernel.id),
            processes.kill(who, kernel.id, 1, 9),
            processes.snapshot(who, kernel.id),
        ):
            with pytest.raises(error):
                await work


async def test_what_is_done_is_recorded(processes, kernel, audit) -> None:
    """Each use case leaves its record, also where it fails."""
    process = await processes.start(ALICE, kernel.id, ProcessStart(command="wait"))
    await processes.write(ALICE, kernel.id, process.id, b"abc")
    await processes.signal(ALICE, kernel.id, process.id, 2)
    await processes.remove(ALICE, kernel.id, process.id)
    await processes.listing(ALICE, kernel.id)
    with pytest.raises(SandboxUnavailable):
        await processes.snapshot(ALICE, kernel.id)
    seen = [(event.action.value, event.target, event.reason) for event in audit.events[-6:]]
    assert seen == [
        ("process.start", process.id, None),
        ("process.input", process.id, None),
        ("process.signal", process.id, None),
        ("process.signal", process.id, None),
        ("process.list", None, None),
        ("process.list", None, "sandbox_unavailable"),
    ]
    assert "abc" not in str(audit.events)


def test_what_is_kept_is_head_and_tail() -> None:
    """The bound holds whatever the pieces are, and the mark says how many bytes are missing."""
    for piece in (1, 7, 100, 1000):
        kept = Kept(100)
        text = b"".join(b"%04d" % number for number in range(250))
        for start in range(0, len(text), piece):
            kept.add(text[start : start + piece])
        assert (
            kept.text()
            == f"{text[:50].decode()}\n[cellblock: 900 bytes of output cut]\n{text[-50:].decode()}"
        )
    kept = Kept(100)
    kept.add(b"x" * 100)
    assert (kept.text(), kept.cut) == ("x" * 100, 0)
    kept.skip(5)
    kept.add(b"end")
    assert kept.text().endswith("bytes of output cut]\nend")
