"""What happened at every step, as a table that other programs read."""

import csv
import io
from pathlib import Path

from effcli.engine.runs.files import write_text
from effcli.engine.runs.rundir import RunDir

FILE = "metrics.csv"
COLUMNS = ("index", "progress", "loss", "lr", "grad_norm", "tokens", "flops", "seconds")
MORE = ("multiplier", "radius", "held_out_loss")


def write_metrics(folder: Path) -> Path:
    """A row for each step: its record, the decision in force, the held-out loss where known."""
    rows: list[dict[str, object]] = []
    multiplier = radius = 1.0
    for record in RunDir(folder).records():
        if record["kind"] == "step":
            known = {name: record[name] for name in COLUMNS}
            rows.append({**known, "multiplier": multiplier, "radius": radius})
        elif record["kind"] == "decision":
            chosen = record["chosen"]
            multiplier, radius = record["multipliers"][chosen], record["radii"][chosen]
        elif record["kind"] == "evaluation" and rows:
            rows[-1]["held_out_loss"] = record["loss"]
    text = io.StringIO()
    writer = csv.DictWriter(text, (*COLUMNS, *MORE), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / FILE, text.getvalue())
    return folder / FILE
