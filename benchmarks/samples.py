"""What was measured: values by metric, subject and round, and the figures that stand for them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


def quantile(ordered: list[float], part: float) -> float:
    """Return a quantile of ordered values, between two of them where it falls there."""
    at = part * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


@dataclass(slots=True)
class Series:
    """The values of one metric and one subject, a list for each round."""

    unit: str
    rounds: dict[int, list[float]] = field(default_factory=dict)

    def values(self) -> list[float]:
        """Return the values of all rounds, in order of size."""
        return sorted(value for values in self.rounds.values() for value in values)

    def figure(self, name: str) -> float:
        """Return a figure over all rounds: p50, p99, max, mean, ..."""
        return _figure(self.values(), name)

    def by_round(self, name: str) -> dict[int, float]:
        """Return a figure of each round alone."""
        return {number: _figure(sorted(values), name) for number, values in self.rounds.items()}


@dataclass(slots=True)
class Samples:
    """All series of a run, what went wrong in it, and where an incumbent came to its end."""

    series: dict[tuple[str, str], Series] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    round: int = 0

    def record(self, metric: str, subject: str, values: Iterable[float], unit: str) -> None:
        """Add values of the round that runs."""
        series = self.series.setdefault((metric, subject), Series(unit))
        series.rounds.setdefault(self.round, []).extend(values)

    def fail(self, what: str) -> None:
        """Note a failure; what it was to measure has no figure then."""
        self.failures.append(what)

    def subjects(self, metric: str) -> list[str]:
        """List the subjects that have values of a metric."""
        return [subject for name, subject in self.series if name == metric]

    def metrics(self) -> list[str]:
        """List the metrics in the order in which they came."""
        return list(dict.fromkeys(metric for metric, _ in self.series))

    def ratio(self, metric: str, over: tuple[str, str], under: tuple[str, str]) -> tuple[float, float, float]:
        """Return the ratio of two subjects' figures: over all rounds, and the least and greatest of a round.

        Each is given as subject and figure. Raises KeyError where one was not measured.
        """
        series, base = self.series[metric, over[0]], self.series[metric, under[0]]
        ratios = [
            value / base.by_round(under[1])[number]
            for number, value in series.by_round(over[1]).items()
            if number in base.rounds
        ]
        return series.figure(over[1]) / base.figure(under[1]), min(ratios), max(ratios)

    def plain(self) -> list[dict[str, Any]]:
        """Return all series with their figures, for JSON."""
        return [
            {
                "metric": metric,
                "subject": subject,
                "unit": series.unit,
                "n": len(series.values()),
                **{name: series.figure(name) for name in ("p25", "p50", "p75", "p95", "p99", "min", "max")},
                "rounds": series.rounds,
            }
            for (metric, subject), series in self.series.items()
        ]


def _figure(ordered: list[float], name: str) -> float:
    if name == "min":
        return ordered[0]
    if name == "max":
        return ordered[-1]
    if name == "mean":
        return statistics.fmean(ordered)
    return quantile(ordered, int(name.removeprefix("p")) / 100)
