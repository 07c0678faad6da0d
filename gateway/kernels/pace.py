"""How much one kernel has brought lately, and how long it is not listened to for that."""

from __future__ import annotations

import math
from collections.abc import Callable

# how fast one kernel is read in the long run, which leaves time for the others, and what it may bring at
# full speed before that holds; see `MessageReader.cost`
BYTES_PER_S, BURST_BYTES = 12 << 20, 32 << 20
# what a second of work on its messages counts, so that many small ones take 2/5 of the time in the long run
BYTES_PER_WORKED_S = BYTES_PER_S * 5 // 2
# how much faster a kernel is read while no other is at work: as fast as it goes, nearly, a slice at a time
ALONE = 16

# while others are at work, so many messages are taken of one kernel in a second, after so many at once: more
# are of no use to who looks on, and to make them takes the machine away from the others
MESSAGES_PER_S, BURST_MESSAGES = 1000, 500
# who has brought something so lately is at work
LATELY_S = 1.0


class Company:
    """Knows whether several kernels of a gateway are at work."""

    def __init__(self) -> None:
        self._who: Pace | None = None
        self._at = self._other_at = -math.inf

    def came(self, who: Pace, now: float) -> None:
        """Take note of a kernel that has brought something."""
        if who is not self._who:
            self._who, self._other_at = who, self._at
        self._at = now

    def beside(self, who: Pace, now: float) -> bool:
        """Tell whether another kernel than this has brought something lately."""
        return now - (self._other_at if who is self._who else self._at) < LATELY_S


class Pace:
    """How much one kernel has brought lately, on all its channels: a leaky bucket, and one for messages.

    What comes another way has a pace of its own, a `share` of this one.
    """

    def __init__(
        self, clock: Callable[[], float], *, share: float = 1.0, company: Company | None = None
    ) -> None:
        self._clock = clock
        self._share = share
        self._company = company
        self._level = self._messages = 0.0
        self._at = clock()

    def worked(self, seconds: float) -> None:
        """Take note of time that went into the kernel's messages."""
        self._level += seconds * BYTES_PER_WORKED_S

    def spend(self, cost: int, messages: int = 0) -> float:
        """Take note of what came, and return for how many seconds nothing more is to be read."""
        now = self._clock()
        passed, self._at = now - self._at, now
        company = self._company
        if company is not None and messages:
            company.came(self, now)
        beside = company is None or company.beside(self, now)
        rate = BYTES_PER_S * self._share * (1 if beside else ALONE)
        self._level = max(0.0, self._level - passed * rate) + cost
        wait_s = max(0.0, self._level - BURST_BYTES * self._share) / rate
        if company is None or not messages:
            return wait_s
        # what was brought alone is not held against it for longer than a burst
        left = min(max(0.0, self._messages - passed * MESSAGES_PER_S), BURST_MESSAGES)
        self._messages = left + messages
        if not beside:
            return wait_s
        return max(wait_s, (self._messages - BURST_MESSAGES) / MESSAGES_PER_S)
