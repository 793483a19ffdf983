"""What is read out of the document of a bench, for its tables, plots and pages."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from effcli.units import FEWEST_SEEDS, verdict

Document = Mapping[str, Any]
Row = Mapping[str, Any]
COSTS = {
    "tokens": "tokens",
    "unique_tokens": "different tokens",
    "flops": "FLOPs",
    "seconds": "seconds",
    "joules": "joules",
}


def names(document: Document) -> list[str]:
    """The arms, in their order."""
    return [arm["name"] for arm in document["arms"]]


def full_share(document: Document) -> float:
    """The largest budget, as a share of the whole one."""
    return float(max(document["protocol"]["shares"]))


def shares(document: Document, arm: str) -> list[float]:
    """The budgets of an arm, small ones first."""
    planned = {cell["share"] for cell in document["cells"] if cell["arm"] == arm}
    return sorted(planned or document["protocol"]["shares"])


def complete(document: Document, arm: str, share: float | None = None) -> list[Row]:
    """The complete cells of an arm, one for each seed; at the full budget unless told."""
    wanted = full_share(document) if share is None else share
    return [
        cell
        for cell in document["cells"]
        if (cell["arm"], cell["share"], cell["status"]) == (arm, wanted, "complete")
    ]


def is_screen(document: Document) -> bool:
    """Whether there are too few seeds for any verdict."""
    rows = document["multipliers"]
    is_planned = len(document["protocol"]["seeds"]) < FEWEST_SEEDS
    return is_planned or (bool(rows) and all(verdict(row) == "screen" for row in rows))


def gains(document: Document, cost: str) -> list[Row]:
    """The multipliers of a cost, each arm's at the largest of its budgets that was compared."""
    found: dict[tuple[str, str], Row] = {}
    for row in document["multipliers"]:
        key = row["arm"], row["reference"]
        if row["cost"] == cost and row["share"] >= found.get(key, row)["share"]:
            found[key] = row
    return list(found.values())


def energy_sources(document: Document) -> str:
    """Where joules come from, as measured:nvml."""
    cells = document["cells"]
    return ", ".join(sorted({c["energy_source"] for c in cells if c.get("energy_source")}))


def headline(document: Document) -> str:
    """The result in a sentence: what the suite is about, beside each reference; or no gain."""
    rest = "" if document["status"] == "complete" else " Partial: stopped before its last cell."
    rows = _subject(document)
    if not rows:
        return f"Nothing was compared: no arm has a reference beside it.{rest}"
    return f"{' '.join(_sentence(row) for row in rows)}{rest}"


def _sentence(row: Row) -> str:
    reached, word = _reached(row), verdict(row)
    if word == "screen":
        return f"A screen of {_seeds(row['n'])}, no verdict: {reached}."
    if is_gain(row):
        return f"{reached}."
    if row.get("bound"):
        return f"No gain{' shown' if row['bound'] == '>' else ''}: {reached}."
    return f"No gain: {reached}, {word}."


def is_gain(row: Row) -> bool:
    """Whether a multiplier proves that less was spent."""
    return verdict(row) == "better"


def _subject(document: Document) -> list[Row]:
    """The multipliers that the sentence is about.

    Those of the suite's subject, the strongest reference first; else the largest gain over the
    strongest other reference, of a method if there is one.
    """
    rows = [row for row in gains(document, "flops") if row["mean"] is not None]
    losses = {
        name: fmean(cell["loss"] for cell in cells)
        for name in names(document)
        if (cells := complete(document, name))
    }
    rows.sort(key=lambda row: losses.get(row["reference"], 0.0))
    if subject := document["protocol"].get("subject"):
        return [row for row in rows if row["arm"] == subject]
    hardest: dict[str, Row] = {}
    for row in rows:
        hardest.setdefault(row["arm"], row)
    references = {arm["name"] for arm in document["arms"] if arm["is_reference"]}
    methods = [row for arm, row in hardest.items() if arm not in references]
    return sorted(methods or hardest.values(), key=_rank, reverse=True)[:1]


def _rank(row: Row) -> tuple[bool, bool, float]:
    return is_gain(row), row.get("bound") != "<", row["mean"]


def _seeds(n: int) -> str:
    return f"{n} seed" if n == 1 else f"{n} seeds"


def _reached(row: Row) -> str:
    """A multiplier in words: A reaches B's loss with 3.1× fewer FLOPs [2.9, 3.4], n=5."""
    arm, reference, bound = row["arm"], row["reference"], row.get("bound")
    mean, low, high = row["mean"], row["low"], row["high"]
    is_less = mean >= 1
    if not is_less:  # fewer than one time fewer is more
        mean = 1 / mean
        low, high = (None, None) if low is None or high is None else (1 / high, 1 / low)
    spent = f"{mean:.3g}× {'fewer' if is_less else 'more'} FLOPs"
    if bound:
        limit = "more than" if (bound == ">") == is_less else "at most"
        where = (
            f"reaches a loss beyond {reference}'s measured range"
            if bound == ">"
            else f"does not reach any loss that {reference} was measured at"
        )
        return f"{arm} {where}, with {limit} {spent}, n={row['n']}"
    around = "" if low is None or high is None else f" [{low:.3g}, {high:.3g}]"
    return f"{arm} reaches {reference}'s loss with {spent}{around}, n={row['n']}"
