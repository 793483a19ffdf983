"""`bench.html`: one file, no network, made from the document of a bench alone."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import jinja2
import numpy as np
from markupsafe import Markup

from effcli.engine.bench import plots
from effcli.engine.bench.plots import Band
from effcli.engine.bench.reading import (
    COSTS,
    Document,
    Row,
    complete,
    energy_sources,
    gains,
    headline,
    is_screen,
    names,
)
from effcli.engine.bench.tables import EVERY, bill
from effcli.engine.runs.files import write_text
from effcli.engine.runs.page import DAMAGED, TENTHS, render
from effcli.errors import InputError

_POINTS = 60  # of a curve


def write_bench(document: Document, page: Path) -> None:
    """Draw a bench, whole or not at all; a document that makes no sense is an `InputError`."""
    try:
        content = render(
            "bench.html",
            document=document,
            headline=headline(document),
            is_screen=is_screen(document),
            forest=_forest(document),
            curves=_curves(document),
            tails=_tails(document),
            bills=_bills(document),
            tables=[table for table in (make(document) for make in EVERY) if table.rows],
        )
    except (*DAMAGED, IndexError, jinja2.TemplateError) as error:
        raise InputError(f"this is no document of a bench: {error}") from error
    write_text(page, content)


def _forest(document: Document) -> Markup | None:
    order, panels = names(document), dict[str, list[Row]]()
    rows = [row for row in gains(document, "flops") if row["mean"] is not None]
    for row in sorted(rows, key=lambda row: order.index(row["reference"])):
        panels.setdefault(row["reference"], []).append(row)
    if not panels:
        return None
    return Markup(plots.forest("times fewer FLOPs to the same held-out loss", panels, order))


def _curves(document: Document) -> list[Markup]:
    source = energy_sources(document) or "not measured"
    drawn = []
    for column, cost in enumerate(("tokens", "flops", "seconds", "joules")):
        label = f"joules ({source})" if cost == "joules" else COSTS[cost]
        arms = {name: _band(document, name, cost, column) for name in names(document)}
        if any(band.ends for band in arms.values()):
            drawn.append(Markup(plots.bands(label, arms)))
    return drawn


def _band(document: Document, arm: str, cost: str, column: int) -> Band:
    """The looks of all seeds, read at common costs; and where the cells of all budgets ended."""
    cells = [c for c in document["cells"] if c["arm"] == arm and c["status"] == "complete"]
    ends = [(float(c[cost]), float(c["loss"])) for c in cells if c.get(cost)]
    curves = [_curve(cell, column) for cell in cells]
    curves = [curve for curve in curves if len(curve) > 1]
    if not curves:
        return Band((), (), (), (), ends)
    start, stop = max(c[0][0] for c in curves), min(c[-1][0] for c in curves)
    shared = np.linspace(start, stop, _POINTS)
    read = [np.interp(shared, [c for c, _ in curve], [y for _, y in curve]) for curve in curves]
    mean, low, high = (f(read, axis=0).tolist() for f in (np.mean, np.min, np.max))
    return Band(np.exp(shared).tolist(), mean, low, high, sorted(ends, reverse=True))


def _curve(cell: Row, column: int) -> list[tuple[float, float]]:
    """Logarithm of the cost, and loss, at every look after the first step."""
    looks = [(look[column], look[4]) for look in cell.get("curve") or () if look[0]]
    return [(math.log(cost), float(loss)) for cost, loss in looks if cost]


def _tails(document: Document) -> Markup | None:
    arms = {}
    for name in names(document):
        tails = [cell["tail"] for cell in complete(document, name) if cell.get("tail")]
        if tails:
            arms[name] = _means(tails)
    return Markup(plots.tenths(TENTHS, arms, names(document))) if arms else None


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(column) for column in zip(*rows, strict=True)]


def _bills(document: Document) -> list[Markup]:
    drawn = []
    for unit, label in (("flops", "FLOPs"), ("seconds", "seconds")):
        bills = {name: bill(document, name, unit) for name in names(document)}
        if any(bills.values()):
            drawn.append(Markup(plots.stacks(label, bills)))
    return drawn
