"""Run inside of Python kernels: shows figures and data frames as data, beside what IPython shows of them.

Nothing of the gateway is imported here, nor matplotlib and pandas before the code itself does so. Whatever
cannot be told as data is left out; what is shown otherwise is never touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from IPython import get_ipython
from IPython.core.formatters import BaseFormatter
from traitlets import ObjectName, Unicode

# More than that is a picture's or a table's business.
MOST_POINTS, MOST_CELLS = 10_000, 50_000
UNIT = re.compile(r"[(\[]([^()\[\]]+)[)\]]\s*$")


class DataFormatter(BaseFormatter):  # type: ignore[misc]
    """A mime type whose value is an object, of what is of one class: by its name, as it may not be there yet.

    It is looked for at each call: matplotlib's backend takes back whatever formatters know of figures.
    """

    _return_type = dict
    classes: tuple[tuple[str, str], ...] = ()
    shows: Callable[[Any], dict[str, Any] | None]

    def __call__(self, obj: Any) -> dict[str, Any] | None:
        """Return what an object is, or None; showing something never fails for this."""
        names = {(kind.__module__, kind.__name__) for kind in type(obj).__mro__}
        if names.isdisjoint(self.classes):
            return None
        try:
            return type(self).shows(obj)
        except Exception:  # noqa: BLE001 - whatever somebody draws
            return None


def plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        # neither NaN nor infinity is JSON
        return value if value - value == 0 else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def frame(found: Any) -> dict[str, list[Any]] | None:
    """Return a data frame's columns."""
    if found.shape[0] * found.shape[1] > MOST_CELLS:
        return None
    return {str(name): [plain(value) for value in found.iloc[:, n]] for n, name in enumerate(found.columns)}


def figure(found: Any) -> dict[str, Any] | None:
    """Return what is drawn in a figure: one chart, or several of them."""
    charts = [chart for axes in found.get_axes() if (chart := axes_chart(axes)) is not None]
    if len(charts) <= 1:
        return charts[0] if charts else None
    title = found.get_suptitle() if hasattr(found, "get_suptitle") else ""
    return {"type": "superchart", "title": title or None, "elements": charts}


def axes_chart(axes: Any) -> dict[str, Any] | None:
    """Return what is drawn in one pair of axes."""
    kinds = {type(drawn).__name__ for drawn in axes.get_children()}
    chart: dict[str, Any] = {"type": "unknown", "title": axes.get_title() or None, "elements": []}
    for name, label in (("x", axes.get_xlabel()), ("y", axes.get_ylabel())):
        unit = UNIT.search(label or "")
        chart |= {f"{name}_label": label or None, f"{name}_unit": unit[1] if unit else None}
    if "Wedge" in kinds:
        return chart | {"type": "pie", "elements": wedges(axes)}
    if axes.containers and all(type(held).__name__ == "BarContainer" for held in axes.containers):
        return chart | {"type": "bar", "elements": bars(axes)}
    if "PathCollection" in kinds:
        drawn = [(dots.get_label(), dots.get_offsets()) for dots in axes.collections]
        return points(chart | {"type": "scatter"}, axes, drawn)
    # what no legend has is a part of something: of a box and its whiskers, say
    if axes.lines and not axes.patches and "_nolegend_" not in {line.get_label() for line in axes.lines}:
        drawn = [
            (line.get_label(), zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.lines
        ]
        return points(chart | {"type": "line"}, axes, drawn)
    return chart


def points(chart: dict[str, Any], axes: Any, drawn: Iterable[tuple[str, Any]]) -> dict[str, Any] | None:
    """Add what lines and dots have: their points, and how the axes are divided."""
    elements, count = [], 0
    for label, found in drawn:
        listed = [[plain(x), plain(y)] for x, y in found]
        count += len(listed)
        if count > MOST_POINTS:
            return None
        elements.append({"label": str(label), "points": listed})
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        chart[f"{name}_ticks"] = [plain(tick) for tick in axis.get_ticklocs()]
        chart[f"{name}_tick_labels"] = [label.get_text() for label in axis.get_ticklabels()]
        dates = "Date" in type(axis.get_major_formatter()).__name__
        chart[f"{name}_scale"] = "datetime" if dates else axis.get_scale()
    return chart | {"elements": elements}


def bars(axes: Any) -> list[dict[str, Any]]:
    """Return bars, upright ones and lying ones, with the label under or beside each."""
    found = []
    for held in axes.containers:
        lying = getattr(held, "orientation", "vertical") == "horizontal"
        axis = axes.yaxis if lying else axes.xaxis
        texts = {
            plain(at): label.get_text()
            for at, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False)
        }
        for bar in held:
            middle = bar.get_y() + bar.get_height() / 2 if lying else bar.get_x() + bar.get_width() / 2
            found.append(
                {
                    "label": texts.get(plain(middle)) or str(round(float(middle), 6)),
                    "value": str(plain(bar.get_width() if lying else bar.get_height())),
                    "group": str(held.get_label()),
                }
            )
    return found[:MOST_POINTS]


def wedges(axes: Any) -> list[dict[str, Any]]:
    """Return the pieces of a pie, with angles in degrees."""
    return [
        {
            "label": str(patch.get_label()),
            "angle": round(abs(float(patch.theta2) - float(patch.theta1)), 4),
            "radius": float(patch.r),
        }
        for patch in axes.patches
        if type(patch).__name__ == "Wedge"
    ]


class FrameFormatter(DataFormatter):
    """Data frames by column."""

    format_type = Unicode("application/vnd.e2b.data+json")
    print_method = ObjectName("_repr_e2b_data_")
    # pandas says the first from version 3 on
    classes = (("pandas", "DataFrame"), ("pandas.core.frame", "DataFrame"))
    shows = staticmethod(frame)


class ChartFormatter(DataFormatter):
    """Figures by what is drawn in them."""

    format_type = Unicode("application/vnd.e2b.chart+json")
    print_method = ObjectName("_repr_e2b_chart_")
    classes = (("matplotlib.figure", "Figure"),)
    shows = staticmethod(figure)


def install() -> None:
    """Have IPython show both."""
    shell = get_ipython()
    if shell is not None:
        for kind in (FrameFormatter, ChartFormatter):
            formatter = kind(parent=shell.display_formatter)
            shell.display_formatter.formatters[str(formatter.format_type)] = formatter


install()
