"""The plots of a bench, as SVG text. An arm has one color in all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from effcli import units
from effcli.engine.bench.reading import Row, is_gain
from effcli.engine.runs.plots import (
    COLORS,
    PLAIN,
    Series,
    by_factors,
    figure,
    name_ends,
    short,
    svg,
)

_LONGEST_ARM = 24
_ROW = 0.34  # inches for an arm
_ACCOUNTS = {  # muted, for these are no arms
    "train": "#5b7083",
    "select": "#c9a227",
    "teacher": "#9c6b98",
    "grow": "#6a994e",
    "meta": "#bc6c25",
    "eval": "#c3ccd5",
    "compile": "#e3d5ca",
}


@dataclass(frozen=True)
class Band:
    """What the seeds of an arm did: their mean, and the range they were in."""

    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    ends: Series
    """Cost and loss of every cell, each at the end of its own schedule."""


@matplotlib.rc_context(PLAIN)
def forest(x: str, panels: Mapping[str, Sequence[Row]], order: Sequence[str]) -> str:
    """Multipliers with their intervals, one panel for each reference; bounds are arrows.

    What a verdict of a gain holds for is filled, all else is hollow. `order` is that of all
    arms, for their colors.
    """
    heights = [len(rows) + 0.6 for rows in panels.values()]
    drawn = Figure(figsize=(6.6, _ROW * sum(heights) + 0.55 * len(panels) + 0.5))
    parts = drawn.subplots(len(panels), squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    low, high = _limits([row for rows in panels.values() for row in rows])
    for axes, (reference, rows) in zip(parts, panels.items(), strict=True):
        axes.axvspan(1, high, color="#2e933c", alpha=0.06, linewidth=0)
        _panel(axes, rows, order)
        axes.set_title(f"against {short(reference)}", fontsize=10, loc="left", color="#444444")
    last = parts[-1]
    last.set_xscale("log")
    last.set_xlim(low, high)
    subs = (1.0, 2.0, 5.0) if high / low > 6 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    last.xaxis.set_major_locator(LogLocator(subs=subs))
    last.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    last.xaxis.set_minor_formatter(NullFormatter())
    last.set_xlabel(x)
    drawn.subplots_adjust(hspace=0.55)
    return svg(drawn)


def _limits(rows: Sequence[Row]) -> tuple[float, float]:
    edges = [row[name] for row in rows for name in ("mean", "low", "high") if row[name]]
    low, high = min([1.0, *edges]), max([1.0, *edges])
    margin = max(1.25, (high / low) ** 0.12)
    return low / margin, high * margin


def _color(order: Sequence[str], arm: str) -> str:
    return COLORS[order.index(arm) % len(COLORS)]


def _panel(axes: Any, rows: Sequence[Row], order: Sequence[str]) -> None:
    axes.axvline(1, color="#888888", linewidth=1)
    for place, row in enumerate(rows):
        mean, color = row["mean"], _color(order, row["arm"])
        fill = color if is_gain(row) else "white"
        style = {"color": color, "markerfacecolor": fill, "markersize": 6, "linewidth": 1.6}
        if row.get("bound"):
            arrow = {"arrowstyle": "<|-", "color": color, "linewidth": 1.6, "shrinkB": 0}
            tip = (22 if row["bound"] == ">" else -22, 0)
            where = {"xytext": tip, "textcoords": "offset points", "arrowprops": arrow}
            axes.annotate("", xy=(mean, place), **where)
        elif row["low"] is not None:
            axes.plot([row["low"], row["high"]], [place, place], color=color, linewidth=1.8)
        axes.plot([mean], [place], marker="|" if row.get("bound") else "o", **style)
        shown = f"{units.interval(row)}  {units.verdict(row)}"
        where = axes.get_yaxis_transform()
        axes.text(1.02, place, shown, transform=where, fontsize=9, va="center", color="#333333")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [short(row["arm"], _LONGEST_ARM) for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)


@matplotlib.rc_context(PLAIN)
def bands(x: str, arms: Mapping[str, Band]) -> str:
    """Loss against a cost: the mean of the seeds in the range of the seeds, and where cells end."""
    drawn, axes = figure(x, "held-out loss, nats per token")
    ends: list[tuple[str, float, str]] = []
    levels: list[float] = []
    for number, (name, band) in enumerate(arms.items()):
        color = COLORS[number % len(COLORS)]
        axes.fill_between(band.x, band.low, band.high, color=color, alpha=0.2, linewidth=0)
        axes.plot(band.x, band.mean, color=color, linewidth=1.5)
        axes.plot(*_columns(band.ends), "o", color=color, markersize=3.5, alpha=0.7)
        known = [*band.mean[-1:], *(loss for _, loss in band.ends)]
        if known:
            ends.append((name, known[0], color))
            levels += [*known, *band.mean]
    by_factors(axes)
    if levels:  # what is learned in the first steps would flatten all that matters
        low, high = min(levels), max(levels)
        margin = 0.05 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)
    name_ends(axes, ends)
    return svg(drawn)


def _columns(points: Series) -> tuple[list[float], list[float]]:
    return [p[0] for p in points], [p[1] for p in points]


@matplotlib.rc_context(PLAIN)
def tenths(x: str, arms: Mapping[str, Sequence[float]], order: Sequence[str]) -> str:
    """Loss by how common the token is, a line for each arm; colors by the order of all arms."""
    drawn, axes = figure(x, "held-out loss, nats per token")
    ends = []
    for name, losses in arms.items():
        color, places = _color(order, name), range(1, len(losses) + 1)
        axes.plot(places, losses, color=color, marker="o", markersize=3, linewidth=1.5)
        ends.append((name, losses[-1], color))
    axes.set_xticks(range(1, 11))
    name_ends(axes, ends)
    return svg(drawn)


@matplotlib.rc_context(PLAIN)
def stacks(x: str, arms: Mapping[str, Mapping[str, float]]) -> str:
    """One stacked bar for each arm: what a total is made of."""
    accounts = list(dict.fromkeys(account for bill in arms.values() for account in bill))
    drawn = Figure(figsize=(5.4, _ROW * len(arms) + 0.7))
    axes = drawn.subplots()
    left = [0.0] * len(arms)
    for account in accounts:
        amounts = [bill.get(account, 0.0) for bill in arms.values()]
        style: Any = {"color": _ACCOUNTS.get(account, "#bbbbbb"), "label": _label(account)}
        axes.barh(range(len(arms)), amounts, 0.65, left=left, **style)
        left = [before + amount for before, amount in zip(left, amounts, strict=True)]
    axes.set_yticks(range(len(arms)), [short(name, _LONGEST_ARM) for name in arms])
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.set_xlabel(x)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if accounts:
        axes.legend(fontsize=8, frameon=False, ncols=6, loc="lower left", bbox_to_anchor=(0, 1))
    return svg(drawn)


def _label(text: str) -> str:
    """A name for a legend, which hides what begins with an underscore."""
    return short(text, _LONGEST_ARM).lstrip("_") or "-"
