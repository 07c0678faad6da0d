"""The targets: ratios within one run, and a few amounts that say more than a ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.samples import Samples
    from benchmarks.sizes import Sizes

INCUMBENTS = ("kernel_gateway", "jupyter_server")
OURS = "cellblock"
RAW = f"raw ZMQ to {OURS}'s kernel"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was wanted and what was measured; `met` is None where it was not measured."""

    title: str
    wanted: str
    measured: str
    met: bool | None


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound for one subject's figure, taken alone or over the best of some others' figures.

    `faster` turns the ratio round, for times: so many times less.
    """

    title: str
    metric: str
    subject: str
    figure: str
    most: float | None = None
    least: float | None = None
    over: tuple[str, ...] = ()
    over_figure: str = ""
    over_metric: str = ""
    faster: bool = False

    def judge(self, samples: Samples) -> Verdict:
        """Hold what was measured against the bound."""
        ratio = "x" if self.over else ""
        bound = self.least if self.most is None else self.most
        wanted = f"{'≤' if self.least is None else '≥'} {bound:g}{ratio}"
        try:
            value, spread = self._ratio(samples) if self.over else self._amount(samples)
        except (KeyError, ValueError, ZeroDivisionError):
            return Verdict(self.title, wanted, "not measured", None)
        met = (self.most is None or value <= self.most) and (self.least is None or value >= self.least)
        return Verdict(self.title, wanted, f"{number(value)}{ratio}{spread}", met)

    def _amount(self, samples: Samples) -> tuple[float, str]:
        series = samples.series[self.metric, self.subject]
        return series.figure(self.figure), f" {series.unit}"

    def _ratio(self, samples: Samples) -> tuple[float, str]:
        figure = self.over_figure or self.figure
        base_metric = self.over_metric or self.metric
        found = [
            (samples.series[base_metric, name].figure(figure), name)
            for name in self.over
            if (base_metric, name) in samples.series
        ]
        higher_is_better = self.least is not None and not self.faster
        base, best = max(found) if higher_is_better else min(found)
        value = samples.series[self.metric, self.subject].figure(self.figure)
        times = base / value if self.faster else value / base
        if base_metric != self.metric:
            return times, ""
        _, low, high = samples.ratio(self.metric, (self.subject, self.figure), (best, figure))
        if self.faster:
            low, high = 1 / high, 1 / low
        beside = f"; {best}" if len(self.over) > 1 else ""
        return times, f" (rounds {number(low)} to {number(high)}{beside})"


def goals(sizes: Sizes) -> list[Goal]:
    """Return the targets at the sizes of a run."""
    create, trip = "create to first reply", "round trip of 1+1"
    # the incumbents do not all come to the last number
    few, count = sizes.populations[0], sizes.populations[-1]
    burst = f"{sizes.bursts[-1]} creates at once, failed"
    idle, memory = f"{count} idle kernels: CPU", f"memory of one of {few} kernels (PSS)"
    costs = f"one of {count} kernels costs"
    quiet, flood = "others' round trip, quiet", "others' round trip, beside a flood"
    back = f"{sizes.restarted} kernels serving after a restart: from its start"
    warm, gateway = f"{OURS}, warm", f"{OURS} gateway"
    v1 = f"{OURS}, v1"
    return [
        Goal("Warm create to first reply, p50", create, warm, "p50", most=15),
        Goal(
            "Warm create against the best incumbent's",
            create,
            warm,
            "p50",
            least=25,
            over=INCUMBENTS,
            faster=True,
        ),
        Goal(f"Failures of {sizes.bursts[-1]} creates at once", burst, OURS, "max", most=0),
        Goal(
            "Cold create in a cell against the best incumbent's",
            create,
            OURS,
            "p50",
            most=1,
            over=INCUMBENTS,
        ),
        Goal(
            "Cold create in a cell against raw without one", create, OURS, "p50", most=1.15, over=("raw ZMQ",)
        ),
        Goal("Round trip by v1 against raw ZMQ to the same kernel, p50", trip, v1, "p50", 1.25, over=(RAW,)),
        Goal("Round trip by v1 against raw ZMQ to the same kernel, p99", trip, v1, "p99", 2, over=(RAW,)),
        Goal(
            "Round trip by v1 against kernel_gateway's, p50",
            trip,
            v1,
            "p50",
            least=10,
            over=("kernel_gateway, v1",),
            faster=True,
        ),
        Goal(
            "Displays by v1 against jupyter_server's",
            "displays",
            v1,
            "p50",
            least=3,
            over=("jupyter_server, v1",),
        ),
        Goal("Displays by v1", "displays", v1, "p50", least=10_000),
        Goal(f"CPU of the gateway with {count} idle kernels", idle, gateway, "p50", most=2),
        Goal("Memory of the gateway per kernel", f"{costs}: MB", gateway, "p50", most=0.3),
        Goal("Descriptors of the gateway per kernel", f"{costs}: descriptors", gateway, "p50", most=12),
        Goal("Threads of the gateway per kernel", f"{costs}: threads", gateway, "p50", most=0.05),
        Goal(
            "Others' p99 beside a flood against p99 when quiet",
            flood,
            OURS,
            "p99",
            most=2,
            over=(OURS,),
            over_metric=quiet,
        ),
        Goal(
            "Others' p99 beside a client that does not read",
            f"{flood} that its client does not read",
            OURS,
            "p99",
            most=2,
            over=(OURS,),
            over_metric=quiet,
        ),
        Goal(
            "Memory per idle kernel against the best incumbent's",
            memory,
            OURS,
            "p50",
            most=0.75,
            over=INCUMBENTS,
        ),
        Goal(f"Restart with {sizes.restarted} kernels: all adopted and serving", back, OURS, "p50", most=2),
    ]


def number(value: float) -> str:
    """Return a figure with three digits that count."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"
