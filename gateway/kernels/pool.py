"""Warm kernels: started before anybody asks, proved and ready, given to one owner and never to a second."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from uuid import uuid4

import structlog

from gateway.errors import Conflict, GatewayError, UnknownKernelSpec
from gateway.kernels.running import Listener, RunningCell, Wiring
from gateway.kernels.shelf import Shelf, WarmCell
from gateway.kernels.toolcalls import Desks
from gateway.models import Channel, KernelSpec, Message
from gateway.ports import Clock
from gateway.sandbox.bootorder import takes_variables
from gateway.sandbox.profile import SandboxProfile
from gateway.sandbox.wire import LaunchOrder
from gateway.settings import KernelsSettings
from gateway.telemetry import Metrics

log = structlog.get_logger()

# what a language's kernels run before they are anybody's; it leaves no name, no history and no output
REHEARSALS = {"python": "print(end='')"}


class WarmPool:
    """A shelf of warm kernels for each kernelspec that the settings name."""

    def __init__(
        self,
        *,
        specs: Callable[[], Awaitable[Mapping[str, KernelSpec]]],
        profiles: Mapping[str, SandboxProfile],
        wiring: Wiring,
        clock: Clock,
        metrics: Metrics,
        settings: KernelsSettings,
    ) -> None:
        self._specs = specs
        self._profiles = profiles
        self._wiring = wiring
        self._clock = clock
        self._metrics = metrics
        self._max_kernels = settings.max_kernels
        self._occupied: Callable[[], int] = int
        self._shelves = {
            name: Shelf(name, chosen, make=partial(self._make, name), room=self._room, clock=clock)
            for name, chosen in settings.pools.items()
        }
        for name, shelf in self._shelves.items():
            metrics.warm_kernels.labels(name).set_function(partial(len, shelf))

    async def run(self, occupied: Callable[[], int]) -> None:
        """Keep the shelves filled, until cancelled; `occupied` counts the kernels that are somebody's."""
        self._occupied = occupied
        async with asyncio.TaskGroup() as tasks:
            for shelf in self._shelves.values():
                tasks.create_task(shelf.run())

    async def claim(
        self, spec: KernelSpec, order: LaunchOrder, listener: Listener, *, secrets: Collection[str]
    ) -> RunningCell | None:
        """Return a warm cell as that of the kernel which an order is for; None where it must be started cold.

        `secrets` are the names of those variables of the order's which are secrets.
        """
        if self._room() < 0:
            # somebody's kernels come first
            for each in self._shelves.values():
                each.wake()
        shelf, profile = self._shelves.get(spec.name), self._profiles.get(spec.profile)
        if shelf is None or profile is None:
            return None
        shelf.ask()
        outcome, running = "empty", None
        if not served_warm(spec, order, secrets, profile):
            outcome = "unsuited"
        elif cell := shelf.take(spec):
            running = await self._given(shelf, cell, order, listener)
            outcome = "failed" if running is None else "warm"
        self._metrics.warm_claims.labels(spec.name, outcome).inc()
        return running

    async def close(self) -> None:
        """End every kernel that is nobody's yet."""
        await asyncio.gather(*(shelf.close() for shelf in self._shelves.values()))

    async def _given(
        self, shelf: Shelf, cell: WarmCell, order: LaunchOrder, listener: Listener
    ) -> RunningCell | None:
        running = cell.running
        try:
            await running.claim(order, told(cell.spec, order), listener)
        except GatewayError as error:
            log.warning("a warm kernel was not given", kernelspec=cell.spec.name, error=error.message)
            if isinstance(error, Conflict) and error.reason == "limits":
                # nothing about it has changed
                shelf.put_back(cell)
            else:
                await running.end()
            return None
        except BaseException:
            await running.end()
            raise
        return running

    def _room(self) -> int:
        ours = sum(map(len, self._shelves.values()))
        return self._max_kernels - self._occupied() - ours

    async def _make(self, name: str) -> WarmCell:
        """Start a kernel for nobody. Raises GatewayError."""
        spec = (await self._specs()).get(name)
        profile = self._profiles.get(spec.profile) if spec else None
        if spec is None or profile is None:
            raise UnknownKernelSpec(f"There is no kernelspec {name!r} to keep warm.")
        shelf = self._shelves[name]
        order = LaunchOrder(
            kernel_id=str(uuid4()),
            profile=spec.profile,
            argv=spec.argv,
            environment=spec.environment,
            env=dict(spec.env),
            limits=profile.limits,
            pooled=True,
            preload=shelf.settings.preload,
        )
        listener = Listener(
            on_message=unheard,
            on_too_large=too_large,
            on_exit=shelf.lose,
            on_lost=lambda running, _: shelf.lose(running),
            desks=Desks(),
        )
        running = await RunningCell.launch(self._wiring, order, listener, self._clock)
        async with running.or_end():
            await running.ready()
            if rehearsal := REHEARSALS.get(spec.language):
                await running.rehearse(rehearsal)
        return WarmCell(running, spec)


def told(spec: KernelSpec, order: LaunchOrder) -> dict[str, str]:
    """Return the variables that an order has and a warm kernel of its kernelspec has not."""
    return {name: value for name, value in order.env.items() if spec.env.get(name) != value}


def served_warm(
    spec: KernelSpec, order: LaunchOrder, secrets: Collection[str], profile: SandboxProfile
) -> bool:
    """Tell whether a kernel that is up already can become what an order asks for.

    Not one whose home is a workspace: its cell may see no other home than its first. Nor one with fewer
    cores, or with variables that are no secrets of the user's and not called KERNEL_*: Python and libraries
    look at such things when they start.
    """
    late = told(spec, order)
    environment = Path(spec.environment) if spec.environment else None
    return (
        order.workspace is None
        and math.ceil(order.limits.cpus) == math.ceil(profile.limits.cpus)
        and all(name in secrets or name.startswith("KERNEL_") for name in late)
        and (not late or takes_variables(spec.argv, environment))
    )


def unheard(_message: Message) -> None:
    """Take what a kernel says to nobody."""


def too_large(_channel: Channel) -> None:
    """Take note that a kernel said too much to nobody."""
