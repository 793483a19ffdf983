"""Throughputs as tables on a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from effcli.safe import safe
from effcli.ui.tables import plain_table
from effcli.units import clock, size

Document = Mapping[str, Any]


def speed_tables(document: Document) -> list[Table]:
    """Training, preparing, and what failed."""
    made = [_steps(document), _prepare(document), _failed(document)]
    return [table for table in made if table.row_count]


def _steps(document: Document) -> Table:
    state = "" if document["status"] == "complete" else " (partial)"
    columns = ("shape", "arm", "tokens/s", "× plain script", "of the peak")
    table = plain_table(f"training{state}: steps beside a plain script's", *columns)
    table.columns[1].justify = "left"
    peaks = []
    for name, shape in document["shapes"].items():
        for arm, row in shape["rows"].items():
            low, high = row["spread"]
            is_first = arm == "reference"
            table.add_row(
                _text(name if is_first else ""),
                _text("plain script" if is_first else arm),
                f"{row['tokens_per_second']:,.0f}",
                f"{row['times_reference']:.2f} ({low:.2f}–{high:.2f})",
                f"{row['utilization']:.0%}",
            )
        peaks.append(f"{name} {shape['peak'] / 1e12:.3g} {shape['precision']}")
    table.caption = _text(f"TFLOP/s of a large product: {', '.join(peaks)}")
    table.caption.stylize("dim")
    table.caption_justify = "left"
    return table


def _prepare(document: Document) -> Table:
    found = document["prepare"]
    if found is None:
        return plain_table("", "way")
    about = f"{size(found['bytes'])} of JSON lines, {found['documents']:,} documents"
    table = plain_table(f"prepare: {about}", "way", "MB/s", "ratio")
    base, seconds = "", found["seconds"]
    for way, taken in seconds.items():
        base = base if way.startswith("eff") else way
        ratio = "1" if way == base else f"{seconds[base] / taken:.2f} × {base}"
        table.add_row(_text(way), f"{found['bytes'] / 1e6 / taken:,.0f}", _text(ratio))
    return table


def _failed(document: Document) -> Table:
    table = plain_table("came to nothing", "part", "error")
    error = table.columns[1]
    error.justify, error.overflow, error.no_wrap = "left", "fold", False
    for row in document["failed"]:
        table.add_row(_text(row["part"]), _text(row["error"] or ""))
    return table


def speed_plan(plan: Document) -> Table:
    """Every part, with the time it will take."""
    table = plain_table(f"{plan['suite']}, tier {plan['tier']}", "part", "time")
    for row in plan["parts"]:
        table.add_row(_text(row["part"]), "done" if row["is_done"] else clock(row["seconds"]))
    table.add_section()
    table.add_row(f"{len(plan['parts'])} parts", clock(plan["seconds"]))
    return table


def _text(foreign: str) -> Text:
    return Text(" ".join(safe(foreign).split()))
