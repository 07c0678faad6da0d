"""Culling: idle, old and dead kernels end; busy, connected and young ones stay."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from gateway.models import DeathReason, ExecutionState, Limits
from gateway.protocol.messages import make
from gateway.services.culler import Culler
from gateway.settings import KernelsSettings, Settings
from tests.doubles import MemoryAudit, MemoryKernel, principal

ALICE = principal("alice")


class Socket:
    """A subscriber that only is there."""

    def deliver(self, message) -> None:
        """Take a message."""

    def ended(self, reason) -> None:
        """Take the end."""


@pytest.fixture
def culler(host, kernels, clock, settings, audit) -> Culler:
    """The culler with default settings."""
    return Culler(host, kernels, clock, settings, audit)


@pytest.fixture
async def kernel(host, kernels) -> MemoryKernel:
    """A kernel that may idle for 100 s and live for 1000 s."""
    return await start(host, kernels, idle_timeout_s=100, max_lifetime_s=1000)


async def start(host, kernels, **limits) -> MemoryKernel:
    """Start a kernel of Alice's with limits."""
    host._limits = Limits(**limits)
    return host.kernels[(await kernels.create(ALICE)).id]


async def test_idle_kernels_end(culler, host, store, kernel, clock):
    """A kernel is culled after its idle timeout, not before, its record forgotten and a line logged."""
    clock.advance(100)
    await culler.sweep()
    assert host.removed == []

    clock.advance(1)
    with structlog.testing.capture_logs() as logs:
        await culler.sweep()
    assert host.removed == [(kernel.id, DeathReason.CULLED)]
    assert await store.kernels() == []
    assert logs == [
        {
            "event": "kernel_culled",
            "log_level": "info",
            "kernel_id": kernel.id,
            "owner": "alice",
            "why": "idle",
            "idle_s": 101.0,
            "age_s": 101.0,
        }
    ]


async def test_activity_counts(culler, host, kernel, clock):
    """A request in between starts the idle time anew."""
    clock.advance(90)
    socket = Socket()
    kernel.send(make("shell", "kernel_info_request", {}, parent=None, session="s"), socket)
    clock.advance(90)
    await culler.sweep()

    assert host.removed == []


async def test_busy_kernels_stay(culler, host, kernel, clock):
    """A busy kernel is never idle, however long ago its request came."""
    socket = Socket()
    kernel.send(make("shell", "execute_request", {"code": "wait"}, parent=None, session="s"), socket)
    while kernel.state is not ExecutionState.BUSY:
        await asyncio.sleep(0)
    clock.advance(900)
    await culler.sweep()

    assert host.removed == []


@pytest.mark.parametrize("state", [ExecutionState.STARTING, ExecutionState.RESTARTING])
async def test_kernels_in_between_stay(culler, host, kernel, clock, state):
    """A kernel that starts or restarts is not idle."""
    kernel.state = state
    clock.advance(900)
    await culler.sweep()

    assert host.removed == []


async def test_connected_kernels_stay_unless_told(culler, host, kernels, kernel, clock):
    """An idle kernel with a socket stays, and goes where `cull_connected` is set."""
    kernel.attach(Socket())
    clock.advance(101)
    await culler.sweep()
    assert host.removed == []

    eager = Culler(
        host, kernels, clock, Settings(kernels=KernelsSettings(cull_connected=True)), MemoryAudit()
    )
    await eager.sweep()
    assert host.removed == [(kernel.id, DeathReason.CULLED)]


async def test_private_subscribers_are_no_connections(culler, host, kernel, clock):
    """A subscriber that does not count keeps no kernel."""
    kernel.attach(Socket(), counts=False)
    clock.advance(101)
    await culler.sweep()

    assert host.removed == [(kernel.id, DeathReason.CULLED)]


async def test_old_kernels_end_even_busy_and_connected(culler, host, kernel, clock):
    """Nothing keeps a kernel beyond its lifetime."""
    socket = Socket()
    kernel.attach(socket)
    kernel.send(make("shell", "execute_request", {"code": "wait"}, parent=None, session="s"), socket)
    while kernel.state is not ExecutionState.BUSY:
        await asyncio.sleep(0)
    clock.advance(1000)
    await culler.sweep()
    assert host.removed == []

    clock.advance(1)
    await culler.sweep()
    assert host.removed == [(kernel.id, DeathReason.CULLED)]


async def test_no_limit_no_cull(culler, host, kernels, clock):
    """A kernel without those limits stays for ever."""
    await start(host, kernels, idle_timeout_s=None, max_lifetime_s=None)
    clock.advance(1e9)
    await culler.sweep()

    assert host.removed == []


@pytest.mark.parametrize(("idle_timeout_s", "kept_s"), [(100, 100), (None, 300)])
async def test_dead_kernels_are_shown_for_a_while(culler, host, kernels, idle_timeout_s, kept_s):
    """A dead kernel stays to be seen, however long it had idled before, and then goes."""
    kernel = await start(host, kernels, idle_timeout_s=idle_timeout_s, max_lifetime_s=None)
    host.clock.advance(10_000)
    kernel.die(DeathReason.OOM)
    await culler.sweep()
    host.clock.advance(kept_s)
    await culler.sweep()
    assert host.removed == []

    host.clock.advance(1)
    await culler.sweep()
    assert host.removed == [(kernel.id, DeathReason.CULLED)]


async def test_restarted_kernels_are_not_dead_any_more(culler, host, kernel, clock):
    """A restart between two deaths starts the time anew."""
    kernel.die(DeathReason.OOM)
    await culler.sweep()
    await kernel.restart()
    await culler.sweep()
    clock.advance(99)
    kernel.die(DeathReason.OOM)
    await culler.sweep()
    clock.advance(99)
    await culler.sweep()

    assert host.removed == []


async def test_one_failing_kernel_does_not_stop_the_sweep(culler, host, kernels, kernel, clock):
    """The others are culled, the failure is logged, and the next sweep tries again."""
    other = await start(host, kernels, idle_timeout_s=100)
    host.stubborn.add(kernel.id)
    clock.advance(101)
    with structlog.testing.capture_logs() as logs:
        await culler.sweep()
    assert host.removed == [(other.id, DeathReason.CULLED)]
    assert ("kernel_cull_failed", kernel.id) in [(line["event"], line["kernel_id"]) for line in logs]

    host.stubborn.clear()
    await culler.sweep()
    assert host.removed[1:] == [(kernel.id, DeathReason.CULLED)]


async def test_a_broken_store_keeps_no_kernel(culler, host, store, kernel, clock):
    """A kernel is ended though its record cannot be forgotten."""
    store.broken = True
    clock.advance(101)
    await culler.sweep()

    assert host.removed == [(kernel.id, DeathReason.CULLED)]


async def test_run_sweeps_until_cancelled(host, kernels, kernel, clock):
    """The loop looks at every interval."""
    culler = Culler(
        host, kernels, clock, Settings(kernels=KernelsSettings(cull_interval_s=0.01)), MemoryAudit()
    )
    task = asyncio.create_task(culler.run())
    await asyncio.sleep(0.05)
    assert host.removed == []
    clock.advance(101)
    async with asyncio.timeout(5):
        while not host.removed:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
