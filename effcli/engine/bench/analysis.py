"""What finished cells prove: costs to the same held-out loss, differences at the same cost.

Losses are compared only between complete runs, each at the end of a schedule of its own. An
arm's multiplier is the reference's cost at the arm's loss, divided by the arm's cost; the
reference's cost is read from a law L = a - b ln C through those of its runs, of the same
seed, that ended nearest to that loss. Outside what was measured there is only a bound.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from effcli.engine.bench.statistics import Verdict, verdicts

COSTS = ("tokens", "unique_tokens", "flops", "seconds", "joules")
EQUAL = ("tokens", "flops", "seconds")
LOCAL = 3  # runs that a law is drawn through
Row = Mapping[str, Any]
Bound = Literal[">", "<"] | None


@dataclass(frozen=True)
class Law:
    """L = a - b ln C, in nats, between the costs and losses that it was drawn through."""

    a: float
    b: float

    def cost(self, loss: float) -> float:
        """What it takes to get to a loss."""
        return math.exp((self.a - loss) / self.b)

    def loss(self, cost: float) -> float:
        """Where a cost leads to."""
        return self.a - self.b * math.log(cost)


def law(points: Sequence[tuple[float, float]]) -> Law | None:
    """The law through (cost, loss) of two runs or more; none if more cost is no gain."""
    if len({cost for cost, _ in points}) < 2:
        return None
    costs, losses = np.array(points).T
    slope, start = np.polyfit(np.log(costs), losses, 1)
    return Law(float(start), float(-slope)) if slope < 0 else None


class Table:
    """The complete cells of a suite, by arm, seed and share."""

    def __init__(self, cells: Iterable[Row]) -> None:
        self.cells = [c for c in cells if c["status"] == "complete" and c["loss"] is not None]

    def of(self, arm: str, seed: int | None = None, share: float | None = None) -> list[Row]:
        """The cells of an arm, small budgets first."""
        chosen = (
            cell
            for cell in self.cells
            if cell["arm"] == arm
            and seed in (None, cell["seed"])
            and share in (None, cell["share"])
        )
        return sorted(chosen, key=lambda cell: (cell["share"], cell["seed"]))

    def points(self, arm: str, seed: int, cost: str) -> list[tuple[float, float]]:
        """(cost, loss) of an arm's runs of one seed."""
        return [(c[cost], c["loss"]) for c in self.of(arm, seed) if c[cost]]


def multiplier(
    points: Sequence[tuple[float, float]], cost: float, loss: float
) -> tuple[float, Bound] | None:
    """How many times the cost the reference needs for this loss, or a bound of it."""
    if not points:
        return None
    costs, losses = zip(*points, strict=True)
    if loss < min(losses):
        return costs[losses.index(min(losses))] / cost, ">"
    if loss > max(losses):
        return costs[losses.index(max(losses))] / cost, "<"
    nearest = sorted(points, key=lambda point: abs(point[1] - loss))[:LOCAL]
    found = law(nearest) or law(points)
    return None if found is None else (found.cost(loss) / cost, None)


def multipliers(
    table: Table, arms: Sequence[str], reference: str, cost: str, margin: float
) -> list[dict[str, Any]]:
    """A row for every arm that is compared with this reference."""
    rows = [row for arm in arms if (row := _row(table, arm, reference, cost)) is not None]
    logs = {row["arm"]: [math.log(one["value"]) for one in row["values"]] for row in rows}
    found = verdicts(logs, math.log1p(margin))
    return [row | _told(row, found[row["arm"]]) for row in rows]


def _row(table: Table, arm: str, reference: str, cost: str) -> dict[str, Any] | None:
    """The largest budget of an arm whose losses the reference was measured at, for all seeds."""
    best: dict[str, Any] | None = None
    for share in sorted({cell["share"] for cell in table.of(arm)}, reverse=True):
        values = []
        for cell in table.of(arm, share=share):
            points = table.points(reference, cell["seed"], cost)
            if not cell[cost] or not (found := multiplier(points, cell[cost], cell["loss"])):
                continue
            values.append({"seed": cell["seed"], "value": found[0], "bound": found[1]})
        row = {"arm": arm, "reference": reference, "cost": cost, "share": share, "values": values}
        if values and (best is None or _outside(row) < _outside(best)):
            best = row
    return best


def _outside(row: Row) -> int:
    return sum(one["bound"] is not None for one in row["values"])


def _told(row: Row, verdict: Verdict) -> dict[str, Any]:
    bounds = {one["bound"] for one in row["values"]} - {None}
    bound = bounds.pop() if len(bounds) == 1 else None
    # A bound may stand for the value where it makes the claim weaker.
    is_safe = {">": "better", "<": "worse"}.get(bound or "") == verdict.name
    name = verdict.name if not _outside(row) or is_safe else "beyond"
    is_exact = _outside(row) == 0
    return {
        "mean": math.exp(verdict.mean),
        "low": _finite(math.exp(min(verdict.low, 700))) if is_exact else None,
        "high": _finite(math.exp(min(verdict.high, 700))) if is_exact else None,
        "bound": bound,
        **_proof(verdict, name),
    }


def _proof(verdict: Verdict, name: str) -> dict[str, Any]:
    return {
        "n": verdict.n,
        "is_screen": verdict.is_screen,
        "verdict": name,
        "p": _finite(verdict.p),
        "p_adjusted": _finite(verdict.p_adjusted),
        "p_flip": _finite(verdict.p_flip),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) and value < 1e300 else None


def differences(
    table: Table, arms: Sequence[str], reference: str, at: str, margin: float
) -> list[dict[str, Any]]:
    """Held-out loss of every arm minus the reference's at the same cost, in nats per token."""
    rows: list[dict[str, Any]] = []
    found: dict[str, list[float]] = {}
    slopes: list[float] = []
    for arm in arms:
        shares = sorted({cell["share"] for cell in table.of(arm)}, reverse=True)
        for share in shares:
            pairs = [
                (cell["loss"] - other[0], other[1])
                for cell in table.of(arm, share=share)
                if (other := _loss_at(table.points(reference, cell["seed"], at), cell[at]))
            ]
            if pairs and len(pairs) == len(table.of(arm, share=share)):
                rows.append({"arm": arm, "reference": reference, "at": at, "share": share})
                found[arm] = [-difference for difference, _ in pairs]
                slopes += [slope for _, slope in pairs if slope]
                break
    # What a difference of costs of `margin` is worth in nats.
    nats = math.log1p(margin) * (sum(slopes) / len(slopes) if slopes else 0.3)
    proved = verdicts(found, nats)
    return [
        row
        | {
            "mean": -proved[row["arm"]].mean,
            "low": _finite(-proved[row["arm"]].high),
            "high": _finite(-proved[row["arm"]].low),
            **_proof(proved[row["arm"]], proved[row["arm"]].name),
        }
        for row in rows
    ]


def _loss_at(points: Sequence[tuple[float, float]], cost: float) -> tuple[float, float] | None:
    """The loss of a reference at a cost within what was measured, and the slope there."""
    exact = [loss for one, loss in points if abs(one / cost - 1) < 1e-3]
    costs = [one for one, _ in points]
    if not points or not min(costs) * 0.999 <= cost <= max(costs) * 1.001:
        return None
    nearest = sorted(points, key=lambda point: abs(math.log(point[0] / cost)))[:LOCAL]
    found = law(nearest) or law(points)
    if exact:
        return exact[0], found.b if found else 0.0
    return None if found is None else (found.loss(cost), found.b)


def laws(table: Table, arms: Sequence[str]) -> list[dict[str, Any]]:
    """The law of every arm and seed through all of its budgets, in FLOPs."""
    found = []
    for arm in arms:
        for seed in sorted({cell["seed"] for cell in table.of(arm)}):
            if (one := law(table.points(arm, seed, "flops"))) is not None:
                found.append({"arm": arm, "seed": seed, "cost": "flops", "a": one.a, "b": one.b})
    return found


def frontier(table: Table) -> dict[str, Any]:
    """The lowest mean loss for the FLOPs: runs that nothing cheaper beats, and their law.

    Whatever claims to grow or shrink a model has to be below it.
    """
    groups: dict[tuple[str, float], list[Row]] = {}
    for cell in table.cells:
        groups.setdefault((cell["arm"], cell["share"]), []).append(cell)
    means = [
        {
            "arm": arm,
            "share": share,
            **{name: float(np.mean([cell[name] for cell in cells])) for name in ("flops", "loss")},
        }
        for (arm, share), cells in groups.items()
    ]
    points: list[dict[str, Any]] = []
    for point in sorted(means, key=lambda one: (one["flops"], one["loss"])):
        if not points or point["loss"] < points[-1]["loss"]:
            points.append(point)
    found = law([(point["flops"], point["loss"]) for point in points])
    return {"points": points, "law": None if found is None else {"a": found.a, "b": found.b}}
