"""Readiness: one trial for all who ask, kept for a while, good or bad, and nobody's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from gateway.errors import AuditUnavailable, GatewayError, KernelStartFailed, SandboxUnavailable
from gateway.models import AuditAction
from gateway.services.readiness import FAILED_S, STORE_S, Readiness
from gateway.settings import ServerSettings, Settings
from tests.doubles import MemoryHost, kernelspec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.doubles import ManualClock, MemoryAudit, MemoryStore

CACHED_S = 30.0


@pytest.fixture
async def told() -> list[float]:
    """What was said of readiness, in order."""
    return []


@pytest.fixture
async def readiness(
    host: MemoryHost, store: MemoryStore, audit: MemoryAudit, clock: ManualClock, told: list[float]
) -> AsyncIterator[Readiness]:
    """Readiness that keeps a good trial for half a minute."""
    made = Readiness(host, store, audit, clock, settings(), told=told.append)
    yield made
    await made.close()


def settings() -> Settings:
    """Return settings with a cache of our own."""
    return Settings(server=ServerSettings(ready_cache_s=CACHED_S))


async def failure(readiness: Readiness) -> GatewayError:
    """Return the error that readiness is answered with."""
    with pytest.raises(GatewayError) as caught:
        await readiness.check()
    return caught.value


async def test_ready(readiness, host, audit, told):
    """A kernel that computes makes it ready; it is nobody's, and the trail has it as the gateway's own."""
    assert await readiness.check() == {"audit": "ok", "store": "ok", "cell": "ok"}

    assert (host.starts, host.trials, host.kernels) == (0, 1, {})
    assert host.trial_kernels[0].subscribers == 0
    assert host.trial_kernels[0].origins == [None]
    assert told == [1]
    [event] = [event for event in audit.events if event.action is AuditAction.GATEWAY_TRIAL]
    assert (event.door, event.outcome, event.who, event.kernel_id) == ("gateway", "ok", None, None)


async def test_a_good_trial_is_kept(readiness, host, clock):
    """Within the cache's time nobody's question starts anything, after it the next one does."""
    await readiness.check()
    clock.advance(CACHED_S - 1)
    for _ in range(20):
        await readiness.check()
    assert host.trials == 1

    clock.advance(2)
    await readiness.check()
    assert host.trials == 2


async def test_many_at_once_are_one_trial(readiness, host):
    """However many ask together, one cell is tried, and who goes away does not take it from the others."""
    host.hold = asyncio.Event()
    asking = [asyncio.create_task(readiness.check()) for _ in range(50)]
    await asyncio.sleep(0.01)
    asking[0].cancel()
    await asyncio.sleep(0.01)
    host.hold.set()

    answers = await asyncio.gather(*asking, return_exceptions=True)

    assert host.trials == 1
    assert isinstance(answers[0], asyncio.CancelledError)
    assert all(answer["cell"] == "ok" for answer in answers[1:])


async def test_a_failure_is_kept_for_a_shorter_time(readiness, host, clock, told, audit):
    """What fails is not tried again by each who asks; once it works again, that is seen soon."""
    host.failure = SandboxUnavailable("firejail said: /secret/path", reason="no_firejail")

    errors = [await failure(readiness) for _ in range(20)]

    assert host.trials == 1
    assert {(error.code, error.status, error.reason) for error in errors} == {
        ("sandbox_unavailable", 503, "no_firejail")
    }
    assert 0 < (errors[0].retry_after_s or 0) <= FAILED_S
    assert "secret" not in errors[0].message, "everybody may ask"
    assert audit.events[-1].outcome == "error"
    assert audit.events[-1].reason == "sandbox_unavailable"

    host.failure = None
    clock.advance(FAILED_S + 0.1)
    assert (await readiness.check())["cell"] == "ok"
    assert told == [0, 1]


async def test_the_same_error_is_not_raised_twice(readiness, host):
    """Each who asks gets an error of its own: a kept one would grow by a traceback with each."""
    host.failure = KernelStartFailed("It did not come up.")

    first, second = await failure(readiness), await failure(readiness)

    assert first is not second
    assert (first.code, first.status, KernelStartFailed.status) == ("kernel_start_failed", 503, 502)


async def test_the_store_is_asked_once_a_second(readiness, store, clock):
    """A store that does not answer is seen at once, and hammering does not reach it."""
    for _ in range(20):
        await readiness.check()
    assert store.looks == 1

    store.broken = True
    clock.advance(STORE_S + 0.1)
    error = await failure(readiness)

    assert (error.code, error.status) == ("store_unavailable", 503)
    store.broken = False
    clock.advance(STORE_S + 0.1)
    assert await readiness.check()


async def test_an_audit_trail_that_takes_nothing(readiness, audit, host):
    """Where no record can be kept nothing is ready, and no cell is tried."""
    audit.failure = AuditUnavailable("The audit trail cannot be written: /disk/x is full.")

    error = await failure(readiness)

    assert (error.code, error.status, host.trials) == ("audit_unavailable", 503, 0)
    assert "disk" not in error.message


async def test_a_wrong_answer_is_not_ready(store, audit, clock, told):
    """A Python kernel must say what the sum is; of another language an answer is enough."""
    for language, good in (("python", False), ("R", True)):
        host = MemoryHost(clock, specs=(kernelspec(language=language),))
        told.clear()
        readiness = Readiness(host, store, audit, clock, settings(), told=told.append)
        host.total = "3"
        if good:
            assert await readiness.check()
        else:
            assert (await failure(readiness)).reason == "answer"
        assert told == [float(good)]


async def test_closing_ends_the_trial(host, store, audit, clock, told):
    """What is under way when the gateway goes is ended with it."""
    readiness = Readiness(host, store, audit, clock, settings(), told=told.append)
    host.hold = asyncio.Event()
    asking = asyncio.create_task(readiness.check())
    await asyncio.sleep(0.01)

    async with asyncio.timeout(2):
        await readiness.close()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert audit.events[-1].reason == "cancelled"
