"""The warm kernels of one kernelspec: as many as are wanted, each of them well, each taken once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from gateway.errors import GatewayError
from gateway.kernels.running import RunningCell
from gateway.models import KernelSpec
from gateway.ports import Clock
from gateway.settings import PoolSettings

log = structlog.get_logger()

# a kernel is added when nobody has asked for one for so long, or at the latest after so long
QUIET_S, PATIENCE_S = 0.5, 3.0
CHECK_S = 30.0
# after a failure; doubled up to the second
AGAIN_S, AGAIN_AT_MOST_S = 1.0, 60.0


@dataclass(frozen=True, slots=True, eq=False)
class WarmCell:
    """A running cell whose kernel is nobody's yet, and what it was started from."""

    running: RunningCell
    spec: KernelSpec


class Shelf:
    """Keeps warm kernels ready, made by `make`; owns them until they are taken.

    `room` tells how many more cells this gateway may have.
    """

    def __init__(
        self,
        name: str,
        settings: PoolSettings,
        *,
        make: Callable[[], Awaitable[WarmCell]],
        room: Callable[[], int],
        clock: Clock,
    ) -> None:
        self.settings = settings
        self._name = name
        self._make = make
        self._room = room
        self._clock = clock
        self._ready: deque[WarmCell] = deque()
        self._useless: list[WarmCell] = []
        self._asked: deque[float] = deque(maxlen=settings.max_size)
        self._asked_at = float("-inf")
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def wanted(self) -> int:
        """How many are to be ready: as many as were asked for lately, within the settings' bounds."""
        since = self._clock.monotonic() - self.settings.demand_s
        while self._asked and self._asked[0] < since:
            self._asked.popleft()
        return max(self.settings.size, len(self._asked))

    @property
    def _short(self) -> bool:
        return len(self._ready) < self.wanted and self._room() > 0

    def ask(self) -> None:
        """Note that somebody wants a kernel."""
        self._asked_at = self._clock.monotonic()
        self._asked.append(self._asked_at)
        self._changed.set()

    def wake(self) -> None:
        """Have it looked at soon: there may be too many kernels."""
        self._changed.set()

    def take(self, spec: KernelSpec) -> WarmCell | None:
        """Return the oldest of the kernels, which is the caller's from now on; None when there is none.

        Those that were started from what the kernelspec was before are of no use.
        """
        while self._ready:
            cell = self._ready.popleft()
            if cell.spec == spec:
                return cell
            self._useless.append(cell)
        return None

    def put_back(self, cell: WarmCell) -> None:
        """Take back a kernel that was taken and is still nobody's."""
        if cell.running.alive:
            self._ready.appendleft(cell)
        else:
            self._useless.append(cell)

    def lose(self, running: RunningCell) -> None:
        """Have a kernel ended that has died or is of no use, if it is here."""
        for cell in list(self._ready):
            if cell.running is running:
                self._ready.remove(cell)
                self._useless.append(cell)
        self._changed.set()

    async def run(self) -> None:
        """Keep it filled and its kernels well, until cancelled."""
        again_s, checked_at = AGAIN_S, self._clock.monotonic()
        while True:
            self._changed.clear()
            try:
                await self.tend()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is said, and starts are cold meanwhile
                said = error.message if isinstance(error, GatewayError) else repr(error)
                log.warning("no warm kernel", kernelspec=self._name, error=said, again_s=again_s)
                await asyncio.sleep(again_s)
                again_s = min(2 * again_s, AGAIN_AT_MOST_S)
                continue
            again_s = AGAIN_S
            if self._clock.monotonic() - checked_at >= CHECK_S:
                await self.check()
                checked_at = self._clock.monotonic()
            if not self._short:
                with suppress(TimeoutError):
                    # demand passes, too, and nobody tells of it
                    async with asyncio.timeout(min(CHECK_S, self.settings.demand_s)):
                        await self._changed.wait()

    async def tend(self) -> None:
        """End what is of no use or too many, and add one kernel where one is missing. Raises GatewayError."""
        while self._ready and (len(self._ready) > self.wanted or self._room() < 0):
            self._useless.append(self._ready.popleft())
        while self._useless:
            # it is here until it is ended, should this be cancelled
            useless = self._useless[0]
            await useless.running.end()
            self._useless.remove(useless)
        if self._short:
            await self._quiet()
            self._ready.append(await self._make())

    async def check(self) -> None:
        """Ask every kernel whether it answers, and let go of those that do not."""
        for cell in list(self._ready):
            try:
                await cell.running.check()
            except GatewayError as error:
                log.warning("a warm kernel is not well", kernelspec=self._name, error=error.message)
                self.lose(cell.running)

    async def close(self) -> None:
        """End them all."""
        cells, self._ready, self._useless = [*self._ready, *self._useless], deque(), []
        await asyncio.gather(*(cell.running.end() for cell in cells))

    async def _quiet(self) -> None:
        """Wait until nobody has asked for a while: a start takes time from those that run."""
        latest = self._clock.monotonic() + PATIENCE_S
        # every question moves the end of it
        while (now := self._clock.monotonic()) < min(latest, self._asked_at + QUIET_S):  # noqa: ASYNC110
            await asyncio.sleep(self._asked_at + QUIET_S - now)
