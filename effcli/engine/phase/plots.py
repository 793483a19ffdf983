"""The plots of an inspected phase model, as SVG text."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import EngFormatter, NullFormatter

from effcli.engine.phase.inspecting import KINDS, Map, Portrait
from effcli.engine.runs.plots import COLORS, PLAIN, Series, figure, short, svg

_LONGEST_TOKEN = 10
_VISIBLE = {" ": "␣", "\n": "⏎", "\t": "⇥"}
_CLIPPED = 0.98  # quantile of the weights that has the full color
_SHADES = 16  # of each color
_SIDE = 6.0  # inches of a map
_SQUARE = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])


@matplotlib.rc_context(PLAIN)
def portrait(found: Portrait) -> str:
    """Tokens as points, colored by their kind."""
    drawn = Figure(figsize=(5.4, 4.4))
    axes = drawn.subplots()
    places, kinds = found.places.cpu().numpy(), np.array(found.kinds)
    for name, color in zip(KINDS, COLORS, strict=False):
        of_it = places[kinds == name]
        if len(of_it):
            axes.scatter(of_it[:, 0], of_it[:, 1], s=9, color=color, alpha=0.6, label=name)
    axes.set_xlabel(f"main components of phasors, {found.explained:.0%} of the variance")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    style = {"fontsize": 8, "frameon": False, "ncols": 3, "loc": "lower left"}
    axes.legend(bbox_to_anchor=(0, 1), **style)
    return svg(drawn)


@matplotlib.rc_context(PLAIN)
def heat(found: Map, names: Sequence[str]) -> str:
    """What each position (rows) reads of each (columns): red adds up, blue cancels.

    Cells are paths, one for each shade: a page without a network shows no pictures.
    """
    weights, time = found.weights.cpu().numpy(), len(names)
    top = float(np.quantile(np.abs(weights[np.tril_indices(time)]), _CLIPPED)) or 1.0
    shades = np.rint(_SHADES * np.clip(weights / top, -1, 1)).astype(int)
    drawn = Figure(figsize=(_SIDE, _SIDE))
    axes = drawn.subplots()
    for shade in np.unique(shades[shades != 0]):
        corners = np.argwhere(shades == shade)[:, ::-1]
        cells = Path.make_compound_path_from_polys(corners[:, None] + _SQUARE)
        color = matplotlib.colormaps["RdBu_r"]((shade / _SHADES + 1) / 2)
        axes.add_patch(PathPatch(cells, facecolor=color, linewidth=0))
    axes.set_xlim(0, time)
    axes.set_ylim(time, 0)
    shown = [token_name(name) for name in names]
    size = min(8.0, 0.75 * 72 * _SIDE * 0.77 / time)
    axes.set_xticks(np.arange(time) + 0.5, shown, rotation=90, fontsize=size)
    axes.set_yticks(np.arange(time) + 0.5, shown, fontsize=size)
    axes.tick_params(length=0)
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(False)
    share = f"{found.positive:.0%} positive, {1 - found.positive:.0%} negative"
    axes.set_title(f"layer {found.layer}, head {found.head}: {share}", fontsize=10, loc="left")
    return svg(drawn)


@matplotlib.rc_context(PLAIN)
def half_lives(lines: Mapping[str, Series]) -> str:
    """How long memories keep what they read, a line for each layer."""
    drawn, axes = figure("half-life on text, tokens", "share of positions")
    for number, (name, points) in enumerate(lines.items()):
        color = COLORS[number % len(COLORS)]
        axes.step(*zip(*points, strict=True), where="mid", color=color, label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=8, frameon=False, ncols=-(-len(lines) // 8))
    return svg(drawn)


@matplotlib.rc_context(PLAIN)
def turns(rows: Sequence[Mapping[str, Any]]) -> str:
    """How far phases turn, for each layer: the median, half of all, and 90 % of all."""
    drawn, axes = figure("layer", "turn from token to token, radians")
    names = {"med": "p50", "q1": "p25", "q3": "p75", "whislo": "p5", "whishi": "p95"}
    boxes = [{key: row[name] for key, name in names.items()} for row in rows]
    style = {"patch_artist": True, "boxprops": {"facecolor": COLORS[0], "alpha": 0.5}}
    axes.bxp(boxes, positions=range(len(rows)), showfliers=False, **style)
    axes.set_xticks(range(len(rows)), [str(row["layer"]) for row in rows])
    return svg(drawn)


def token_name(name: str) -> str:
    """A token as a label: in one short line, and never empty."""
    return short("".join(_VISIBLE.get(c, c) for c in name), _LONGEST_TOKEN) or "·"
