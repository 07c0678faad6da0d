"""A result as pictures: bars with their quartiles, one picture for each group of metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

from benchmarks.goals import number

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.samples import Samples

# Each picture's parts: how the metric's name begins, and how it is drawn.
PICTURES = {
    "starts": (("create to first reply", "p50"), ("creates at once, each", "p50"), ("one-shot", "p50")),
    "trips": (("round trip of 1+1", "p50"), ("round trip of 1+1", "p99")),
    "output": (
        ("displays", "p50"),
        ("text in small flushes", "p50"),
        ("text in one write", "p50"),
        ("binary comm", "p50"),
    ),
    "population": (
        ("a cell a second", "p50"),
        ("a cell a second", "p99"),
        (": CPU", "p50"),
        ("memory of", "p50"),
    ),
    "neighbours": (("others' round trip", "p99"),),
    "files": (("upload", "p50"), ("download", "p50")),
}
COLOURS = {"cellblock": "#1f6f8b", "kernel_gateway": "#c8553d", "jupyter_server": "#e09f3e"}
FLOOR = "#8d99ae"


def draw(samples: Samples, directory: Path, stem: str, title: str) -> list[Path]:
    """Draw every picture that there are values for, and return the files."""
    plt.switch_backend("Agg")  # no display is needed
    files = []
    for name, parts in PICTURES.items():
        panels = [
            (metric, figure)
            for mark, figure in parts
            for metric in samples.metrics()
            if mark in metric and not metric.endswith((": rate", "failed"))
        ]
        if not panels:
            continue
        sizes = [len(samples.subjects(metric)) for metric, _ in panels]
        figure, axes = plt.subplots(
            len(panels),
            1,
            figsize=(9, 0.9 * len(panels) + 0.34 * sum(sizes)),
            squeeze=False,
            gridspec_kw={"height_ratios": sizes},
            layout="constrained",
        )
        for axis, (metric, quantile) in zip(axes[:, 0], panels, strict=True):
            _bars(axis, samples, metric, quantile)
        figure.suptitle(title, fontsize=9)
        files.append(directory / f"{stem}-{name}.png")
        figure.savefig(files[-1], dpi=110)
        plt.close(figure)
    return files


def _bars(axis: Axes, samples: Samples, metric: str, quantile: str) -> None:
    subjects = sorted(
        samples.subjects(metric), key=lambda name: samples.series[metric, name].figure(quantile), reverse=True
    )
    series = [samples.series[metric, subject] for subject in subjects]
    values = [each.figure(quantile) for each in series]
    spread = None
    if quantile == "p50":
        low = [max(0.0, v - each.figure("p25")) for v, each in zip(values, series, strict=True)]
        high = [max(0.0, each.figure("p75") - v) for v, each in zip(values, series, strict=True)]
        spread = [low, high]
    colours = [_colour(subject) for subject in subjects]
    bars = axis.barh(subjects, values, xerr=spread, color=colours, ecolor="#333333", capsize=2)
    axis.bar_label(bars, [f" {number(value)}" for value in values], fontsize=7, label_type="edge")
    unit = series[0].unit
    better = "more" if unit.endswith("per s") else "less"
    axis.set_title(f"{metric}, {quantile} ({unit}; {better} is better)", fontsize=9, loc="left")
    axis.tick_params(labelsize=8)
    axis.margins(x=0.12)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _colour(subject: str) -> str:
    if subject.startswith("raw"):
        return FLOOR
    return next((colour for name, colour in COLOURS.items() if subject.startswith(name)), FLOOR)
