"""The tables of a suite of throughputs: on its page and as Markdown."""

from pathlib import Path
from typing import Any

import jinja2

from effcli.engine.bench.reading import Document
from effcli.engine.bench.table import Table, escaped
from effcli.engine.runs.files import write_json, write_text
from effcli.engine.runs.page import DAMAGED, render
from effcli.errors import InputError
from effcli.safe import safe
from effcli.settings.speed import REFERENCE
from effcli.units import size

PAGE = "bench.html"
NAMES = {REFERENCE: "plain script"}
_TEXTS = frozenset({"shape", "arm", "way", "part", "error"})


def tables(document: Document) -> list[Table]:
    """What there is of training, preparing and failing."""
    rows = [[row["part"], row["error"] or ""] for row in document["failed"]]
    failed = Table("Came to nothing", ("part", "error"), rows, "", _TEXTS)
    return [table for table in (_steps(document), _text(document), failed) if table.rows]


def _steps(document: Document) -> Table:
    rows = []
    for name, shape in document["shapes"].items():
        for arm, row in shape["rows"].items():
            low, high = row["spread"]
            ratio = f"{row['times_reference']:.2f} [{low:.2f}, {high:.2f}]"
            speed = (f"{row['tokens_per_second']:,.0f}", ratio, f"{row['utilization']:.0%}")
            start = f"{row['first_step_seconds']:.1f} s"
            rows.append([name, NAMES.get(arm, arm), *speed, start, size(row["memory_bytes"])])
    head = ("shape", "arm", "tokens/s", "× plain script", "of the peak", "first step", "memory")
    return Table("Steps", head, rows, _about(document), _TEXTS)


def _text(document: Document) -> Table:
    rows, about, base = [], "", ""
    if (found := document["prepare"]) is not None:
        about = f"{size(found['bytes'])} of JSON lines, {found['documents']:,} documents."
        seconds = found["seconds"]
        for way, taken in seconds.items():
            base = base if way.startswith("eff") else way
            ratio = f"{seconds[base] / taken:.2f} × {base}" if way != base else "1"
            rows.append([way, f"{found['bytes'] / 1e6 / taken:,.0f}", ratio])
    return Table("Preparing text", ("way", "MB/s", "ratio"), rows, about, _TEXTS)


def _about(document: Document) -> str:
    shapes = document["shapes"].items()
    peaks = (f"{name} {s['peak'] / 1e12:.3g} ({s['precision']})" for name, s in shapes)
    return (
        "Medians over rounds, with the lowest and the highest; the peak is what a large product "
        f"reached in the same rounds, in TFLOP/s: {', '.join(peaks)}."
    )


def markdown(document: Document) -> str:
    """Every table, with titles, notes and how it is done again."""
    parts = [f"### {escaped(document['title'])}", escaped(document["about"])]
    for table in tables(document):
        parts += [f"#### {table.title}", escaped(table.about), table.as_markdown()]
    parts += [f"- {escaped(note)}" for note in document["notes"]]
    line = " ".join(safe(document["manifest"]["line"]).split()).replace("`", "'")
    return "\n\n".join(part for part in (*parts, f"`{line}`") if part)


def write_rates(document: dict[str, Any], folder: Path) -> Path:
    """Write bench.json, bench.md and bench.html; returns the last."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        page = render("speed.html", document=document, tables=tables(document))
        text = markdown(document)
    except (*DAMAGED, jinja2.TemplateError) as error:
        raise InputError(f"this is no document of a bench: {error}") from error
    write_json(folder / "bench.json", document)
    write_text(folder / "bench.md", text + "\n")
    write_text(folder / PAGE, page)
    return folder / PAGE
