"""What every workload is."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Protocol, TypeVar

from benchmarks.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from benchmarks.samples import Samples
    from benchmarks.sizes import Sizes
    from benchmarks.targets.target import Kernel, Target

STARTS_AT_ONCE = 8
DELETE_S = 30.0
T = TypeVar("T")
SUM, TWO = "1+1", Outcome(result="2")


class Workload(Protocol):
    """Something to measure on each target in turn, once a round."""

    name: str
    bound_s: float
    # whether it is about starts: a target that keeps kernels warm is measured in these alone
    starts: bool

    def rounds(self, sizes: Sizes) -> int:
        """Return how often it is measured."""
        ...

    def takes(self, target: Target) -> bool:
        """Tell whether it can be measured on a target."""
        ...

    async def measure(self, target: Target, sizes: Sizes, samples: Samples) -> None:
        """Measure one round on one target, and leave no kernel behind."""
        ...


async def each(
    items: Iterable[T], work: Callable[[T], Awaitable[object]], at_once: int = STARTS_AT_ONCE
) -> None:
    """Do the same for all, so many at once."""
    room = asyncio.Semaphore(at_once)

    async def one(item: T) -> None:
        async with room:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for item in items:
            group.create_task(one(item))


async def delete_all(target: Target, made: Iterable[Kernel]) -> None:
    """Delete kernels as far as it goes; what stays ends with its target."""

    async def one(kernel: Kernel) -> None:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(DELETE_S):
                await target.delete(kernel)

    await each(list(made), one)


async def settled(target: Target, kernel: Kernel) -> None:
    """Run a kernel's first code, so that what follows meets a kernel that has started."""
    async with target.connect(kernel, target.doors[0]) as wire:
        (await wire.execute(SUM)).checked(TWO)


@contextlib.asynccontextmanager
async def kernels(target: Target, count: int, *, session: bool = False) -> AsyncIterator[list[Kernel]]:
    """Give some kernels that have run their first code, and delete them afterwards."""
    made: list[Kernel] = []

    async def start(_: int) -> None:
        kernel = await target.create(session=session)
        made.append(kernel)
        await settled(target, kernel)

    try:
        await each(range(count), start)
        yield made
    finally:
        await delete_all(target, made)
