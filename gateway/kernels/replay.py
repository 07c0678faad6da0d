"""What a kernel said to clients that were not there: kept for them, bounded, and given once, in order."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from heapq import merge
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.models import Message, Page
    from gateway.ports import Subscriber

# what a kept message costs beside its bytes
OVERHEAD_BYTES = 1024
# pages that may come back to one kernel; of more, those that left first get what a new page gets
MAX_AWAY = 32
# marks of what was let go of; of more, the oldest are told together
MAX_GAPS, MAX_PARENT_BYTES = 256, 4096
# tells a client what state it is in: goes only when no output is left that could go
VITAL = frozenset({"status", "error", "execute_input"})


class Kept(NamedTuple):
    """A message with whom it is for (None: everybody), and what it costs to keep."""

    message: Message
    page: Page | None
    cost: int


@dataclass(slots=True)
class Gap:
    """Messages of one parent that were let go of: how many bytes, and where the last of them stood."""

    offset: int
    size: int
    parent_id: str
    parent_header: bytes


class Joined(NamedTuple):
    """What a page that connects gets first: from after `since` on; `alone` says that it gets others' too."""

    items: list[Message | Gap]
    since: int
    alone: bool


@dataclass(slots=True)
class _Reader:
    page: Page
    confirmed: int


class Replay:
    """The last of one kernel's conversation, at most `max_bytes` of it, and how far every page has read.

    Each message is given an offset, in bytes from the start. Pages confirm offsets; what a page had not
    confirmed when it left is what it gets when it comes back. A page that was not there before gets what the
    last page of its principal had not confirmed, if none of that principal's is there.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._end = 0
        self._held = 0
        self._output: deque[Kept] = deque()
        self._vital: deque[Kept] = deque()
        self._gaps: deque[Gap] = deque()
        self._running: dict[str, int] = {}
        self._readers: dict[Subscriber, _Reader] = {}
        self._away: dict[Page, int] = {}
        self._left: dict[str, int] = {}
        self._inherited: int | None = None

    @property
    def held_bytes(self) -> int:
        """How much is kept, overhead included."""
        return self._held

    def page_of(self, subscriber: Subscriber) -> Page | None:
        """Return the page behind a subscriber."""
        reader = self._readers.get(subscriber)
        return reader.page if reader else None

    def add(self, message: Message, page: Page | None = None) -> None:
        """Give a message its offset, and keep it: for everybody, or for one page."""
        size = message.size
        self._end += max(1, size)
        message.offset = self._end
        if not (self._readers or self._away or self._left or self._running or self._inherited is not None):
            return  # nobody is there, or has been
        vital = message.channel != "iopub" or message.authored or message.msg_type in VITAL
        (self._vital if vital else self._output).append(Kept(message, page, size + OVERHEAD_BYTES))
        self._held += size + OVERHEAD_BYTES
        while self._held > self._max_bytes:
            self._evict()

    def begin(self, msg_id: str) -> None:
        """Keep an execution's output from now on, whoever has had it: somebody may ask for it."""
        self._running[msg_id] = self._end

    def end(self, msg_id: str) -> None:
        """Forget an execution's output, but for those who have missed it."""
        if self._running.pop(msg_id, None) is not None:
            self._trim()

    def join(self, subscriber: Subscriber, page: Page, *, current: bool = False) -> Joined:
        """Let a page in and return what it missed; `current` asks for all of what runs now, besides."""
        named = page.session is not None
        former = [each for each, reader in self._readers.items() if named and reader.page == page]
        mine = [self._readers.pop(each).confirmed for each in former]
        alone = all(reader.page.principal != page.principal for reader in self._readers.values())
        since = max(mine) if mine else self._since(page, alone=alone)
        self._away.pop(page, None)
        self._left.pop(page.principal, None)
        self._readers[subscriber] = _Reader(page, since)
        running = self._running if current else {}

        def wanted(kept: Kept) -> bool:
            if kept.page is None:
                return kept.message.offset > since or kept.message.parent_id in running
            theirs = alone and kept.page.principal == page.principal
            return kept.message.offset > since and (theirs or (named and kept.page == page))

        gaps: list[Message | Gap] = [
            gap if gap.parent_id in running else replace(gap, size=min(gap.size, gap.offset - since))
            for gap in self._gaps
            if gap.offset > since or gap.parent_id in running
        ]
        gaps.sort(key=_offset)
        output, vital = (
            (kept.message for kept in queue if wanted(kept)) for queue in (self._output, self._vital)
        )
        items = list(merge(output, vital, gaps, key=_offset))
        self._trim()
        return Joined(items, since, alone)

    def confirm(self, subscriber: Subscriber, offset: int) -> None:
        """Note that a page has everything up to an offset."""
        reader = self._readers.get(subscriber)
        if reader and reader.confirmed < offset <= self._end:
            reader.confirmed = offset
            self._trim()

    def leave(self, subscriber: Subscriber) -> None:
        """Let a page go: what comes from now on is kept for it."""
        reader = self._readers.pop(subscriber, None)
        if reader is None:
            return
        page = reader.page
        if page.session is not None:
            self._away.pop(page, None)
            self._away[page] = reader.confirmed
            if len(self._away) > MAX_AWAY:
                del self._away[next(iter(self._away))]
        if all(other.page.principal != page.principal for other in self._readers.values()):
            # the kernel's owner, and admins perhaps
            self._left[page.principal] = reader.confirmed
        self._trim()

    def inherit(self) -> None:
        """Owe everything from now on to every page: an earlier gateway's may come back."""
        self._inherited = self._end

    def disinherit(self) -> None:
        """Owe nothing any more to pages that were never there."""
        self._inherited = None
        self._trim()

    def clear(self) -> None:
        """Let go of all output; where somebody has missed it, a gap stays."""
        while self._output:
            self._evict()
        self._trim()

    def _since(self, page: Page, *, alone: bool) -> int:
        if page.session is not None and page in self._away:
            return self._away[page]
        if alone and page.principal in self._left:
            return self._left[page.principal]
        return self._end if self._inherited is None else self._inherited

    def _evict(self) -> None:
        """Let go of the oldest output, or of the oldest message when there is no output."""
        message, _, cost = (self._output or self._vital).popleft()
        self._held -= cost
        last = self._gaps[-1] if self._gaps else None
        if last and last.parent_id == message.parent_id:
            last.size += message.size
            last.offset = max(last.offset, message.offset)
            return
        parent = message.parent_header if len(message.parent_header) <= MAX_PARENT_BYTES else b"{}"
        self._gaps.append(Gap(message.offset, message.size, message.parent_id, parent))
        if len(self._gaps) > MAX_GAPS:
            first = self._gaps.popleft()
            self._gaps[0].size += first.size

    def _needed(self) -> Iterator[int]:
        yield from (reader.confirmed for reader in self._readers.values())
        yield from self._away.values()
        yield from self._left.values()
        yield from self._running.values()
        if self._inherited is not None:
            yield self._inherited

    def _trim(self) -> None:
        """Forget what everybody has."""
        floor = min(self._needed(), default=self._end)
        for queue in (self._output, self._vital):
            while queue and queue[0].message.offset <= floor:
                self._held -= queue.popleft().cost
        while self._gaps and self._gaps[0].offset <= floor:
            self._gaps.popleft()


def _offset(item: Message | Gap) -> int:
    return item.offset
