"""Two kernels of two users on a gateway, one of which is flooded, and the weight of the gateway meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import re
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.gateway import Client, Gateway, running

TIMEOUT_S = 8.0
# the deadline, the grace, a restart
ENDS_S = TIMEOUT_S + 10.0
GROWTH_MIB = 50.0
LEAST_TRIPS = 30
# the aim is that a round trip less than doubles; machines of tests are shared, so more is let pass here
SLOWER, SLOWER_S = 4.0, 0.01


class Weight(threading.Thread):
    """Watches the resident memory of a process, in MiB."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._status = Path(f"/proc/{pid}/status")
        self._over = threading.Event()
        self.begun = self.most = self.now()

    def now(self) -> float:
        """Return what it is at this moment."""
        found = re.search(r"VmRSS:\s+(\d+)", self._status.read_text())
        assert found, "the gateway is gone"
        return int(found[1]) / 1024

    def run(self) -> None:
        """Look every few milliseconds."""
        while not self._over.wait(0.005):
            self.most = max(self.most, self.now())

    def growth(self) -> float:
        """Stop, and return the most that it grew by."""
        self._over.set()
        self.join()
        return self.most - self.begun


@dataclass
class Flood:
    """What was seen while a flood went on."""

    took_s: float = 0.0
    growth_mib: float = 0.0
    trips: list[float] = field(default_factory=list)


class Pair:
    """A gateway with alice's kernel and bob's; each flood's own, or one would hide in another's memory."""

    def __init__(self, gateway: Gateway, alice: Client, bob: Client) -> None:
        self.gateway, self.alice, self.bob = gateway, alice, bob

    async def begin(self) -> None:
        """Start both kernels and let them do a little."""
        self.flooding, self.other = await self.alice.start(), await self.bob.start()
        await self.alice.out(self.flooding, "import IPython.display")
        self.quiet = await self.trips(asyncio.Event(), most=LEAST_TRIPS)

    async def trips(self, over: asyncio.Event, *, most: int | None = None) -> list[float]:
        """Return how long the other kernel's executions take, in seconds."""
        took: list[float] = []
        while not over.is_set() and (most is None or len(took) < most):
            begun = time.monotonic()
            await self.bob.out(self.other, "1")
            took.append(time.monotonic() - begun)
            await asyncio.sleep(0.01)
        return took

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[Flood]:
        """Watch the gateway and the other kernel for as long as the block takes."""
        assert self.gateway.process is not None
        weight, over, flood = Weight(self.gateway.process.pid), asyncio.Event(), Flood()
        weight.start()
        others = asyncio.create_task(self.trips(over))
        begun = time.monotonic()
        try:
            yield flood
        finally:
            flood.took_s = time.monotonic() - begun
            over.set()
            flood.trips = await others
            flood.growth_mib = weight.growth()

    def check(self, flood: Flood, record: Callable[[str, object], None]) -> None:
        """Check that the flood ended in time, the gateway stayed small and the other kernel was served."""
        slower = statistics.median(flood.trips) if flood.trips else 0.0
        quiet = statistics.median(self.quiet)
        record("seconds", round(flood.took_s, 1))
        record("growth_mib", round(flood.growth_mib, 1))
        record("others_ms", [round(value * 1e3, 1) for value in (quiet, slower)])
        assert flood.took_s < ENDS_S
        assert flood.growth_mib < GROWTH_MIB
        if len(flood.trips) >= LEAST_TRIPS:
            assert slower < SLOWER * quiet + SLOWER_S


@contextlib.asynccontextmanager
async def flooded() -> AsyncIterator[Pair]:
    """Give a pair on a gateway of its own."""
    with running("--no-keep", env={"CELLBLOCK_QUOTAS__EXECUTIONS_PER_MINUTE": "unlimited"}) as gateway:
        async with gateway.client("alice") as alice, gateway.client("bob") as bob:
            found = Pair(gateway, alice, bob)
            await found.begin()
            yield found
