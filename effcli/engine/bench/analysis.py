"""What finished cells prove: costs to the same held-out loss, differences at the same cost.

Losses are compared only between complete runs, each at the end of a schedule of its own. An
arm's multiplier is the reference's cost at the arm's loss, divided by the arm's cost; the
reference's cost is read from a straight line, over the logarithm of costs, between those two
of its runs, of the same seed, that the loss lies between. So a reference beside itself gives
exactly 1, and outside what was measured there is only a bound.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from effcli.engine.bench.statistics import Verdict, verdicts

COSTS = ("tokens", "unique_tokens", "flops", "seconds", "joules")
EQUAL = ("tokens", "flops", "seconds")
SAME = 0.01  # costs that differ by less are the same: steps are whole numbers
Row = Mapping[str, Any]
Bound = Literal[">", "<"] | None
Point = tuple[float, float]
"""Cost and loss of a run."""


@dataclass(frozen=True)
class Law:
    """L = a - b ln C, in nats, over the costs and losses that it was drawn through."""

    a: float
    b: float


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


def multiplier(points: Sequence[Point], cost: float, loss: float) -> tuple[float, Bound] | None:
    """How many times the cost the reference needs for this loss, or a bound of it."""
    if not points:
        return None
    costs, losses = zip(*sorted(points), strict=True)
    if loss < min(losses):
        return costs[losses.index(min(losses))] / cost, ">"
    if loss > max(losses):
        return costs[losses.index(max(losses))] / cost, "<"
    if len(points) == 1:
        return costs[0] / cost, None
    # Where noise makes it cross twice, the cheaper way is the one to beat.
    (one, before), (other, after) = next(
        pair for pair in pairwise(sorted(points)) if _is_between(loss, pair[0][1], pair[1][1])
    )
    way = 0.0 if before == after else (before - loss) / (before - after)
    return one * (other / one) ** way / cost, None


def _is_between(value: float, one: float, other: float) -> bool:
    return min(one, other) <= value <= max(one, other)


def loss_at(points: Sequence[Point], cost: float) -> tuple[float, float] | None:
    """The loss of a reference at a cost within what was measured, and the slope -dL/dlnC there."""
    ordered = sorted(points)
    if len(ordered) < 2:
        near = [point for point in ordered if abs(cost / point[0] - 1) <= SAME]
        return (near[0][1], 0.0) if near else None
    if not ordered[0][0] * (1 - SAME) <= cost <= ordered[-1][0] * (1 + SAME):
        return None
    inside = min(max(cost, ordered[0][0]), ordered[-1][0])
    (one, before), (other, after) = next(
        pair for pair in pairwise(ordered) if pair[0][0] <= inside <= pair[1][0]
    )
    slope = (before - after) / math.log(other / one)
    return before - slope * math.log(inside / one), slope


@dataclass(frozen=True)
class Family:
    """What is compared with one reference: all of it counts, whatever is finished."""

    reference: str
    arms: Sequence[str]
    seeds: Sequence[int]
    size: int
    """Arms that the whole suite compares with it."""
    margin: float
    """Relative difference of costs that is none."""


def multipliers(table: Table, family: Family, cost: str) -> list[dict[str, Any]]:
    """A row for every arm that is compared with this reference."""
    if cost == "joules" and len({cell["energy_source"] for cell in table.cells}) > 1:
        return []  # what was estimated and what was measured are no pair
    rows = [row for arm in family.arms if (row := _row(table, arm, family, cost)) is not None]
    logs = {row["arm"]: [math.log(one["value"]) for one in row["values"]] for row in rows}
    found = verdicts(logs, math.log1p(family.margin), family=family.size)
    return [row | _told(row, found[row["arm"]], family) for row in rows]


def _row(table: Table, arm: str, family: Family, cost: str) -> dict[str, Any] | None:
    """The largest budget of an arm whose losses the reference was measured at, for all seeds."""
    rows = []
    for share in {cell["share"] for cell in table.of(arm)}:
        values = []
        for cell in table.of(arm, share=share):
            points = table.points(family.reference, cell["seed"], cost)
            if cell[cost] and (found := multiplier(points, cell[cost], cell["loss"])):
                values.append({"seed": cell["seed"], "value": found[0], "bound": found[1]})
        if values:
            missing = len(family.seeds) - len(values)
            row = {"arm": arm, "reference": family.reference, "cost": cost, "share": share}
            rows.append({**row, "values": values, "missing": missing})
    return min(rows, key=lambda row: (row["missing"], _outside(row), -row["share"]), default=None)


def _outside(row: Row) -> int:
    return sum(one["bound"] is not None for one in row["values"])


def _told(row: Row, verdict: Verdict, family: Family) -> dict[str, Any]:
    if not _outside(row):
        ends = {"low": _finite(verdict.low), "high": _finite(verdict.high)}
        mean = math.exp(verdict.mean)
        return {"mean": mean, **ends, "bound": None, **_proof(verdict, row["missing"])}
    bounds = {one["bound"] for one in row["values"]} - {None}
    bound = bounds.pop() if len(bounds) == 1 else None
    # A bound may stand for a value where it makes the claim weaker; but bounds have no
    # spread to test against, so only the signs can prove something.
    adjusted = min(1.0, verdict.p_flip * family.size)
    claim = {">": "better", "<": "worse"}.get(bound or "")
    is_claimed = (verdict.mean > 0) == (bound == ">") and not verdict.is_screen
    is_proven = is_claimed and adjusted <= 0.05 and not row["missing"]
    return {
        "mean": math.exp(verdict.mean) if bound else None,
        "low": None,
        "high": None,
        "bound": bound,
        **_proof(verdict, row["missing"]),
        "p": None,
        "p_adjusted": adjusted,
        "verdict": claim if is_proven else "beyond",
    }


def _proof(verdict: Verdict, missing: int) -> dict[str, Any]:
    # Whoever did not come to an end may have been worse than all who did.
    name = verdict.name if verdict.name == "worse" or not missing else "inconclusive"
    return {
        "n": verdict.n,
        "is_screen": verdict.is_screen,
        "verdict": name,
        "p": verdict.p,
        "p_adjusted": verdict.p_adjusted,
        "p_flip": verdict.p_flip,
    }


def _finite(log: float) -> float | None:
    """A multiplier from its logarithm; none where one value has no interval."""
    return math.exp(log) if abs(log) < 700 else None


def differences(table: Table, family: Family, at: str) -> list[dict[str, Any]]:
    """Held-out loss of every arm minus the reference's at the same cost, in nats per token."""
    rows: list[dict[str, Any]] = []
    found: dict[str, list[float]] = {}
    slopes: list[float] = []
    for arm in family.arms:
        for share in sorted({cell["share"] for cell in table.of(arm)}, reverse=True):
            cells = table.of(arm, share=share)
            pairs = [
                (cell["loss"] - other[0], other[1])
                for cell in cells
                if (other := loss_at(table.points(family.reference, cell["seed"], at), cell[at]))
            ]
            if pairs and len(pairs) == len(cells):
                row = {"arm": arm, "reference": family.reference, "at": at, "share": share}
                rows.append({**row, "missing": len(family.seeds) - len(pairs)})
                found[arm] = [-difference for difference, _ in pairs]
                slopes += [slope for _, slope in pairs if slope > 0]
                break
    # What a difference of costs of the margin is worth in nats.
    nats = math.log1p(family.margin) * (sum(slopes) / len(slopes) if slopes else 0.3)
    proved = verdicts(found, nats, family=family.size)
    return [row | _shown(row, proved[row["arm"]]) for row in rows]


def _shown(row: Row, verdict: Verdict) -> dict[str, Any]:
    ends = (-verdict.high, -verdict.low)
    low, high = (end if math.isfinite(end) else None for end in ends)
    return {"mean": -verdict.mean, "low": low, "high": high, **_proof(verdict, row["missing"])}


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
