"""Places are bounded, and handed out fairly."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import LimitReached
from gateway.services.turns import Turns


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


class Starts:
    """Things that take a turn each, and end when told."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.running: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._ends: dict[str, asyncio.Event] = {}

    def begin(self, *owners: str) -> None:
        """Begin things: `alice1` is the first of alice's."""
        self.tasks += [asyncio.create_task(self._start(name)) for name in owners]

    async def end(self, name: str) -> None:
        """End one, and let the next go."""
        self._ends[name].set()
        await settle()

    async def _start(self, name: str) -> None:
        async with self.turns.turn(name.rstrip("0123456789")):
            self.running.append(name)
            await self._ends.setdefault(name, asyncio.Event()).wait()


async def test_one_owners_many_do_not_keep_anothers_one_waiting():
    """With fifty of alice's before it, bob's one has its turn at once: one place is never hers alone."""
    starts = Starts(Turns(3, 10))
    starts.begin(*(f"alice{n}" for n in range(50)), "bob0")
    await settle()

    assert starts.running == ["alice0", "alice1", "bob0"]
    for task in starts.tasks:
        task.cancel()
    await asyncio.gather(*starts.tasks, return_exceptions=True)


async def test_turns_go_round():
    """A free place goes to whoever holds the fewest, and among equals to everybody in turn."""
    starts = Starts(Turns(2, 10))
    starts.begin("alice0", "bob0", "alice1", "alice2", "bob1", "carol0", "carol1")
    await settle()
    assert starts.running == ["alice0", "bob0"]

    expected = ["alice0", "bob0", "carol0", "alice1", "bob1", "carol1", "alice2"]
    for name in expected:
        await starts.end(name)

    assert starts.running == expected
    await asyncio.gather(*starts.tasks)


async def test_a_wait_ends_in_a_refusal():
    """Past the longest wait the answer is a refusal that says when to come again, and no place is lost."""
    turns = Turns(1, 0.02)
    async with turns.turn("alice"):
        with pytest.raises(LimitReached) as refused:
            async with turns.turn("bob"):
                pass
    assert refused.value.reason == "max_starting"
    assert refused.value.retry_after_s >= 1

    async with turns.turn("bob"):
        pass


async def test_who_leaves_takes_no_place():
    """A waiter that is cancelled, also in the moment of its turn, leaves its place to the next."""
    turns = Turns(1, 10)
    starts = Starts(turns)
    starts.begin("alice0", "bob0", "carol0")
    await settle()
    starts._ends["alice0"].set()
    await asyncio.sleep(0)
    starts.tasks[1].cancel()
    await settle()

    assert starts.running == ["alice0", "carol0"]
    await starts.end("carol0")
    async with turns.turn("dave"):
        pass
    assert not turns._taken
    assert not turns._waiting


async def test_no_wait_at_all():
    """With a wait of 0 a free place is had, and a taken one is refused at once."""
    turns = Turns(1, 0)
    async with turns.turn("alice"):
        with pytest.raises(LimitReached):
            async with turns.turn("alice"):
                pass


async def test_a_timeout_within_a_turn_is_its_own():
    """What times out while it holds a place is not taken for a refusal."""
    with pytest.raises(TimeoutError):
        async with Turns(1, 10).turn("alice"):
            raise TimeoutError
