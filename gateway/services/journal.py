"""The journal of one execution: its events in order, numbered, bounded, and waited for."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

import orjson

from gateway.models.jobs import Event, EventType

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# What an event takes beside its content, and up to where texts join the one before that nobody has read yet.
OVERHEAD_BYTES, JOINED_CHARS = 200, 8192


class Journal:
    """Keeps events up to `max_bytes`; past that the oldest are let go of, and a gap tells of them."""

    def __init__(
        self, max_bytes: int, events: Iterable[Event] = (), *, forgotten: Event | None = None
    ) -> None:
        self._max_bytes = max_bytes
        self._events: deque[tuple[Event, int]] = deque((event, _size(event)) for event in events)
        self._bytes = sum(size for _, size in self._events)
        self._forgotten = forgotten
        self._read = 0
        self._last = self._events[-1][0].seq if self._events else (forgotten.seq if forgotten else 0)
        self._news = asyncio.Event()
        self.closed = False

    @property
    def last(self) -> int:
        """The number of the newest event."""
        return self._last

    @property
    def size(self) -> int:
        """About how many bytes its events take."""
        return self._bytes

    @property
    def forgotten(self) -> Event | None:
        """The gap that stands for what was let go of."""
        return self._forgotten

    def add(self, kind: EventType, **fields: Any) -> Event:
        """Append an event. Texts that nobody has read yet grow together."""
        if kind in {"stdout", "stderr"} and self._joins(kind, fields):
            before, size = self._events.pop()
            self._bytes -= size
            event = before.model_copy(update={"text": (before.text or "") + fields["text"]})
        else:
            self._last += 1
            event = Event(seq=self._last, type=kind, **fields)
        size = _size(event)
        self._events.append((event, size))
        self._bytes += size
        while self._bytes > self._max_bytes and len(self._events) > 1:
            self._forget_oldest()
        self._wake()
        return event

    def after(self, cursor: int) -> list[Event]:
        """Return the events after a cursor, with a gap first where some of them are gone."""
        # numbered without gaps, so those wanted are the last so many
        wanted = islice(reversed(self._events), max(0, self._last - cursor))
        found = [event for event, _ in wanted][::-1]
        self._read = max(self._read, self._last)
        gap = self._forgotten
        return [gap, *found] if gap is not None and cursor < gap.seq else found

    async def news(self, cursor: int, within_s: float) -> None:
        """Wait until there is an event after a cursor, or there will be none, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self._last <= cursor and not self.closed:
                    await self._news.wait()

    def close(self) -> None:
        """Note that nothing more will come."""
        self.closed = True
        self._wake()

    def events(self) -> Sequence[Event]:
        """Return what is kept."""
        return [event for event, _ in self._events]

    def _joins(self, kind: EventType, fields: dict[str, Any]) -> bool:
        if not self._events or self._last <= self._read:
            return False
        last = self._events[-1][0]
        room = JOINED_CHARS - len(last.text or "")
        return last.type == kind and last.task == fields.get("task", 0) and len(fields["text"]) <= room

    def _forget_oldest(self) -> None:
        event, size = self._events.popleft()
        self._bytes -= size
        lost = self._forgotten.bytes or 0 if self._forgotten else 0
        self._forgotten = Event(seq=event.seq, type="gap", bytes=lost + size)

    def _wake(self) -> None:
        # everybody who waits now is woken once; who comes later waits for the next
        self._news.set()
        self._news = asyncio.Event()


def _size(event: Event) -> int:
    """Return about how many bytes an event takes."""
    size = OVERHEAD_BYTES + len(event.text or "") + len(event.evalue or "")
    for part in (event.data, event.metadata, event.traceback, event.arguments):
        if part:
            size += len(orjson.dumps(part, default=str))
    return size
