"""`kill -9` of the gateway in random moments under load: nothing answered is lost, nothing is left."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.gateway import Gateway, running, text_of
from tests.integration.test_audit import audit, of
from tests.lifecycle import cells, eventually, kernels
from tests.machine import cells_of, directories_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.gateway import Channels, Client

KILLS = 20
# of those, so many while the gateway starts and adopts
EARLY_KILLS = 6
KERNELS = 4
# an answer or a connection error comes within this, whatever happens to the gateway
BOUND_S = 20.0
ENV = {
    "CELLBLOCK_AUDIT__KEEP_CODE": "true",
    "CELLBLOCK_QUOTAS__EXECUTIONS_PER_MINUTE": "unlimited",
    "CELLBLOCK_QUOTAS__STARTS_PER_MINUTE": "unlimited",
}
GONE = (aiohttp.ClientError, ConnectionError)


@dataclass
class Load:
    """Clients that work until told to stop, over however many gateways, and what they were told."""

    gateway: Gateway
    chance: random.Random
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    received: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    breaks: int = 0
    given: set[str] = field(default_factory=set)
    taken_back: set[str] = field(default_factory=set)

    async def until_stopped(self, name: str, work: Callable[[Client], Awaitable[None]]) -> None:
        """Do some work again and again, with a new client after every gateway."""
        while not self.stop.is_set():
            begun = time.monotonic()
            try:
                async with self.gateway.client() as client:
                    await work(client)
            except GONE:
                self.breaks += 1
                await asyncio.sleep(0.2)
            except Exception as error:  # noqa: BLE001 - all of them are findings
                self.wrong.append(f"{name}, after {time.monotonic() - begun:.1f} s: {error!r}")
                await asyncio.sleep(0.05)

    async def bounded(self, answer: Awaitable[Any]) -> Any:
        """Wait for an answer, no longer than the bound."""
        begun = time.monotonic()
        try:
            return await asyncio.wait_for(answer, BOUND_S)
        finally:
            self.slowest_s = max(self.slowest_s, time.monotonic() - begun)

    def took(self, text: str, mark: str, last: int) -> int:
        """Note a result; return the kernel's counter, which must be past the last one."""
        number, _, said = text.strip().partition(" ")
        assert said == mark, (text, mark)
        assert int(number) > last, f"the counter went back from {last} to {number}"
        self.received.append(mark)
        return int(number)

    async def by_rest(self, kernel: str) -> None:
        """Count over REST."""
        last = numbers = 0

        async def work(client: Client) -> None:
            nonlocal last, numbers
            while not self.stop.is_set():
                numbers += 1
                mark = f"rest-{kernel}-{numbers}"
                last = self.took(await self.bounded(client.out(kernel, counting(mark))), mark, last)
                await asyncio.sleep(self.chance.uniform(0, 0.05))

        await self.until_stopped("rest", work)

    async def by_socket(self, kernel: str) -> None:
        """Count over a WebSocket."""
        last = numbers = 0

        async def one(channels: Channels, mark: str) -> str:
            try:
                return text_of(await channels.until_done(await channels.execute(counting(mark)), BOUND_S))
            except AssertionError as error:
                # a closed socket is what the harness asserts against
                raise ConnectionError(str(error)) from error

        async def work(client: Client) -> None:
            nonlocal last, numbers
            async with client.channels(kernel) as channels:
                while not self.stop.is_set():
                    numbers += 1
                    mark = f"socket-{kernel}-{numbers}"
                    last = self.took(await self.bounded(one(channels, mark)), mark, last)
                    await asyncio.sleep(self.chance.uniform(0, 0.05))

        await self.until_stopped("socket", work)

    async def by_lives(self) -> None:
        """Start kernels and end them."""

        async def work(client: Client) -> None:
            while not self.stop.is_set():
                kernel = await self.bounded(client.start())
                self.given.add(kernel)
                assert await self.bounded(client.out(kernel, "print(1)")) == "1\n"
                self.taken_back.add(kernel)
                await self.bounded(client.delete(kernel))

        await self.until_stopped("lives", work)


def counting(mark: str) -> str:
    """Return code that counts in its kernel and says so."""
    return f"n += 1; print(n, {mark!r})"


async def kill_early(gateway: Gateway, after_s: float) -> None:
    """Start a gateway and `kill -9` it while it starts, or just when it is up."""
    starting = asyncio.create_task(asyncio.to_thread(gateway.start))
    await asyncio.sleep(after_s)
    await asyncio.to_thread(gateway.end, signal.SIGKILL)
    await asyncio.gather(starting, return_exceptions=True)


@pytest.mark.timeout(300)
async def test_twenty_kills_under_load() -> None:
    """No record of a received result is lost, no kernel forgets, no client hangs, nothing is left over."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    chance = random.Random(seed)
    with running(env=ENV) as gateway:
        async with gateway.client() as client:
            counters = [await client.start() for _ in range(KERNELS)]
            for kernel in counters:
                await client.run(kernel, "n = 0")
        load = Load(gateway, chance)
        jobs = [load.by_rest(kernel) for kernel in counters] + [load.by_socket(kernel) for kernel in counters]
        working = [asyncio.create_task(job) for job in [*jobs, load.by_lives()]]
        early = set(chance.sample(range(KILLS), EARLY_KILLS))
        for number in range(KILLS):
            if number in early:
                await asyncio.to_thread(gateway.end, signal.SIGKILL)
                await kill_early(gateway, chance.uniform(0.1, 1.5))
            else:
                await asyncio.sleep(chance.uniform(0.0, 1.2))
                await asyncio.to_thread(gateway.end, signal.SIGKILL)
            await asyncio.to_thread(gateway.start)
        await asyncio.sleep(1)
        load.stop.set()
        await asyncio.wait_for(asyncio.gather(*working), 2 * BOUND_S)
        figures = f"{len(load.received)} results, {load.breaks} breaks, slowest answer {load.slowest_s:.2f} s"
        print(figures)  # noqa: T201 - for docs/security.md

        assert load.wrong == []
        assert len(load.received) > 10 * KILLS
        async with gateway.client() as client:
            shown = {model["id"] for model in await client.json("GET", "/api/kernels")}
            # what was answered stays true: a start is there, an end that was only asked for may or may not be
            assert set(counters) | (load.given - load.taken_back) <= shown
            for kernel in counters:
                counted = int(await client.out(kernel, "print(n)"))
                assert counted >= sum(kernel in mark for mark in load.received)
            assert await eventually(lambda: len(kernels(gateway)) == len(shown)), (shown, cells(gateway))
            assert len(gateway.warden_pids()) == 1
            assert len(list(directories_of(gateway))) == len(shown)
            for kernel in shown:
                await client.delete(kernel)
        assert await eventually(lambda: not cells(gateway)), cells(gateway)
        assert list(directories_of(gateway)) == []
        assert list(cells_of(gateway)) == []
        verdict = audit(gateway, "verify")
        assert verdict.returncode == 0, verdict.stdout
        recorded = {record["code"] for record in of(gateway, "execution.end")}
        assert [mark for mark in load.received if counting(mark) not in recorded] == []
