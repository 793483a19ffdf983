"""A bench in other forms: Markdown for documents, rows of figures for spreadsheets."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from effcli.engine.bench.reading import Document, Row, headline, is_screen
from effcli.engine.bench.table import Table, escaped
from effcli.engine.bench.tables import EVERY, brief
from effcli.engine.runs.files import write_text
from effcli.safe import safe

_PLAIN = (
    *("id", "arm", "seed", "share", "status", "error", "steps", "tokens", "unique_tokens"),
    *("flops", "seconds", "joules", "energy_source", "loss", "bits_per_byte"),
    *("artifact_bytes", "peak_memory_bytes"),
)
_TENTHS = 10


def short_markdown(document: Document) -> str:
    """The result in one sentence, and one table: what fits on a front page."""
    about = (
        f"Nats per token and how many times less is spent to the same loss; seeds: "
        f"{len(document['protocol']['seeds'])}, intervals of 95 %."
    )
    return f"{escaped(headline(document))} {about}\n\n{brief(document).as_markdown()}"


def markdown(document: Document) -> str:
    """Every table, with titles, notes and how it is done again."""
    kind = "Screen: " if is_screen(document) else ""
    parts = [f"### {kind}{escaped(document['title'])}", escaped(headline(document))]
    for table in (make(document) for make in EVERY):
        parts += _section(table)
    parts += [f"- {escaped(note)}" for note in document["notes"]]
    line = " ".join(safe(document["manifest"]["line"]).split()).replace("`", "'")
    return "\n\n".join([*parts, f"`{line}`"])


def _section(table: Table) -> list[str]:
    if not table.rows:
        return []
    return [part for part in (f"#### {table.title}", table.about, table.as_markdown()) if part]


def csv_rows(document: Document) -> list[dict[str, Any]]:
    """One row for each cell, all with the same columns; what was not measured is empty."""
    cells = document["cells"]
    accounts = [
        f"{unit}.{name}" for unit in ("flops", "seconds") for name in _accounts(cells, unit)
    ]
    tenths = [f"tail.{number}" for number in range(1, _TENTHS + 1)]
    suite = {"suite": document["suite"], "tier": document["tier"]}
    rows = []
    for cell in cells:
        row = {**suite, **{name: cell.get(name) for name in _PLAIN}}
        row |= dict.fromkeys([*accounts, *tenths])
        for unit, bill in (cell.get("accounts") or {}).items():
            row |= {f"{unit}.{name}": amount for name, amount in bill.items()}
        row |= dict(zip(tenths, cell.get("tail") or (), strict=False))
        rows.append(row)
    return rows


def csv_text(document: Document) -> str:
    """`csv_rows` with a head. Text that a spreadsheet would take for a formula is quoted."""
    rows = csv_rows(document)
    names = list(dict.fromkeys(name for row in rows for name in row)) or list(_PLAIN)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_inert(name) for name in names)
    writer.writerows([_inert(row.get(name)) for name in names] for row in rows)
    return stream.getvalue()


def write_csv(document: Document, path: Path) -> None:
    """Write `csv_text` into a file, whole or not at all."""
    write_text(path, csv_text(document))


def _accounts(cells: Iterable[Row], unit: str) -> list[str]:
    bills = ((cell.get("accounts") or {}).get(unit) or {} for cell in cells)
    return list(dict.fromkeys(name for bill in bills for name in bill))


def _inert(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    shown = safe(value)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@", "\t")) else shown
