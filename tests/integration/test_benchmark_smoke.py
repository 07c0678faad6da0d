"""A guard against a slow relay: ratios to raw ZeroMQ on the same kernel, with generous bounds."""

from __future__ import annotations

import contextlib
import random
import statistics
from typing import TYPE_CHECKING

import pytest
import zmq

from benchmarks.outcome import Outcome, WrongOutcome
from benchmarks.targets.cellblock import Cellblock
from benchmarks.targets.jupyter_api import JupyterApi
from benchmarks.wires.raw import Address, Raw
from benchmarks.workloads.creation import first_reply
from benchmarks.workloads.output import DISPLAYS
from benchmarks.workloads.workload import SUM, TWO

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.targets.target import Kernel
    from benchmarks.wires.wire import Wire
    from tests.gateway import Gateway

    Context = zmq.Context[zmq.Socket[bytes]]

ROUNDS = 5
# a quiet machine shows some 1.5 and 2.5: what is guarded against is a fixed wait, as of Nagle and delayed
# acknowledgements (40 ms), or work that grows with what was sent
MOST_TRIP = 8.0
MOST_OUTPUT = 12.0
# a quiet machine shows some 0.04
MOST_WARM = 0.5


class Ways:
    """Two ways to one kernel: through the gateway, and beside it to the sockets of its cell."""

    def __init__(self, api: JupyterApi, kernel_id: str, address: Address, context: Context) -> None:
        self._api = api
        self._kernel_id = kernel_id
        self._address = address
        self._context = context

    @contextlib.asynccontextmanager
    async def open(self, name: str) -> AsyncIterator[Wire]:
        """Open one of them; the other is closed meanwhile, or it would fill with what nobody reads."""
        if name == "v1":
            async with self._api.channels(self._kernel_id, "v1") as channels:
                yield channels
        else:
            with contextlib.closing(Raw(self._context, self._address)) as raw:
                raw.wait_until_heard()
                yield raw


@pytest.fixture(scope="module")
async def ways(gateway: Gateway) -> AsyncIterator[Ways]:
    """The ways to a kernel of the shared gateway's."""
    api = JupyterApi(gateway.url, gateway.key(), "python3")
    kernel = await api.create()
    try:
        async with api.channels(kernel.id, "v1") as asking:
            address = await Address.asked(asking)
        with zmq.Context[zmq.Socket[bytes]]() as context:
            yield Ways(api, kernel.id, address, context)
    finally:
        await api.delete(kernel.id)
        await api.close()


async def best(ways: Ways, code: str, expected: Outcome, times: int) -> dict[str, float]:
    """Return the best round's median seconds of each way, interleaved: others use the machine too."""
    medians: dict[str, list[float]] = {"v1": [], "raw": []}
    for _ in range(ROUNDS):
        for name in random.sample(sorted(medians), len(medians)):
            async with ways.open(name) as wire:
                took = [(await wire.execute(code)).checked(expected) for _ in range(times)]
            medians[name].append(statistics.median(took))
    return {name: min(values) for name, values in medians.items()}


@contextlib.asynccontextmanager
async def warm_target() -> AsyncIterator[Cellblock]:
    """Give the benchmark's own gateway with a pool of two."""
    with zmq.Context[zmq.Socket[bytes]]() as context:
        async with Cellblock(context, pool=2) as target:
            yield target


async def test_a_round_trip_costs_a_few_times_raw_zmq(ways: Ways) -> None:
    """`1+1` through the gateway takes no more than some times of what it takes beside the gateway."""
    took = await best(ways, SUM, TWO, 30)

    assert took["v1"] <= MOST_TRIP * took["raw"], took


async def test_a_flood_of_displays_keeps_pace_and_loses_nothing(ways: Ways) -> None:
    """Displays arrive in full and in order, and not much slower than beside the gateway."""
    count = 300
    shown = Outcome(displays=tuple(map(str, range(count))))

    took = await best(ways, DISPLAYS.format(count=count), shown, 1)

    assert took["v1"] <= MOST_OUTPUT * took["raw"], took


async def test_a_warm_start_is_much_faster_than_a_cold_one() -> None:
    """From asking to the first reply, a kernel that was ready takes a part of a cold one's time."""
    async with warm_target() as warm:
        took: dict[str, list[float]] = {"warm": [], "cold": []}
        await warm.ready()
        for kernelspec, how in [("benchmark", "warm"), ("python3", "cold")] * 3:
            warm.api.kernelspec = kernelspec
            made: list[Kernel] = []
            took[how].append(await first_reply(warm, made))
            assert made[0].warm is (how == "warm")
            await warm.delete(made[0])
            await warm.ready()

    assert min(took["warm"]) <= MOST_WARM * min(took["cold"]), took


async def test_a_wrong_answer_gives_no_figure(ways: Ways) -> None:
    """The benchmark takes no time from an execution whose output is not what it must be."""
    for name in ("v1", "raw"):
        async with ways.open(name) as wire:
            answer = await wire.execute("1+2")

        with pytest.raises(WrongOutcome, match="result is '3' and must be '2'"):
            answer.checked(TWO)
