"""One run: all targets up at the same time, and every workload on each of them in turn, round by round."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING, Any

import zmq

from benchmarks.samples import Samples
from benchmarks.targets.cellblock import Cellblock
from benchmarks.targets.incumbents import jupyter_server, kernel_gateway
from benchmarks.targets.local import Bare, Managed
from benchmarks.workloads.creation import Burst, Creation, OneShots
from benchmarks.workloads.neighbours import Neighbours
from benchmarks.workloads.output import Output
from benchmarks.workloads.population import Population
from benchmarks.workloads.restart import Restart
from benchmarks.workloads.transfer import Transfer
from benchmarks.workloads.trips import Trips

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.sizes import Sizes
    from benchmarks.targets.target import Target
    from benchmarks.workloads.workload import Workload


def workloads(chance: random.Random) -> list[Workload]:
    """Return all workloads, in the order in which they are measured."""
    return [
        Creation(),
        Trips(chance),
        Output(),
        Transfer(),
        Burst(),
        OneShots(),
        Neighbours(),
        Restart(),
        Population(),
    ]


class Runner:
    """Measures, and always ends what it started: at the end, on a failure, and when it is cancelled."""

    def __init__(self, sizes: Sizes, seed: int, only: Sequence[str]) -> None:
        self._sizes = sizes
        self._chance = random.Random(seed)
        self._workloads = [each for each in workloads(self._chance) if not only or each.name in only]
        self.samples = Samples()

    async def run(self) -> None:
        """Measure everything within the budget of time; what does not fit is named a failure."""
        begun = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            context = stack.enter_context(zmq.Context[zmq.Socket[bytes]]())
            made: tuple[Any, ...] = (
                Cellblock(context),
                Cellblock(context, pool=max(self._sizes.creates, 4)),
                kernel_gateway(context),
                jupyter_server(context),
                Bare(context),
                Managed(),
            )
            targets: list[Target] = [await stack.enter_async_context(target) for target in made]
            for workload in self._workloads:
                since = time.monotonic()
                for number in range(workload.rounds(self._sizes)):
                    left_s = begun + self._sizes.budget_s - time.monotonic()
                    if left_s <= 0:
                        self.samples.fail(f"{workload.name}, round {number}: no time was left for it")
                        break
                    await self._round(workload, number, targets, left_s)
                _say(f"{workload.name}: {time.monotonic() - since:.0f} s")

    async def _round(self, workload: Workload, number: int, targets: Sequence[Target], left_s: float) -> None:
        self.samples.round = number
        able = [target for target in targets if workload.takes(target)]
        taking = [target for target in able if workload.starts or not target.warm]
        for target in self._chance.sample(taking, len(taking)):
            try:
                async with asyncio.timeout(min(workload.bound_s, left_s)):
                    await workload.measure(target, self._sizes, self.samples)
            except Exception as error:  # noqa: BLE001 - said in the result, and the others go on
                self.samples.fail(f"{workload.name}, round {number}, {target.name}: {_reason(error)}")
                _say(f"FAILED {self.samples.failures[-1]}")


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:500]


def _say(text: str) -> None:
    print(text, flush=True)
