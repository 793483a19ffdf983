"""Multipliers, bounds and differences of runs whose laws are known."""

import math
from typing import Any

import pytest

from effcli.engine.bench.analysis import (
    Table,
    differences,
    frontier,
    law,
    laws,
    multiplier,
    multipliers,
)

A, B = 12.0, 0.4


def _loss(cost: float, times: float = 1.0) -> float:
    """A law; `times` cheaper than the reference."""
    return A - B * math.log(cost * times)


def _cells(arm: str, times: float, shares: list[float], seeds: int, wobble: float = 0.0) -> Any:
    """Runs that are `times` cheaper; every seed has a level of its own, which both sides share."""
    for seed in range(seeds):
        for share in shares:
            cost = share * 1e12
            yield {
                "arm": arm,
                "seed": seed,
                "share": share,
                "status": "complete",
                "loss": _loss(cost, times) + 0.05 * seed + wobble * math.sin(7 * seed + len(arm)),
                "tokens": cost / 1e6,
                "unique_tokens": cost / 1e6,
                "flops": cost,
                "seconds": cost / 1e10,
                "joules": None,
            }


def _table(*arms: tuple[str, float, list[float]], seeds: int = 5, wobble: float = 0.0) -> Table:
    return Table(cell for arm in arms for cell in _cells(*arm, seeds, wobble))


REFERENCE = ("reference", 1.0, [0.5, 1.0, 2.0, 4.0])


@pytest.mark.parametrize("times", [0.6, 1.0, 1.5, 3.0])
def test_a_planted_multiplier_is_found(times: float) -> None:
    table = _table(REFERENCE, ("arm", times, [0.7, 1.0]))
    (row,) = multipliers(table, ["arm"], "reference", "flops", 0.02)
    assert row["mean"] == pytest.approx(times)
    assert row["low"] == pytest.approx(times)
    assert row["share"] == 1.0
    assert row["bound"] is None
    assert row["n"] == 5
    assert row["verdict"] == {0.6: "worse", 1.0: "equivalent"}.get(times, "better")


def test_pairing_takes_out_what_a_seed_does_to_both_sides() -> None:
    """Levels of seeds differ by half a nat here, and no multiplier notices."""
    table = _table(REFERENCE, ("arm", 1.2, [1.0]), wobble=0.001)
    (row,) = multipliers(table, ["arm"], "reference", "flops", 0.02)
    assert row["mean"] == pytest.approx(1.2, rel=0.01)
    assert row["verdict"] == "better"


def test_beyond_the_range_there_is_a_bound_and_nothing_is_extrapolated() -> None:
    table = _table(REFERENCE, ("arm", 8.0, [1.0]))
    (row,) = multipliers(table, ["arm"], "reference", "flops", 0.02)
    assert row["bound"] == ">"
    assert row["mean"] == pytest.approx(4.0)
    assert (row["low"], row["high"]) == (None, None)
    assert row["verdict"] == "better"  # by at least that much
    table = _table(REFERENCE, ("arm", 0.3, [1.0]))
    (row,) = multipliers(table, ["arm"], "reference", "flops", 0.02)
    assert row["bound"] == "<"
    assert row["mean"] == pytest.approx(0.5)
    assert row["verdict"] == "worse"


def test_a_bound_proves_nothing_in_the_other_direction() -> None:
    """An arm above all of the reference's losses, at four times its budget: at most 0.125 ..."""
    assert multiplier([(1.0, 3.0), (2.0, 2.5)], 4.0, 3.5) == (0.25, "<")
    assert multiplier([(1.0, 3.0), (2.0, 2.5)], 4.0, 2.0) == (0.5, ">")
    table = _table(REFERENCE, ("arm", 0.05, [8.0]), ("other", 1.0, [1.0]))
    row, _ = multipliers(table, ["arm", "other"], "reference", "flops", 0.02)
    assert row["bound"] == "<"
    assert row["verdict"] == "worse"


def test_a_smaller_budget_is_read_where_the_larger_one_is_beyond() -> None:
    table = _table(REFERENCE, ("arm", 6.0, [0.5, 1.0]))
    (row,) = multipliers(table, ["arm"], "reference", "flops", 0.02)
    assert row["share"] == 0.5
    assert row["mean"] == pytest.approx(6.0)


def test_costs_that_nobody_measured_are_not_compared() -> None:
    table = _table(REFERENCE, ("arm", 2.0, [1.0]))
    assert multipliers(table, ["arm"], "reference", "joules", 0.02) == []
    assert multipliers(table, ["arm"], "nobody", "flops", 0.02) == []


def test_few_seeds_never_prove_anything() -> None:
    table = _table(REFERENCE, ("arm", 3.0, [1.0]), seeds=4)
    (row,) = multipliers(table, ["arm"], "reference", "flops", 0.02)
    assert row["is_screen"]
    assert row["verdict"] == "inconclusive"


def test_runs_without_a_loss_are_no_points() -> None:
    cells = [*_cells(*REFERENCE, 5), *_cells("arm", 2.0, [1.0], 5)]
    for cell in cells:
        if cell["arm"] == "arm" and cell["seed"] == 3:
            cell |= {"status": "diverged", "loss": None}
    (row,) = multipliers(Table(cells), ["arm"], "reference", "flops", 0.02)
    assert [one["seed"] for one in row["values"]] == [0, 1, 2, 4]
    assert row["is_screen"]


@pytest.mark.parametrize("at", ["tokens", "flops", "seconds"])
def test_differences_are_read_at_the_same_cost(at: str) -> None:
    table = _table(REFERENCE, ("arm", 2.0, [0.7, 1.0]))
    (row,) = differences(table, ["arm"], "reference", at, 0.02)
    assert row["mean"] == pytest.approx(-B * math.log(2))
    assert row["share"] == 1.0
    assert row["verdict"] == "better"
    beyond = _table(REFERENCE, ("arm", 2.0, [8.0]))
    assert differences(beyond, ["arm"], "reference", at, 0.02) == []


def test_laws_are_those_that_were_planted() -> None:
    for found in laws(_table(REFERENCE), ["reference"]):
        assert found["b"] == pytest.approx(B)
        assert found["a"] == pytest.approx(A + 0.05 * found["seed"])
    assert law([(1.0, 2.0)]) is None
    assert law([(1.0, 2.0), (2.0, 2.5)]) is None  # more cost, no gain


def test_the_frontier_is_what_nothing_cheaper_beats() -> None:
    table = _table(("small", 2.0, [0.5, 1.0]), ("large", 1.0, [1.0]), ("best", 4.0, [2.0]))
    found = frontier(table)
    assert [(p["arm"], p["share"]) for p in found["points"]] == [
        ("small", 0.5),
        ("small", 1.0),
        ("best", 2.0),
    ]
    assert found["law"]["b"] > 0
