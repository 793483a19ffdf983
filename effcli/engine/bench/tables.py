"""The tables of a bench: made once, shown on its page and as Markdown."""

from collections.abc import Callable, Sequence
from typing import Any

from effcli import units
from effcli.engine.bench.findings import choices, hybrids, students
from effcli.engine.bench.reading import (
    COSTS,
    Document,
    Row,
    complete,
    energy_sources,
    full_share,
    gains,
    names,
    shares,
)
from effcli.engine.bench.table import Table, mean


def summary(document: Document) -> Table:
    """Each arm's loss at the full budget, and what it saves against each reference."""
    costs = ("tokens", "flops", "seconds")
    found = {cost: {(r["arm"], r["reference"]): r for r in gains(document, cost)} for cost in costs}
    rows = []
    for arm in names(document):
        loss = units.estimate([cell["loss"] for cell in complete(document, arm)])
        against = list(
            dict.fromkeys(key[1] for cost in costs for key in found[cost] if key[0] == arm)
        )
        if not against:
            rows.append([arm, loss, "-", *["-"] * len(costs), "not compared"])
        for number, reference in enumerate(against):
            pair = [found[cost].get((arm, reference)) for cost in costs]
            shown = ["-" if row is None else units.interval(row) for row in pair]
            word = "-" if pair[1] is None else units.verdict(pair[1])
            rows.append([*([arm, loss] if number == 0 else ["", ""]), reference, *shown, word])
    head = ("arm", "held-out loss", "against", "× tokens", "× FLOPs", "× seconds", "in FLOPs")
    return Table("Summary", head, rows, "How many times less an arm spends to the same loss.")


def brief(document: Document) -> Table:
    """The summary for a front page: methods beside the last reference only, with what they are."""
    whole, about = summary(document), {arm["name"]: arm["about"] for arm in document["arms"]}
    methods = {arm["name"] for arm in document["arms"] if not arm["is_reference"]}
    last = document["protocol"]["references"][-1]
    rows, name, loss = [], "", ""
    for arm, one, against, *rest in whole.rows:
        name, loss = arm or name, one or loss
        if name not in methods:
            rows.append([arm, about[name] if arm else "", one, against, *rest])
        elif against in (last, "-"):
            rows.append([name, about[name], loss, against, *rest])
    return Table(whole.title, ("arm", "what it is", *whole.head[1:]), rows, whole.about)


def verdicts(document: Document) -> Table:
    """Every multiplier, those that are no gain included."""
    head = ("arm", "against", "cost", "verdict", "budget", "× less", "n", "p", "adjusted", "flips")
    rows = [
        [
            *(row["arm"], row["reference"], COSTS.get(row["cost"], row["cost"])),
            *(units.verdict(row), f"{row['share']:.0%}", units.interval(row), str(row["n"])),
            *_chances(row),
        ]
        for row in document["multipliers"]
    ]
    rows += _left_out(document, rows, len(head))
    about = (
        "Geometric means over seeds with 95 % intervals. > and < are bounds: beyond what the "
        "reference was measured at. p of a t-test, adjusted for all comparisons, and of sign flips."
    )
    return Table("All verdicts", head, rows, about)


def differences(document: Document) -> Table:
    """Loss minus the reference's, at equal cost."""
    head = (
        "arm",
        "against",
        "at equal",
        "verdict",
        "budget",
        "nats",
        "n",
        "p",
        "adjusted",
        "flips",
    )
    rows = [
        [
            *(row["arm"], row["reference"], COSTS.get(row["at"], row["at"])),
            *(units.verdict(row), f"{row['share']:.0%}", units.interval(row, 4), str(row["n"])),
            *_chances(row),
        ]
        for row in document["differences"]
    ]
    rows += _left_out(document, rows, len(head))
    about = "Held-out loss of an arm minus the reference's, nats per token: negative is lower."
    return Table("Loss at equal cost", head, rows, about)


def losses(document: Document) -> Table:
    """Every arm at every budget: means over the seeds that are complete."""
    source = energy_sources(document)
    figures = ("tokens", "unique_tokens", "flops", "seconds", "joules")
    shown = [COSTS[name] for name in figures[:-1]]
    joules = f"joules ({source})" if source else "joules"
    head = ("arm", "budget", "n", "held-out loss", "bits/byte", *shown, joules)
    rows = []
    for arm in names(document):
        for share in shares(document, arm):
            cells = complete(document, arm, share)
            loss = units.estimate([cell["loss"] for cell in cells])
            bits = mean(cells, "bits_per_byte", "{:.4f}".format)
            spent = [
                mean(cells, name, units.flops if name == "flops" else units.count)
                for name in figures
            ]
            rows.append([arm, f"{share:.0%}", str(len(cells)), loss, bits, *spent])
    about = "Nats per token: means over seeds with 95 % t-intervals."
    return Table("Losses", head, rows, about)


def ledger(document: Document) -> Table:
    """FLOPs of every account at the full budget, and what a model weighs."""
    bills = {arm: bill(document, arm, "flops") for arm in names(document)}
    accounts = list(dict.fromkeys(account for spent in bills.values() for account in spent))
    rows = []
    for arm in document["arms"]:
        spent = bills[arm["name"]]
        shown = [units.flops(spent[account]) if account in spent else "-" for account in accounts]
        cells = complete(document, arm["name"])
        weighs = (arm["parameters"], arm["artifact_bytes"])
        sizes = ("-", "-") if None in weighs else (f"{weighs[0]:,}", units.size(weighs[1]))
        rows.append([arm["name"], *shown, *sizes, mean(cells, "peak_memory_bytes", units.size)])
    head = ("arm", *(f"{account}, FLOPs" for account in accounts), "parameters", "file", "memory")
    return Table(
        "Ledger", head, rows, f"At {full_share(document):.0%} of the budget, means over seeds."
    )


def tuning(document: Document) -> Table:
    """What finding the settings took."""
    rows = []
    for arm in document["arms"]:
        if not (spent := arm["tuning"]):
            rows.append([arm["name"], "not tuned", "0", *["-"] * 4])
            continue
        chosen = ", ".join(f"{name}={value:.4g}" for name, value in spent["chosen"].items())
        figures = (units.count(spent["tokens"]), units.flops(spent["flops"]))
        failed = sum(loss is None for loss in spent["losses"])
        counts = (str(spent["trials"]), str(failed), *figures, units.count(spent["seconds"]))
        rows.append([arm["name"], chosen, *counts])
    head = ("arm", "chosen", "trials", "diverged", "tokens", "FLOPs", "seconds")
    return Table("Tuning", head, rows, "Billed apart: it is in no other figure of this page.")


def laws(document: Document) -> Table:
    """Loss as a function of cost, as fitted for each seed of an arm."""
    rows = []
    for arm in names(document):
        found = [row for row in document["laws"] if row["arm"] == arm]
        for cost in dict.fromkeys(row["cost"] for row in found):
            of_cost = [row for row in found if row["cost"] == cost]
            fits = ([row[name] for row in of_cost if row[name] is not None] for name in ("a", "b"))
            rows.append([arm, COSTS.get(cost, cost), str(len(of_cost)), *map(units.estimate, fits)])
        if not found:
            rows.append([arm, "-", "0", "-", "-"])
    about = "Loss = a - b ln C through each arm's budgets, means over seeds with 95 % t-intervals."
    return Table("Laws", ("arm", "cost", "n", "a", "b"), rows, about)


def failed(document: Document) -> Table:
    """Cells that came to nothing."""
    rows = [
        [
            cell["arm"],
            cell["status"],
            cell["error"] or "",
            f"{cell['share']:.0%}",
            str(cell["seed"]),
        ]
        for cell in document["cells"]
        if cell["status"] not in ("complete", "missing")
    ]
    return Table("Failed cells", ("arm", "status", "error", "budget", "seed"), rows)


EVERY: tuple[Callable[[Document], Table], ...] = (
    *(
        summary,
        verdicts,
        differences,
        losses,
        ledger,
        choices,
        students,
        hybrids,
        tuning,
        laws,
        failed,
    ),
)


def bill(document: Document, arm: str, unit: str) -> dict[str, float]:
    """Means over seeds of what each account of an arm took at the full budget."""
    cells = complete(document, arm)
    bills = [(cell.get("accounts") or {}).get(unit) or {} for cell in cells]
    accounts = dict.fromkeys(name for bill in bills for name, amount in bill.items() if amount)
    return {
        name: sum(bill.get(name, 0.0) for bill in bills) / len(bills)
        for name in accounts
        if name != "total"
    }


def _chances(row: Row) -> list[str]:
    chances = (row.get(name) for name in ("p", "p_adjusted", "p_flip"))
    return ["-" if chance is None else f"{chance:.3g}" for chance in chances]


def _left_out(document: Document, rows: Sequence[Sequence[Any]], width: int) -> list[list[str]]:
    """A row for each arm that nothing was compared with, so that none is missing."""
    there = {row[0] for row in rows}
    return [
        [arm, "-", "-", "not compared", *["-"] * (width - 4)]
        for arm in names(document)
        if arm not in there
    ]
