"""What each principal may use: counted in one step of the loop, so that parallel requests pass no bound."""

from __future__ import annotations

from collections import Counter, deque
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from typing import TYPE_CHECKING, Literal

import structlog

from gateway.errors import Allowance, LimitReached, StoreUnavailable
from gateway.models import UsageDay

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date

    from gateway.ports import Clock, KernelHandle, Store
    from gateway.settings import Settings

Name = Literal[
    "kernels",
    "starts_per_minute",
    "executions_per_minute",
    "concurrent_executions",
    "cpu_s_per_day",
    "output_bytes_per_day",
    "storage_bytes",
    "sockets",
]
WINDOW_S = 60.0

log = structlog.get_logger(__name__)


class Window:
    """The moments of what happened in the last minute."""

    def __init__(self) -> None:
        self._moments: deque[float] = deque()

    def allowance(self, bound: int, now: float) -> Allowance:
        """Return what is left of a bound."""
        while self._moments and now - self._moments[0] >= WINDOW_S:
            self._moments.popleft()
        reset_s = WINDOW_S - (now - self._moments[0]) if self._moments else 0.0
        return Allowance(bound, max(0, bound - len(self._moments)), reset_s)

    def add(self, now: float) -> None:
        """Note that it happened."""
        self._moments.append(now)


class Quotas:
    """Who has used how much: a `ports.ExecutionGate`, and the same for kernel starts, sockets and days.

    A restart forgets the minute and keeps the day.
    """

    def __init__(self, settings: Settings, store: Store, clock: Clock) -> None:
        self._common = {"kernels": settings.kernels.max_kernels_per_owner} | settings.quotas.model_dump(
            exclude={"principals"}
        )
        self._own = {
            name: quota.model_dump(exclude_none=True) for name, quota in settings.quotas.principals.items()
        }
        self._store = store
        self._clock = clock
        self._windows: dict[tuple[str, Name], Window] = {}
        self._executing: dict[str, Counter[str]] = {}
        self._sockets: Counter[str] = Counter()
        self._days: dict[tuple[date, str], UsageDay] = {}
        self._unsaved: dict[tuple[date, str], UsageDay] = {}
        self._cpu_seen: dict[str, float] = {}

    def bound(self, owner: str, name: Name) -> int | None:
        """Return a quota of an owner's; None when there is no bound."""
        value = self._own.get(owner, {}).get(name, self._common[name])
        return value if isinstance(value, int) else None

    def allowance(self, owner: str, name: Name) -> Allowance | None:
        """Return what is left of a quota per minute, for the headers that tell of it."""
        bound = self.bound(owner, name)
        if bound is None:
            return None
        return self._windows.get((owner, name), Window()).allowance(bound, self._clock.monotonic())

    def start(self, owner: str) -> None:
        """Count the start of a kernel. Raises LimitReached."""
        self._check_day(owner)
        self._take(owner, "starts_per_minute", "kernel starts")

    def admit(self, owner: str, kernel_id: str) -> None:
        """Count an execution that begins; see `ports.ExecutionGate.admit`."""
        self._check_day(owner)
        executing = self._executing.setdefault(owner, Counter())
        most = self.bound(owner, "concurrent_executions")
        # a kernel runs its executions one by one: those that wait behind another take no place of their own
        if most is not None and not executing[kernel_id] and len(executing) >= most:
            raise LimitReached(
                f"You have executions in {most} kernels, as many as you may at a time.",
                reason="concurrent_executions",
                retry_after_s=1,
            )
        self._take(owner, "executions_per_minute", "executions")
        executing[kernel_id] += 1

    def release(self, owner: str, kernel_id: str, output_bytes: int) -> None:
        """Count an execution's end; see `ports.ExecutionGate.release`."""
        executing = self._executing[owner]
        executing[kernel_id] -= 1
        if not executing[kernel_id]:
            del executing[kernel_id]
            if not executing:
                del self._executing[owner]
        self._charge(owner, output_bytes=output_bytes)

    def sent(self, owner: str, output_bytes: int) -> None:
        """Charge what was sent of output that belongs to no execution."""
        self._charge(owner, output_bytes=output_bytes)

    @contextmanager
    def socket(self, owner: str) -> Iterator[None]:
        """Count a socket while it is open. Raises LimitReached."""
        most = self.bound(owner, "sockets")
        if most is not None and self._sockets[owner] >= most:
            raise LimitReached(
                f"You have {most} open sockets, as many as you may.", reason="sockets", retry_after_s=5
            )
        self._sockets[owner] += 1
        try:
            yield
        finally:
            self._sockets[owner] -= 1
            if not self._sockets[owner]:
                del self._sockets[owner]

    def spent(self, owner: str) -> Name | None:
        """Return which of an owner's quotas per day is used up, if one is."""
        used = self._days.get((self._today(), owner))
        if used is None:
            return None
        cpu_s, output_bytes = self.bound(owner, "cpu_s_per_day"), self.bound(owner, "output_bytes_per_day")
        if cpu_s is not None and used.cpu_s >= cpu_s:
            return "cpu_s_per_day"
        return (
            "output_bytes_per_day" if output_bytes is not None and used.output_bytes >= output_bytes else None
        )

    async def measure(self, handle: KernelHandle, *, anew: bool = True) -> float:
        """Charge the CPU time of a kernel since the last look, in seconds, and return it.

        With `anew` a kernel that was not seen before is charged for its whole life. Raises GatewayError.
        """
        now_s = (await handle.usage()).cpu_s
        seen_s = self._cpu_seen.get(handle.id, 0.0 if anew else now_s)
        # a restarted kernel has a new cell, which counts from nothing
        used_s = now_s - seen_s if now_s >= seen_s else now_s
        self._cpu_seen[handle.id] = now_s
        self._charge(handle.owner, cpu_s=used_s)
        return used_s

    def forget(self, live: set[str]) -> None:
        """Forget what was seen of kernels that are gone."""
        self._cpu_seen = {kernel_id: seen for kernel_id, seen in self._cpu_seen.items() if kernel_id in live}

    async def load(self) -> None:
        """Read what was used of this day before the gateway started. Raises StoreUnavailable."""
        for used in await self._store.usage_on(self._today()):
            self._days[used.day, used.principal] = used

    async def save(self) -> None:
        """Keep what was used since the last time; what the store does not take is kept for the next."""
        unsaved, self._unsaved = self._unsaved, {}
        try:
            if unsaved:
                await self._store.add_usage(list(unsaved.values()))
        except BaseException as error:
            for used in unsaved.values():
                _add(self._unsaved, used)
            if not isinstance(error, StoreUnavailable):
                raise
            log.warning("usage_not_saved", error=error.message)
        self._tidy()

    def _take(self, owner: str, name: Name, what: str) -> None:
        bound, now = self.bound(owner, name), self._clock.monotonic()
        if bound is None:
            return
        window = self._windows.setdefault((owner, name), Window())
        left = window.allowance(bound, now)
        if not left.remaining:
            raise LimitReached(
                f"You may have {bound} {what} a minute; the next one is possible in {left.reset_s:.0f} s.",
                reason=name,
                retry_after_s=left.reset_s,
                allowance=left,
            )
        window.add(now)

    def _check_day(self, owner: str) -> None:
        name = self.spent(owner)
        if name is not None:
            now = self._clock.now()
            midnight = datetime.combine(now.date() + timedelta(days=1), time_of_day(), UTC)
            bound, wait_s = self.bound(owner, name) or 0, (midnight - now).total_seconds()
            raise LimitReached(
                f"You have used up {name}, which is {bound}; the next day begins at midnight UTC.",
                reason=name,
                retry_after_s=wait_s,
                allowance=Allowance(bound, 0, wait_s),
            )

    def _charge(self, owner: str, *, cpu_s: float = 0.0, output_bytes: int = 0) -> None:
        used = UsageDay(principal=owner, day=self._today(), cpu_s=cpu_s, output_bytes=output_bytes)
        _add(self._days, used)
        _add(self._unsaved, used)

    def _today(self) -> date:
        return self._clock.now().astimezone(UTC).date()

    def _tidy(self) -> None:
        """Forget days that are over and minutes in which nothing happened."""
        today, now = self._today(), self._clock.monotonic()
        self._days = {key: used for key, used in self._days.items() if abs((today - key[0]).days) <= 1}
        self._windows = {key: each for key, each in self._windows.items() if each.allowance(1, now).reset_s}


def _add(days: dict[tuple[date, str], UsageDay], more: UsageDay) -> None:
    key = more.day, more.principal
    used = days.get(key)
    if used is None:
        days[key] = more
    else:
        total = {"cpu_s": used.cpu_s + more.cpu_s, "output_bytes": used.output_bytes + more.output_bytes}
        days[key] = used.model_copy(update=total)
