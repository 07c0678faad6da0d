"""When to try again, and how long to wait before that."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.client.failures import GatewayUnreachable, NoAnswer

if TYPE_CHECKING:
    from gateway.errors import GatewayError

PASSING = frozenset({429, 502, 503})


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how long a request that may be repeated is tried again; `retries` 0 is never.

    Waits grow twofold from `first_s` to `longest_s`, each drawn between nothing and that (full jitter), and
    are never shorter than the gateway asks for. None is begun that would end later than `budget_s` after the
    first failure.
    """

    retries: int = 4
    budget_s: float = 60.0
    first_s: float = 0.25
    longest_s: float = 10.0

    def wait_s(self, tried: int, spent_s: float, error: GatewayError) -> float | None:
        """Return how long to wait, `tried` repeats and `spent_s` after the first failure; None to give up."""
        if tried >= self.retries or not passes(error):
            return None
        bound = min(self.longest_s, self.first_s * 2 ** min(tried, 32))
        wait_s = random.uniform(0, bound)  # noqa: S311 - spreads clients, no secret
        wait_s = max(wait_s, error.retry_after_s or 0.0)
        return wait_s if spent_s + wait_s <= self.budget_s else None


def passes(error: GatewayError) -> bool:
    """Tell whether an error may be over soon by itself; a request that took too long is not asked again."""
    if isinstance(error, GatewayUnreachable):
        return not isinstance(error, NoAnswer)
    return error.status in PASSING
