"""A bench as tables on a terminal."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.table import Table
from rich.text import Text

from effcli.safe import safe
from effcli.ui.tables import plain_table
from effcli.units import count, estimate, flops, interval, verdict

Document = Mapping[str, Any]
_COSTS = ("flops", "tokens", "seconds")
_MEAN = {"low": None, "high": None}


def bench_tables(document: Document) -> list[Table]:
    """What each arm saves, what it reached at every budget, and what failed."""
    made = [_gains(document), _losses(document), _tuning(document), _failed(document)]
    return [table for table in made if table.row_count]


def _gains(document: Document) -> Table:
    """Of FLOPs with intervals; the whole of the other costs is on the page."""
    state = "" if document["status"] == "complete" else " (partial)"
    title = f"{document['title']}{state}: times less to the same loss"
    table = plain_table(title, "arm", "against", "FLOPs", "verdict", "tokens", "seconds")
    for column in table.columns[:2]:
        column.justify, column.overflow, column.no_wrap = "left", "fold", False
    found = {(row["arm"], row["reference"], row["cost"]): row for row in _largest(document)}
    for arm in document["arms"]:
        name = arm["name"]
        against = list(dict.fromkeys(key[1] for key in found if key[0] == name))
        if not against:
            table.add_row(_text(name), "-", "-", "not compared", "-", "-")
        for number, reference in enumerate(against):
            spent, *others = (found.get((name, reference, cost)) for cost in _COSTS)
            shown = ("-", "-") if spent is None else (interval(spent), verdict(spent))
            rest = ["-" if row is None else interval({**row, **_MEAN}) for row in others]
            arm_shown = _text(name if number == 0 else "")
            table.add_row(arm_shown, _text(reference), *map(_text, shown), *rest)
    return table


def _losses(document: Document) -> Table:
    spent = ("FLOPs", "tokens", "seconds")
    table = plain_table("losses", "arm", "budget", "n", "loss", "bits/byte", *spent)
    for arm in document["arms"]:
        shares = {cell["share"] for cell in document["cells"] if cell["arm"] == arm["name"]}
        for share in sorted(shares):
            cells = _complete(document, arm["name"], share)
            loss = estimate([cell["loss"] for cell in cells])
            figures = ["-"] * 4
            if cells:
                bits, work, tokens, seconds = (
                    fmean(cell[name] for cell in cells) for name in ("bits_per_byte", *_COSTS)
                )
                figures = [f"{bits:.4f}", flops(work), count(tokens), f"{seconds:.1f}"]
            table.add_row(_text(arm["name"]), f"{share:.0%}", str(len(cells)), loss, *figures)
    return table


def _tuning(document: Document) -> Table:
    """Empty where nothing was tuned."""
    table = plain_table("tuning, in no other figure", "arm", "trials", "FLOPs", "chosen")
    arms = document["arms"]
    for arm in arms if any(arm["tuning"] for arm in arms) else []:
        spent = arm["tuning"] or {"trials": 0, "flops": 0, "chosen": {}}
        chosen = ", ".join(f"{name} {value:.4g}" for name, value in spent["chosen"].items())
        figures = (str(spent["trials"]), flops(spent["flops"]))
        table.add_row(_text(arm["name"]), *figures, _text(chosen or "-"))
    return table


def _failed(document: Document) -> Table:
    table = plain_table("came to nothing", "arm", "budget", "seed", "status", "error")
    for cell in document["cells"]:
        if cell["status"] not in ("complete", "missing"):
            place = (f"{cell['share']:.0%}", str(cell["seed"]), _text(cell["status"]))
            table.add_row(_text(cell["arm"]), *place, _text(cell["error"] or ""))
    return table


def _largest(document: Document) -> Sequence[Mapping[str, Any]]:
    """Each arm's comparisons, the one at its largest budget last."""
    return sorted(document["multipliers"], key=lambda row: float(row["share"]))


def _complete(document: Document, arm: str, share: float) -> list[Mapping[str, Any]]:
    wanted = (arm, share, "complete")
    return [c for c in document["cells"] if (c["arm"], c["share"], c["status"]) == wanted]


def _text(foreign: str) -> Text:
    return Text(" ".join(safe(foreign).split()))
