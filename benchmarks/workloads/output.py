"""Much output: thousands of displays, megabytes of text in small pieces and in one, large binary messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.outcome import Outcome, digest
from benchmarks.workloads.trips import subject_of
from benchmarks.workloads.workload import kernels

if TYPE_CHECKING:
    from benchmarks.samples import Samples
    from benchmarks.sizes import Sizes
    from benchmarks.targets.target import Kernel, Target

MEGABYTE = 1e6
LINE = 1000
TIMEOUT_S = 60.0
DISPLAYS = """
from IPython.display import publish_display_data
for i in range({count}):
    publish_display_data({{"text/plain": str(i)}})
"""
FLUSHES = """
for i in range({count}):
    print(f"{{i:0{width}d}}", flush=True)
"""
WRITE = "print('x' * {size})"
BUFFERS = """
from comm import create_comm
_comm = create_comm(target_name="benchmark")
for i in range({count}):
    _comm.send({{"i": i}}, buffers=[bytes([i]) * {size}])
del _comm
"""


def doors(target: Target) -> list[str]:
    """Return the doors that stream output: the others answer with all of it at once."""
    if target.server:
        return [door for door in target.doors if door in {"v1", "legacy"}]
    return list(target.doors)


class Output:
    """Output as fast as the kernel makes it, all of which must arrive."""

    name = "output"
    bound_s = 300.0
    starts = False

    def rounds(self, sizes: Sizes) -> int:
        """Return how often it is measured."""
        return max(1, sizes.rounds - 2)

    def takes(self, target: Target) -> bool:
        """Tell whether it can be measured on a target."""
        # jupyter_client's own subscriber has ZeroMQ's bound of 1000 messages, and would lose some
        return target.name != "jupyter_client"

    async def measure(self, target: Target, sizes: Sizes, samples: Samples) -> None:
        """Measure each kind of output by each door that streams, each with a kernel of its own."""
        for door in doors(target):
            async with kernels(target, 1) as (kernel,):
                await self._by(target, kernel, door, sizes, samples)

    async def _by(self, target: Target, kernel: Kernel, door: str, sizes: Sizes, samples: Samples) -> None:
        subject = subject_of(target, door)

        async def rate(metric: str, code: str, expected: Outcome, amount: float, unit: str) -> None:
            async with target.connect(kernel, door) as wire:
                try:
                    took_s = (await wire.execute(code, TIMEOUT_S)).checked(expected)
                except Exception as error:  # noqa: BLE001 - said in the result, and the others go on
                    samples.fail(f"{metric}, {subject}: {error!r}")
                    return
            samples.record(metric, subject, [amount / took_s], unit)

        count = sizes.displays
        displays = Outcome(displays=tuple(map(str, range(count))))
        await rate("displays", DISPLAYS.format(count=count), displays, count, "messages per s")

        count = sizes.text_bytes // LINE
        code = FLUSHES.format(count=count, width=LINE - 1)
        lines = Outcome(stdout="".join(f"{i:0{LINE - 1}d}\n" for i in range(count)))
        await rate("text in small flushes", code, lines, sizes.text_bytes / MEGABYTE, "MB per s")

        size = sizes.text_bytes
        whole = Outcome(stdout="x" * size + "\n")
        await rate("text in one write", WRITE.format(size=size), whole, size / MEGABYTE, "MB per s")

        count, size = sizes.buffers, sizes.buffer_bytes
        buffers = Outcome(buffers=tuple(digest(bytes([i]) * size) for i in range(count)))
        code = BUFFERS.format(count=count, size=size)
        await rate("binary comm messages", code, buffers, count * size / MEGABYTE, "MB per s")
