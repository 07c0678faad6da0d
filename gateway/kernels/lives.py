"""How long a kernel's runs have lived: what dies again and again is not started again by itself."""

from __future__ import annotations

from gateway.ports import Clock

# a run that dies so soon is a short one, and so many of them in a row are enough
SHORT_LIFE_S, MAX_SHORT_LIVES = 10.0, 5


class Lives:
    """Counts the short lives of one kernel's runs, one after another."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = clock.monotonic()
        self._short = 0

    def begun(self) -> None:
        """Note that a run has begun."""
        self._since = self._clock.monotonic()

    def ended(self) -> None:
        """Note that it has died."""
        lived_s = self._clock.monotonic() - self._since
        self._short = self._short + 1 if lived_s < SHORT_LIFE_S else 0

    @property
    def spent(self) -> bool:
        """Whether too many short ones came in a row."""
        return self._short > MAX_SHORT_LIVES
