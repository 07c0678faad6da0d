"""A shelf of warm kernels: how many are ready, which of them are let go of, and when one is added."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import pytest

from gateway.clock import SystemClock
from gateway.errors import KernelStartFailed
from gateway.kernels import shelf as module
from gateway.kernels.shelf import Shelf, WarmCell
from gateway.settings import PoolSettings
from tests.doubles import ManualClock, kernelspec


class Running:
    """A cell that lives until it is ended."""

    def __init__(self) -> None:
        self.ended = 0
        self.alive = self.well = True

    async def end(self) -> None:
        """End it."""
        self.ended += 1

    async def check(self) -> None:
        """Answer, if it is well."""
        if not self.well:
            raise KernelStartFailed("It does not answer.", reason="timeout")


class World:
    """A shelf, its clock, and all that was made for it."""

    def __init__(self, clock: Any = None, **settings: Any) -> None:
        self.clock = clock or ManualClock()
        self.made: list[Running] = []
        self.failures: list[Exception] = []
        self.most = 100
        self.spec = kernelspec()
        self.shelf = Shelf(
            "python3",
            PoolSettings(**settings),
            make=self._make,
            room=lambda: self.most - len(self.shelf),
            clock=self.clock,
        )

    async def _make(self) -> WarmCell:
        if self.failures:
            raise self.failures.pop()
        self.made.append(Running())
        return WarmCell(self.made[-1], self.spec)  # type: ignore[arg-type]

    async def tend(self, times: int = 10) -> None:
        """Look at the shelf so often."""
        for _ in range(times):
            await self.shelf.tend()

    def ask(self, times: int) -> None:
        """Ask so often, and let the moment pass."""
        for _ in range(times):
            self.shelf.ask()
        self.clock.advance(1)

    @property
    def ended(self) -> list[int]:
        """How often each was ended."""
        return [running.ended for running in self.made]


async def test_it_is_filled_one_by_one() -> None:
    """Each look adds one, up to the settings' number and no further."""
    world = World(size=3)
    await world.shelf.tend()
    assert len(world.shelf) == 1
    await world.tend()
    assert len(world.shelf) == 3 == len(world.made)


async def test_demand_raises_and_lowers_the_number() -> None:
    """As many as were asked for lately, within the bounds; when that is past, the oldest are ended."""
    world = World(size=1, max_size=3, demand_s=60)
    await world.tend()
    world.ask(2)
    assert world.shelf.wanted == 2
    world.ask(5)
    await world.tend()
    assert (world.shelf.wanted, len(world.shelf), world.ended) == (3, 3, [0, 0, 0])
    world.clock.advance(61)
    await world.tend()
    assert (world.shelf.wanted, len(world.shelf), world.ended) == (1, 1, [1, 1, 0])


async def test_none_are_kept_where_nobody_asks() -> None:
    """A shelf of size 0 fills with the first question alone."""
    world = World(size=0, max_size=2)
    await world.tend()
    assert not world.made
    world.ask(1)
    await world.tend()
    assert len(world.shelf) == 1


async def test_each_is_taken_once_the_oldest_first() -> None:
    """What was taken is gone; what was put back comes first again."""
    world = World(size=2)
    await world.tend()
    first = world.shelf.take(world.spec)
    assert first is not None
    assert first.running is world.made[0]
    world.shelf.put_back(first)
    assert world.shelf.take(world.spec) is first
    second = world.shelf.take(world.spec)
    assert second is not None
    assert second.running is world.made[1]
    assert world.shelf.take(world.spec) is None
    first.running.alive = False  # type: ignore[misc]
    world.shelf.put_back(first)
    assert world.shelf.take(world.spec) is None
    await world.tend()
    assert world.ended[0] == 1


async def test_what_is_lost_is_ended_and_replaced() -> None:
    """A kernel that has died is never taken; one that was taken before is not the shelf's to end."""
    world = World(size=2)
    await world.tend()
    taken = world.shelf.take(world.spec)
    assert taken is not None
    for running in world.made:
        world.shelf.lose(running)  # type: ignore[arg-type]
    assert world.shelf.take(world.spec) is None
    await world.tend()
    assert (world.ended[:2], len(world.shelf)) == ([0, 1], 2)


async def test_what_is_not_well_is_ended() -> None:
    """Who does not answer a question about its health is replaced; who does stays."""
    world = World(size=2)
    await world.tend()
    world.made[0].well = False
    await world.shelf.check()
    await world.tend()
    assert (world.ended, len(world.shelf)) == ([1, 0, 0], 2)


async def test_it_is_looked_at_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it runs, health is asked for at intervals, and a kernel that is not well is replaced."""
    monkeypatch.setattr(module, "CHECK_S", 0.05)
    world = World(SystemClock(), size=1)
    task = asyncio.create_task(world.shelf.run())
    async with asyncio.timeout(5):
        while not len(world.shelf):
            await asyncio.sleep(0.01)
        world.made[0].well = False
        while world.ended != [1, 0] or not len(world.shelf):
            await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_what_a_kernelspec_was_is_of_no_use() -> None:
    """Kernels that were started before their kernelspec changed are passed over and ended."""
    world = World(size=2)
    await world.tend()
    changed = kernelspec(display_name="another")
    assert world.shelf.take(changed) is None
    world.spec = changed
    await world.tend()
    assert world.ended == [1, 1, 0, 0]
    taken = world.shelf.take(changed)
    assert taken is not None
    assert taken.running is world.made[2]


async def test_it_gives_way_to_kernels_that_are_somebodys() -> None:
    """Without room none is made, and where there are too many they are ended."""
    world = World(size=2)
    world.most = 1
    await world.tend()
    assert len(world.made) == 1
    world.most = 0
    await world.tend()
    assert (len(world.shelf), world.ended) == (0, [1])


async def test_none_is_made_while_people_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel is added when it is quiet; where it never is, after a while all the same."""
    monkeypatch.setattr(module, "QUIET_S", 0.2)
    monkeypatch.setattr(module, "PATIENCE_S", 0.7)
    world = World(SystemClock(), size=0, max_size=2)
    world.shelf.ask()
    begun = time.monotonic()
    await world.shelf.tend()
    assert 0.2 <= time.monotonic() - begun < 0.6

    async def ask_on() -> None:
        while True:
            world.shelf.ask()
            await asyncio.sleep(0.05)

    asking = asyncio.create_task(ask_on())
    await asyncio.sleep(0)
    begun = time.monotonic()
    await world.shelf.tend()
    assert 0.7 <= time.monotonic() - begun < 1.2
    asking.cancel()


async def test_failures_are_not_repeated_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each failure the next try waits twice as long, and after a success it goes on as ever."""
    monkeypatch.setattr(module, "AGAIN_S", 0.05)
    world = World(SystemClock(), size=2)
    failed = KernelStartFailed("No.", reason="crashed")
    world.failures = [failed, OSError("no room"), failed]
    begun = time.monotonic()
    task = asyncio.create_task(world.shelf.run())
    async with asyncio.timeout(5):
        while len(world.shelf) < 2:
            await asyncio.sleep(0.01)
    assert time.monotonic() - begun >= 0.05 + 0.1 + 0.2
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await world.shelf.close()
    assert (world.ended, len(world.shelf)) == ([1, 1], 0)
