"""A restart of the server while kernels live."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.workloads.population import reconnected
from benchmarks.workloads.workload import kernels

if TYPE_CHECKING:
    from benchmarks.samples import Samples
    from benchmarks.sizes import Sizes
    from benchmarks.targets.target import Target


class Restart:
    """How long until all kernels are adopted and answer. The incumbents lose theirs: they have no figure."""

    name = "restart"
    bound_s = 240.0
    starts = False

    def rounds(self, sizes: Sizes) -> int:
        """Return how often it is measured."""
        return sizes.long_rounds

    def takes(self, target: Target) -> bool:
        """Tell whether it can be measured on a target."""
        return target.keeps

    async def measure(self, target: Target, sizes: Sizes, samples: Samples) -> None:
        """Restart once, under kernels that each hold a value of their own."""
        async with kernels(target, sizes.restarted) as made:
            await reconnected(target, made, f"{len(made)} kernels serving after a restart", samples)
