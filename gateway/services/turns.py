"""A bounded number of things at a time, handed out fairly between owners."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from gateway.errors import LimitReached

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Turns:
    """So many places; who has the fewest of them goes first, and among equals everybody in turn.

    One owner never has the last place, so that another finds one free at once.
    """

    def __init__(self, places: int, wait_s: float) -> None:
        self._places = places
        self._most = max(1, places - 1)
        self._wait_s = wait_s
        self._taken: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Event]] = {}

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """Hold a place. Raises LimitReached when none is free within the longest wait."""
        await self._enter(owner)
        try:
            yield
        finally:
            self._release(owner)

    async def _enter(self, owner: str) -> None:
        given = asyncio.Event()
        self._waiting.setdefault(owner, deque()).append(given)
        self._advance()
        try:
            async with asyncio.timeout(self._wait_s):
                await given.wait()
        except BaseException as error:
            if given.is_set():
                # given in the very moment in which its owner left
                self._release(owner)
            else:
                self._withdraw(owner, given)
            if not isinstance(error, TimeoutError):
                raise
            raise LimitReached(
                f"Too many kernels are starting: there was no place for yours in {self._wait_s:g} s.",
                reason="max_starting",
                retry_after_s=max(1.0, self._wait_s / 2),
            ) from None

    def _withdraw(self, owner: str, given: asyncio.Event) -> None:
        queue = self._waiting[owner]
        queue.remove(given)
        if not queue:
            del self._waiting[owner]

    def _release(self, owner: str) -> None:
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]
        self._go_behind(owner)
        self._advance()

    def _advance(self) -> None:
        while self._taken.total() < self._places:
            able = [owner for owner in self._waiting if self._taken[owner] < self._most]
            if not able:
                return
            owner = min(able, key=self._taken.__getitem__)
            queue = self._waiting.pop(owner)
            queue.popleft().set()
            self._taken[owner] += 1
            if queue:
                self._waiting[owner] = queue

    def _go_behind(self, owner: str) -> None:
        # dicts keep the order in which they were filled
        if owner in self._waiting:
            self._waiting[owner] = self._waiting.pop(owner)
