"""A result as Markdown: the targets, and every metric with all its subjects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.goals import goals, number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from benchmarks.samples import Samples
    from benchmarks.sizes import Sizes

MET = {True: "met", False: "missed", None: "-"}
FEW = 4  # below so many values, percentiles say nothing that the values do not


def goal_table(samples: Samples, sizes: Sizes) -> str:
    """Return the targets, each met or missed."""
    verdicts = (goal.judge(samples) for goal in goals(sizes))
    rows = [(v.title, v.wanted, v.measured, MET[v.met]) for v in verdicts]
    return _table(("target", "wanted", "measured", ""), rows)


def figure_tables(samples: Samples) -> str:
    """Return a table of every metric that many values stand behind, and one of all the others."""
    tables, single = [], []
    for metric in samples.metrics():
        series = {subject: samples.series[metric, subject] for subject in samples.subjects(metric)}
        unit = next(iter(series.values())).unit
        if max(len(each.values()) for each in series.values()) < FEW:
            for subject, each in series.items():
                values = each.values()
                spread = f"{number(values[0])} to {number(values[-1])}" if len(values) > 1 else ""
                single.append((metric, subject, f"{number(each.figure('p50'))} {unit}", spread))
            continue
        rows = [
            (
                subject,
                *(number(each.figure(name)) for name in ("p50", "p25", "p75", "p95", "p99")),
                len(each.values()),
            )
            for subject, each in sorted(series.items(), key=lambda item: item[1].figure("p50"))
        ]
        heads = (f"{metric} ({unit})", "p50", "p25", "p75", "p95", "p99", "n")
        tables.append(_table(heads, rows))
    if single:
        tables.append(_table(("metric", "subject", "median", "rounds"), single))
    return "\n\n".join(tables)


def machine_table(machine: Mapping[str, object]) -> str:
    """Return the machine's description."""
    return _table(("what", "is"), machine.items())


def failure_list(failures: Sequence[str]) -> str:
    """Return what failed, or that nothing did."""
    if not failures:
        return "Nothing failed, and every output was what it must be."
    return "\n".join(["Failed, and without a figure:", "", *(f"- {failure}" for failure in failures)])


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines)
