"""Plots as SVG text, for pages that need no network."""

import io
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from effcli.safe import safe

Series = Sequence[tuple[float, float]]
COLORS = ("#1f6feb", "#d1495b", "#2e933c", "#8e5ea2", "#e08e1b", "#444444", "#00798c", "#a05a2c")
_MOST_POINTS = 800
_LONGEST_NAME = 40
_LINE = 0.052  # height of a label, as a share of the axes
# Names of runs are text: a dollar in one begins no formula, whatever the user's settings say.
PLAIN = {"text.parse_math": False, "text.usetex": False, "svg.fonttype": "path"}


def svg(figure: Figure) -> str:
    """A drawn figure as text for a page."""
    stream = io.StringIO()
    metadata: Any = {"Date": None, "Creator": None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name may have letters that the font lacks
        figure.savefig(stream, format="svg", bbox_inches="tight", metadata=metadata)
    text = stream.getvalue()
    return text[text.index("<svg") :]


def figure(x: str, y: str) -> tuple[Figure, Any]:
    """An empty figure and its axes, labeled."""
    drawn = Figure(figsize=(5.4, 3.4))
    axes = drawn.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    return drawn, axes


def by_factors(axes: Any) -> None:
    """Make the horizontal axis logarithmic."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _thin(points: Series) -> Series:
    """Means of neighbors, so that long runs do not make heavy pages."""
    size = -(-len(points) // _MOST_POINTS)
    if size <= 1:
        return points
    groups = (points[start : start + size] for start in range(0, len(points), size))
    return [(g[-1][0], sum(y for _, y in g) / len(g)) for g in groups]


@matplotlib.rc_context(PLAIN)
def curves(
    x: str,
    y: str,
    lines: Mapping[str, Series],
    levels: Mapping[str, float],
    *,
    marks: Mapping[str, float] = MappingProxyType({}),
    log_x: bool = False,
) -> str:
    """Lines, dashed horizontal levels to judge them by, and dotted vertical marks.

    Where there are many lines (`log_x`), each has its name at its end instead of in a legend.
    """
    drawn, axes = figure(x, y)
    ends: list[tuple[str, float, str]] = []
    for number, (name, points) in enumerate(lines.items()):
        points = [p for p in _thin(points) if not log_x or p[0] > 0]
        is_dense, color = len(points) > 60, COLORS[number % len(COLORS)]
        axes.plot(
            [p[0] for p in points],
            [p[1] for p in points],
            label=name,
            color=color,
            linewidth=0.8 if is_dense else 1.8,
            alpha=0.6 if is_dense else 1.0,
            marker=None if is_dense else "o",
            markersize=3,
        )
        if log_x and points:
            ends.append((name, points[-1][1], color))
    for name, level in levels.items():
        axes.axhline(level, linestyle="--", linewidth=1, color="#888888")
        ends.append((name, level, "#666666"))
    for name, place in marks.items():
        axes.axvline(place, linestyle=":", linewidth=1, color="#888888")
        style = {"fontsize": 8, "color": "#666666", "va": "top", "rotation": 90}
        axes.text(place, 0.98, f" {short(name)}", transform=axes.get_xaxis_transform(), **style)
    if log_x:
        by_factors(axes)
    elif len(lines) > 1:
        axes.legend(fontsize=8, frameon=False)
    name_ends(axes, ends)
    return svg(drawn)


def name_ends(axes: Any, ends: Sequence[tuple[str, float, str]]) -> None:
    """Write names to the right of what they belong to, none over another."""
    low, high = axes.get_ylim()
    wanted = [(level - low) / (high - low) for _, level, _ in ends]
    for (name, _, color), place in zip(ends, apart(wanted, _LINE), strict=True):
        style = {"transform": axes.transAxes, "fontsize": 8, "va": "center", "color": color}
        axes.text(1.01, place, short(name), **style)


def short(name: str, longest: int = _LONGEST_NAME) -> str:
    """A name in one line that fits beside a plot."""
    shown = " ".join(safe(name).split())
    half = longest // 2
    return shown if len(shown) <= longest else f"{shown[:half]}…{shown[-half:]}"


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """The places nearest to the wanted ones, in their order, no two of them closer than `gap`."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[tuple[float, int]] = []  # where each begins, and how many are in it
    for index in order:
        start, size = wanted[index], 1
        while blocks and blocks[-1][0] + gap * blocks[-1][1] > start:
            before, more = blocks.pop()
            start = (before * more + (start - gap * more) * size) / (more + size)
            size += more
        blocks.append((start, size))
    places = [start + gap * number for start, size in blocks for number in range(size)]
    return [place for _, place in sorted(zip(order, places, strict=True))]


@matplotlib.rc_context(PLAIN)
def levels(amounts: Mapping[str, float], marks: Mapping[str, float]) -> str:
    """Bars of what is in 0..1; a mark is the least that can be."""
    drawn = Figure(figsize=(5.4, 0.4 * len(amounts) + 0.7))
    axes = drawn.subplots()
    axes.barh(range(len(amounts)), list(amounts.values()), 0.65, color=COLORS[0])
    for place, (name, amount) in enumerate(amounts.items()):
        axes.text(amount + 0.01, place, f"{amount:.3f}", fontsize=8, va="center")
        if name in marks:
            axes.plot([marks[name]] * 2, [place - 0.4, place + 0.4], color=COLORS[1])
    axes.set_yticks(range(len(amounts)), list(amounts))
    axes.set_ylim(len(amounts) - 0.4, -0.6)
    axes.set_xlim(0, 1.08)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return svg(drawn)


@matplotlib.rc_context(PLAIN)
def bars(x: str, amounts: Mapping[str, float]) -> str:
    """One stacked bar: what a total is made of."""
    drawn = Figure(figsize=(5.4, 1.2))
    axes = drawn.subplots()
    left = 0.0
    for number, (name, amount) in enumerate(amounts.items()):
        color = COLORS[number % len(COLORS)]
        axes.barh([0], [amount], left=left, label=safe(name), color=color)
        left += amount
    axes.set_yticks([])
    axes.set_xlabel(x)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    return svg(drawn)
