"""Plots as SVG text, for pages that need no network."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

Series = Sequence[tuple[float, float]]
COLORS = ("#1f6feb", "#d1495b", "#2e933c", "#8e5ea2", "#e08e1b", "#444444", "#00798c", "#a05a2c")
_MOST_POINTS = 800


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    metadata: Any = {"Date": None, "Creator": None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name may have letters that the font lacks
        figure.savefig(stream, format="svg", bbox_inches="tight", metadata=metadata)
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _figure(x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.4, 3.4))
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _thin(points: Series) -> Series:
    """Means of neighbors, so that long runs do not make heavy pages."""
    size = -(-len(points) // _MOST_POINTS)
    if size <= 1:
        return points
    groups = (points[start : start + size] for start in range(0, len(points), size))
    return [(g[-1][0], sum(y for _, y in g) / len(g)) for g in groups]


def curves(
    x: str, y: str, lines: Mapping[str, Series], levels: Mapping[str, float], *, log_x: bool = False
) -> str:
    """Lines, and dashed horizontal levels to judge them by."""
    figure, axes = _figure(x, y)
    for number, (name, points) in enumerate(lines.items()):
        points = [p for p in _thin(points) if not log_x or p[0] > 0]
        is_dense = len(points) > 60
        axes.plot(
            [p[0] for p in points],
            [p[1] for p in points],
            label=name,
            color=COLORS[number % len(COLORS)],
            linewidth=0.8 if is_dense else 1.8,
            alpha=0.6 if is_dense else 1.0,
            marker=None if is_dense else "o",
            markersize=3,
        )
    for number, (name, level) in enumerate(levels.items()):
        axes.axhline(level, linestyle="--", linewidth=1, color="#888888")
        axes.annotate(
            name,
            (1, level),
            xycoords=("axes fraction", "data"),
            fontsize=7,
            ha="right",
            va="bottom" if number % 2 else "top",
            color="#666666",
        )
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if len(lines) > 1:
        axes.legend(fontsize=8, frameon=False)
    return _svg(figure)


def bars(x: str, amounts: Mapping[str, float]) -> str:
    """One stacked bar: what a total is made of."""
    figure = Figure(figsize=(5.4, 1.2))
    axes = figure.subplots()
    left = 0.0
    for number, (name, amount) in enumerate(amounts.items()):
        axes.barh([0], [amount], left=left, label=name, color=COLORS[number % len(COLORS)])
        left += amount
    axes.set_yticks([])
    axes.set_xlabel(x)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    return _svg(figure)
