"""Multipliers, bounds and differences of runs whose laws are known."""

import math
from typing import Any

import pytest

from effcli.engine.bench.analysis import (
    Family,
    Table,
    differences,
    frontier,
    law,
    laws,
    loss_at,
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
                "energy_source": "estimated:tdp",
            }


def _table(*arms: tuple[str, float, list[float]], seeds: int = 5, wobble: float = 0.0) -> Table:
    return Table(cell for arm in arms for cell in _cells(*arm, seeds, wobble))


def _family(arms: list[str], reference: str = "reference", seeds: int = 5, size: int = 0) -> Family:
    return Family(reference, arms, range(seeds), size or len(arms), 0.02)


REFERENCE = ("reference", 1.0, [0.5, 1.0, 2.0, 4.0])


@pytest.mark.parametrize("times", [0.6, 1.0, 1.5, 3.0])
def test_a_planted_multiplier_is_found(times: float) -> None:
    table = _table(REFERENCE, ("arm", times, [0.7, 1.0]))
    (row,) = multipliers(table, _family(["arm"], "reference"), "flops")
    assert row["mean"] == pytest.approx(times)
    assert row["low"] == pytest.approx(times)
    assert row["share"] == 1.0
    assert row["bound"] is None
    assert row["n"] == 5
    assert row["verdict"] == {0.6: "worse", 1.0: "equivalent"}.get(times, "better")


def test_pairing_takes_out_what_a_seed_does_to_both_sides() -> None:
    """Levels of seeds differ by half a nat here, and no multiplier notices."""
    table = _table(REFERENCE, ("arm", 1.2, [1.0]), wobble=0.001)
    (row,) = multipliers(table, _family(["arm"], "reference"), "flops")
    assert row["mean"] == pytest.approx(1.2, rel=0.01)
    assert row["verdict"] == "better"


def test_beyond_the_range_there_is_a_bound_and_nothing_is_extrapolated() -> None:
    table = _table(REFERENCE, ("arm", 8.0, [1.0]))
    (row,) = multipliers(table, _family(["arm"], "reference"), "flops")
    assert row["bound"] == ">"
    assert row["mean"] == pytest.approx(4.0)
    assert (row["low"], row["high"]) == (None, None)
    assert row["verdict"] == "better"  # by at least that much
    table = _table(REFERENCE, ("arm", 0.3, [1.0]))
    (row,) = multipliers(table, _family(["arm"], "reference"), "flops")
    assert row["bound"] == "<"
    assert row["mean"] == pytest.approx(0.5)
    assert row["verdict"] == "worse"


def test_a_bound_proves_nothing_in_the_other_direction() -> None:
    """Above all of the reference's losses, at its largest budget: it needs more, not less."""
    assert multiplier([(1.0, 3.0), (2.0, 2.5)], 4.0, 3.5) == (0.25, "<")
    assert multiplier([(1.0, 3.0), (2.0, 2.5)], 4.0, 2.0) == (0.5, ">")
    table = _table(REFERENCE, ("arm", 0.05, [8.0]))
    (row,) = multipliers(table, _family(["arm"], "reference"), "flops")
    assert row["bound"] == "<"
    assert row["verdict"] == "worse"


def test_a_smaller_budget_is_read_where_the_larger_one_is_beyond() -> None:
    table = _table(REFERENCE, ("arm", 6.0, [0.5, 1.0]))
    (row,) = multipliers(table, _family(["arm"], "reference"), "flops")
    assert row["share"] == 0.5
    assert row["mean"] == pytest.approx(6.0)


def test_costs_that_nobody_measured_are_not_compared() -> None:
    table = _table(REFERENCE, ("arm", 2.0, [1.0]))
    assert multipliers(table, _family(["arm"], "reference"), "joules") == []
    assert multipliers(table, _family(["arm"], "nobody"), "flops") == []


def test_few_seeds_never_prove_anything() -> None:
    table = _table(REFERENCE, ("arm", 3.0, [1.0]), seeds=4)
    (row,) = multipliers(table, _family(["arm"], "reference"), "flops")
    assert row["is_screen"]
    assert row["verdict"] == "inconclusive"


def test_runs_without_a_loss_are_no_points() -> None:
    cells = [*_cells(*REFERENCE, 5), *_cells("arm", 2.0, [1.0], 5)]
    for cell in cells:
        if cell["arm"] == "arm" and cell["seed"] == 3:
            cell |= {"status": "diverged", "loss": None}
    (row,) = multipliers(Table(cells), _family(["arm"], "reference"), "flops")
    assert [one["seed"] for one in row["values"]] == [0, 1, 2, 4]
    assert row["is_screen"]


def test_the_seeds_that_are_left_prove_no_gain() -> None:
    """Eight seeds, three of the arm's did not end: who knows what they would have come to."""
    cells = [*_cells(*REFERENCE, 8), *_cells("arm", 2.0, [1.0], 8)]
    for cell in cells:
        if cell["arm"] == "arm" and cell["seed"] in (1, 4, 6):
            cell |= {"status": "diverged", "loss": None}
    family = _family(["arm"], seeds=8)
    (row,) = multipliers(Table(cells), family, "flops")
    assert (row["n"], row["missing"], row["verdict"]) == (5, 3, "inconclusive")
    (row,) = differences(Table(cells), family, "tokens")
    assert (row["n"], row["missing"], row["verdict"]) == (5, 3, "inconclusive")


POINTS = [(1.0, 4.30), (2.0, 4.00), (4.0, 3.80), (8.0, 3.68)]  # convex, as curves of losses are


def test_a_reference_beside_itself_is_exactly_one() -> None:
    for cost, loss in POINTS:
        assert multiplier(POINTS, cost, loss) == (pytest.approx(1.0), None)
        assert loss_at(POINTS, cost) == (pytest.approx(loss), pytest.approx(0.2, abs=0.4))
        # Steps are whole numbers, so budgets of different batches differ by a little.
        assert loss_at(POINTS, cost * 1.004) == (
            pytest.approx(loss, abs=2e-3),
            pytest.approx(0.2, abs=0.4),
        )


@pytest.mark.parametrize("last", [3.49, 3.499, 3.4999, 3.6])
def test_a_curve_that_does_not_fall_is_no_lever(last: float) -> None:
    found = multiplier([(1.0, 3.5), (2.0, 3.4), (4.0, last)], 1.0, 3.401)
    assert found is not None
    assert 1.0 <= found[0] <= 4.0
    assert found[1] is None


def test_bounds_alone_need_more_seeds_than_values_do() -> None:
    """Five signs alike are 1/32: enough for one arm, not for one of eight."""
    table = _table(REFERENCE, ("arm", 8.0, [1.0]))
    assert multipliers(table, _family(["arm"]), "flops")[0]["verdict"] == "better"
    (row,) = multipliers(table, _family(["arm"], size=8), "flops")
    assert (row["verdict"], row["bound"]) == ("beyond", ">")
    assert row["p_adjusted"] == pytest.approx(8 / 32)


def test_bounds_on_both_sides_have_no_mean() -> None:
    cells = [*_cells(*REFERENCE, 5), *_cells("arm", 1.0, [1.0], 5)]
    for cell in cells:
        if cell["arm"] == "arm":
            cell["loss"] += 5.0 * (-1) ** cell["seed"]
    (row,) = multipliers(Table(cells), _family(["arm"]), "flops")
    assert (row["mean"], row["bound"], row["verdict"]) == (None, None, "beyond")


def test_joules_of_two_sources_are_not_compared() -> None:
    cells = [*_cells(*REFERENCE, 5), *_cells("arm", 2.0, [1.0], 5)]
    for number, cell in enumerate(cells):
        cell |= {
            "joules": cell["flops"],
            "energy_source": ("estimated:tdp", "measured:rapl")[number % 2],
        }
    assert multipliers(Table(cells), _family(["arm"]), "joules") == []


@pytest.mark.parametrize("at", ["tokens", "flops", "seconds"])
def test_differences_are_read_at_the_same_cost(at: str) -> None:
    table = _table(REFERENCE, ("arm", 2.0, [0.7, 1.0]))
    (row,) = differences(table, _family(["arm"]), at)
    assert row["mean"] == pytest.approx(-B * math.log(2))
    assert row["share"] == 1.0
    assert row["verdict"] == "better"
    beyond = _table(REFERENCE, ("arm", 2.0, [8.0]))
    assert differences(beyond, _family(["arm"]), at) == []


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
