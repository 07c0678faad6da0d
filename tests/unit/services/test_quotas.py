"""Quotas are exact, under parallel requests too, and per principal; days survive a restart."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from gateway.errors import LimitReached
from gateway.models import DeathReason, ExecuteRequest
from gateway.services.executions import ExecutionService
from gateway.services.kernels import KernelService
from gateway.services.meter import Meter
from gateway.services.quotas import Quotas
from gateway.settings import Settings
from tests.doubles import ManualClock, MemoryAudit, MemoryHost, MemoryStore, principal

ALICE, BOB = principal("alice"), principal("bob")


class World:
    """Services over doubles, with these quotas."""

    def __init__(
        self, store: MemoryStore | None = None, clock: ManualClock | None = None, **quota: Any
    ) -> None:
        self.clock, self.store = clock or ManualClock(), store or MemoryStore()
        self.settings = Settings(quotas=quota)
        self.quotas = Quotas(self.settings, self.store, self.clock)
        self.host = MemoryHost(self.clock, gate=self.quotas)
        self.kernels = KernelService(
            self.host, self.store, self.clock, self.settings, self.quotas, audit=MemoryAudit()
        )
        self.executions = ExecutionService(self.kernels, self.clock, self.settings, MemoryAudit())

    async def create(self, who: Any = ALICE) -> Any:
        """Start a kernel."""
        return await self.kernels.create(who)

    async def run(self, kernel: Any, code: str = "1", who: Any = ALICE) -> Any:
        """Execute code."""
        return await self.executions.run(who, kernel.id, ExecuteRequest(code=code))


def refusals(results: list[Any]) -> list[LimitReached]:
    """Return the refusals among results; anything else that failed is raised."""
    refused = [result for result in results if isinstance(result, LimitReached)]
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, LimitReached):
            raise result
    return refused


async def test_starts_per_minute():
    """Of twenty parallel starts exactly the allowed ones succeed; the window moves with the minute."""
    world = World(starts_per_minute=5)

    results = await asyncio.gather(*(world.create() for _ in range(20)), return_exceptions=True)

    refused = refusals(results)
    assert len(refused) == 15
    assert world.host.starts == 5
    assert refused[0].reason == "starts_per_minute"
    assert refused[0].allowance.limit == 5
    assert refused[0].allowance.remaining == 0
    assert refused[0].retry_after_s == pytest.approx(60)
    await world.create(BOB)
    world.clock.advance(59.9)
    with pytest.raises(LimitReached) as late:
        await world.create()
    assert late.value.retry_after_s == pytest.approx(0.1)
    world.clock.advance(0.2)
    await world.create()


async def test_restarts_count_as_starts():
    """A restart takes a start of the kernel's owner."""
    world = World(starts_per_minute=2)
    kernel = await world.create()
    await world.kernels.restart(ALICE, kernel.id)

    with pytest.raises(LimitReached):
        await world.kernels.restart(ALICE, kernel.id)


async def test_executions_per_minute():
    """Executions of all kernels count together, parallel ones too; another's do not."""
    world = World(executions_per_minute=10)
    kernels, other = [await world.create() for _ in range(3)], await world.create(BOB)

    runs = [world.run(kernels[n % 3]) for n in range(25)]
    results = await asyncio.gather(*runs, return_exceptions=True)

    assert len(refusals(results)) == 15
    assert sum(len(kernel.sent) for kernel in kernels) == 10
    assert world.quotas.allowance("alice", "executions_per_minute").remaining == 0
    await world.run(other, who=BOB)
    world.clock.advance(61)
    await world.run(kernels[0])


async def test_concurrent_executions():
    """Kernels at work count, not what waits in one of them; an end makes room, however it came."""
    world = World(concurrent_executions=2)
    first, second, third = [await world.create() for _ in range(3)]
    running = [asyncio.create_task(world.run(kernel, "wait")) for kernel in (first, first, second)]
    await asyncio.sleep(0.01)

    with pytest.raises(LimitReached) as refused:
        await world.run(third)
    assert refused.value.reason == "concurrent_executions"

    second.die(DeathReason.CRASHED)
    await world.run(third)
    await first.interrupt()
    await asyncio.sleep(0.01)
    await first.interrupt()
    await asyncio.gather(*running)
    assert not world.quotas._executing


async def test_output_per_day():
    """When a day's output is used up nothing runs until midnight UTC, and a new gateway knows it."""
    world = World(output_bytes_per_day=10)
    kernel = await world.create()
    await world.run(kernel, "x" * 9)
    await world.run(kernel, "x" * 9)

    with pytest.raises(LimitReached) as refused:
        await world.run(kernel)
    assert refused.value.reason == "output_bytes_per_day"
    midnight = world.clock.now().replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    assert refused.value.retry_after_s == pytest.approx((midnight - world.clock.now()).total_seconds())

    await world.quotas.save()
    again = World(world.store, world.clock, output_bytes_per_day=10)
    await again.quotas.load()
    with pytest.raises(LimitReached):
        await again.create()
    await again.create(BOB)
    again.clock.advance(86_400)
    await again.create()


async def test_usage_is_kept_when_the_store_fails():
    """What the store does not take is kept, and added once when it takes it again."""
    world = World()
    kernel = await world.create()
    await world.run(kernel, "x" * 7)
    world.store.broken = True
    await world.quotas.save()
    await world.run(kernel, "x" * 5)
    world.store.broken = False
    await world.quotas.save()
    await world.quotas.save()

    [day] = await world.store.usage_on(world.clock.now().date())
    assert (day.principal, day.output_bytes) == ("alice", 12)


async def test_cpu_per_day():
    """CPU time is charged once; past the quota what runs is interrupted, then ended, on record."""
    world, audit = World(cpu_s_per_day=100), MemoryAudit()
    meter = Meter(world.host, world.kernels, world.quotas, world.clock, audit)
    kernel, idle = await world.create(), await world.create()
    kernel.cpu_s, idle.cpu_s = 60, 1
    await meter.look()
    await meter.look()
    await world.run(kernel)

    kernel.cpu_s = 110
    await meter.look()
    assert kernel.interrupts == 1
    with pytest.raises(LimitReached) as refused:
        await world.run(kernel)
    assert refused.value.reason == "cpu_s_per_day"
    with pytest.raises(LimitReached):
        await world.create()
    kernel.cpu_s = 115
    await meter.look()

    assert world.host.removed == [(kernel.id, DeathReason.CPU)]
    [event] = audit.events
    assert (event.action, event.kernel_id, event.reason) == ("kernel.die", kernel.id, "cpu")
    assert event.extra == {"owner": "alice"}
    assert idle.id in world.host.kernels
    [day] = await world.store.usage_on(world.clock.now().date())
    assert day.cpu_s == 116


async def test_cpu_of_short_lives():
    """A kernel that ends or restarts between two looks is charged; an adopted one from now on."""
    world = World(cpu_s_per_day=1000)
    short, restarted = await world.create(), await world.create()
    short.cpu_s, restarted.cpu_s = 30, 20
    await world.kernels.delete(ALICE, short.id)
    await world.kernels.restart(ALICE, restarted.id)
    restarted.cpu_s = 4
    world.clock.advance(100)
    later = Meter(world.host, world.kernels, world.quotas, world.clock, MemoryAudit())
    adopted = await world.create(BOB)
    adopted.cpu_s = 500
    world.clock.advance(1)
    adopted._created -= 1000
    await later.look()
    adopted.cpu_s = 503
    await later.look()

    days = {day.principal: day.cpu_s for day in await world.store.usage_on(world.clock.now().date())}
    assert days == {"alice": 54, "bob": 3}


async def test_own_quotas():
    """A principal's own quotas stand in place of everybody's, one by one; `unlimited` is one."""
    own = {"carol": {"kernels": 1, "sockets": 2}, "alice": {"starts_per_minute": "unlimited"}}
    world = World(starts_per_minute=1, sockets=1, principals=own)
    carol = principal("carol")

    for _ in range(5):
        await world.create()
    await world.create(carol)
    with pytest.raises(LimitReached) as refused:
        await world.create(carol)
    assert refused.value.reason == "max_kernels_per_owner"
    with world.quotas.socket("carol"), world.quotas.socket("carol"), pytest.raises(LimitReached):
        world.quotas.socket("carol").__enter__()
    with world.quotas.socket("bob"), pytest.raises(LimitReached):
        world.quotas.socket("bob").__enter__()
    with world.quotas.socket("bob"):
        pass
    assert world.quotas.bound("dave", "storage_bytes") == 1 << 30


async def test_what_is_over_is_forgotten():
    """Windows of the past and old days take no memory."""
    world = World()
    for n in range(50):
        world.quotas.start(f"user{n}")
        world.quotas.admit(f"user{n}", "k")
        world.quotas.release(f"user{n}", "k", 10)
    world.clock.advance(3 * 86_400)
    await world.quotas.save()

    assert not world.quotas._windows
    assert not world.quotas._days
    assert not world.quotas._executing
    assert not world.quotas._unsaved
