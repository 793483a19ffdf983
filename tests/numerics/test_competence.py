"""Pacing only ever admits more, stages end for a reason, and scoring keeps to its budget."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from effcli.catalog import CURRICULA as KNOWN
from effcli.engine.selection import competence as pacing
from effcli.engine.selection.competence import difficulty
from effcli.engine.selection.governor import Governor
from effcli.engine.selection.stages import Stages, trend
from effcli.errors import InputError

CURRICULA = [name for name in KNOWN if name not in ("off", "stages")]
NAMES = st.sampled_from(["off", *CURRICULA])
SHARES = st.floats(0, 1)
STARTS = st.floats(0.01, 1)
LENGTHS = st.floats(0.01, 1)
POWERS = st.floats(0.25, 8)
LOSSES = st.floats(0.1, 10) | st.sampled_from([float("nan"), float("inf")])

# Pacing


def competence(name: str, progress: float, **shape: float) -> float:
    return pacing.competence(KNOWN.load(name), progress, **shape)


@given(NAMES, STARTS, LENGTHS, POWERS, SHARES, SHARES)
def test_competence_never_falls_and_stays_between_start_and_1(
    name: str, start: float, length: float, power: float, first: float, second: float
) -> None:
    early, late = (
        competence(name, progress, start=start, length=length, power=power)
        for progress in sorted([first, second])
    )
    assert start <= early <= late + 1e-12
    assert late <= 1


@given(st.sampled_from(list(CURRICULA)), STARTS, LENGTHS, POWERS, SHARES)
def test_competence_goes_from_its_start_to_1(
    name: str, start: float, length: float, power: float, after: float
) -> None:
    at_start = competence(name, 0.0, start=start, length=length, power=power)
    assert at_start == pytest.approx(start, rel=1e-12)
    assert competence(name, length + after, start=start, length=length, power=power) == 1
    just_before = competence(name, length * (1 - 1e-9), start=start, length=length, power=power)
    assert just_before == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("off", 1.0), ("linear", 0.6), ("root", (0.5 * 1.04) ** 0.5), ("exponential", 0.2**0.5)],
)
def test_competence_half_way(name: str, expected: float) -> None:
    assert competence(name, 0.2, start=0.2, length=0.4) == pytest.approx(expected, rel=1e-14)


def test_a_root_of_power_1_is_a_straight_line() -> None:
    for progress in np.linspace(0, 1, 11):
        line = competence("linear", progress, start=0.3, length=0.8)
        assert competence("root", progress, start=0.3, length=0.8, power=1.0) == pytest.approx(line)


def test_no_length_admits_all_at_once() -> None:
    assert competence("linear", 0.0, start=0.1, length=0.0) == 1


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 4))
def test_a_level_admits_exactly_its_share(seed: int, size: int, width: int) -> None:
    random = np.random.default_rng(seed)
    columns = random.integers(0, 5, (width, size)).astype(float)
    columns[random.random((width, size)) < 0.2] = np.nan
    places = difficulty(list(columns))
    for admitted in range(1, size + 1):
        assert (places <= admitted / size).sum() == admitted


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_only_the_order_in_a_column_counts(seed: int, size: int) -> None:
    first, second = np.random.default_rng(seed).normal(size=(2, size))
    places = difficulty([first, second])
    assert np.array_equal(places, difficulty([np.exp(first), 5 * second - 7]))
    assert np.array_equal(places, difficulty([second, first]))
    assert np.array_equal(difficulty([first]), stats.rankdata(first) / size)


def test_the_mean_of_ranks_decides_and_the_unknown_is_hardest() -> None:
    # Ranks: 1 2 3.5 3.5 and 4 1 2 3.
    assert difficulty([np.array([0.1, 0.2, 9, 9]), np.array([9, 1, 2, 3.0])]).tolist() == [
        0.5,
        0.25,
        0.75,
        1.0,
    ]
    assert difficulty([np.array([np.nan, 1e300, -np.inf])]).tolist() == [1, 2 / 3, 1 / 3]
    assert difficulty([np.full(3, np.nan), np.array([3.0, 1, 2])]).tolist() == [1, 1 / 3, 2 / 3]
    assert difficulty([np.empty(0)]).tolist() == []


# Stages


def levels(stages: Stages, losses: list[float], every: float = 0.01) -> list[float]:
    """The level after each loss, at equal steps of progress."""
    heard = []
    for number, loss in enumerate(losses, start=1):
        stages.hear(loss)
        heard.append(stages.level(number * every))
    return heard


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=9))
def test_the_trend_is_that_of_theil_and_sen(losses: list[float]) -> None:
    assert trend(losses) == pytest.approx(stats.theilslopes(losses).slope, abs=1e-12)


@given(
    st.lists(LOSSES, max_size=60),
    st.floats(0.05, 1),
    st.lists(st.floats(0.1, 3), min_size=2, max_size=2),
)
def test_stages_only_go_on_and_the_last_begins_in_time(
    losses: list[float], length: float, parts: list[float]
) -> None:
    stages = Stages(length=length, parts=parts)
    steps = [*levels(stages, losses, every=length / 50), stages.level(length)]
    assert steps == sorted(steps)
    assert set(steps) <= {0.4, 0.7, 1.0}
    assert steps[-1] == stages.level(0.0) == 1.0
    assert [decision["stage"] for decision in stages.decisions] == [1, 2]


def test_a_plateau_ends_a_stage_and_only_one() -> None:
    stages = Stages(length=1.0)
    assert levels(stages, [3.0] * 12) == [0.4] * 4 + [0.7] * 5 + [1.0] * 3
    assert [decision["why"] for decision in stages.decisions] == ["plateau", "plateau"]
    assert stages.decisions[0]["losses"] == [3.0] * 5
    assert stages.decisions[0]["progress"] == pytest.approx(0.05)


def test_a_steep_fall_lasts_until_the_part_is_used_up() -> None:
    stages = Stages(length=0.4)
    falling = [4.0 * 0.99**number for number in range(60)]
    assert levels(stages, falling) == [0.4] * 19 + [0.7] * 20 + [1.0] * 21
    assert [decision["why"] for decision in stages.decisions] == ["share", "share"]


@pytest.mark.parametrize(("fall", "ends"), [(0.0019, True), (0.0021, False), (-0.01, True)])
def test_the_least_gain_is_two_thousandths(fall: float, ends: bool) -> None:
    stages = Stages(length=1.0)
    assert (levels(stages, [5 * (1 - fall * k) for k in range(-2, 3)])[-1] == 0.7) == ends


def test_one_bad_evaluation_is_no_plateau() -> None:
    stages = Stages(length=1.0)
    losses = [4.0, 3.9, 3.8, 3.7, 5.0]  # a straight line of least squares would rise
    assert np.polyfit(range(5), losses, 1)[0] > 0
    assert levels(stages, losses)[-1] == 0.4


def test_an_early_end_leaves_the_next_stage_its_part() -> None:
    stages = Stages(length=0.4)
    steps = levels(stages, [3.0] * 5 + [2.0 * 0.95**number for number in range(30)])
    assert steps == [0.4] * 4 + [0.7] * 20 + [1.0] * 11
    assert [decision["why"] for decision in stages.decisions] == ["plateau", "share"]


def test_a_late_question_makes_no_stage_longer() -> None:
    stages = Stages((0.2, 0.5, 0.8, 1.0), length=0.6)
    assert [stages.level(progress) for progress in (0.3, 0.41, 0.59, 0.6)] == [0.5, 0.8, 0.8, 1.0]


@given(st.lists(st.floats(0.1, 10), max_size=40), st.integers(-3, 3))
def test_no_loss_counts_by_its_size(losses: list[float], power: int) -> None:
    scaled = [loss * 2.0**power for loss in losses]
    assert levels(Stages(length=0.9), losses) == levels(Stages(length=0.9), scaled)


@given(st.lists(LOSSES, max_size=40))
def test_a_loss_that_is_not_finite_was_never_heard(losses: list[float]) -> None:
    with_all, without = Stages(length=0.9), Stages(length=0.9)
    for number, loss in enumerate(losses):
        with_all.hear(loss)
        if np.isfinite(loss):
            without.hear(loss)
        assert with_all.level(number * 0.01) == without.level(number * 0.01)
    assert with_all.state_dict() == without.state_dict()


@given(st.lists(LOSSES, max_size=40), st.integers(0, 40))
def test_stages_go_on_from_a_state(losses: list[float], cut: int) -> None:
    whole, first, second = (Stages(length=0.3) for _ in range(3))
    expected = levels(whole, losses)
    before = levels(first, losses[:cut])
    saved = json.dumps(first.state_dict(), allow_nan=False)
    second.load_state_dict(json.loads(saved))
    after = []
    for number, loss in list(enumerate(losses, start=1))[cut:]:
        second.hear(loss)
        after.append(second.level(number * 0.01))
    assert before + after == expected
    assert second.state_dict() == whole.state_dict()


def test_a_state_does_not_move_with_what_comes_later() -> None:
    stages = Stages(length=1.0)
    levels(stages, [3.0] * 4)
    state = stages.state_dict()
    before = json.dumps(state)
    levels(stages, [3.0] * 8)
    assert json.dumps(state) == before


def test_one_level_is_no_stage_and_wrong_levels_are_named() -> None:
    assert Stages((1.0,), length=0.5).level(0.0) == 1.0
    for wrong in ((), (0.7, 0.4, 1.0), (0.4, 0.4, 1.0), (0.0, 1.0), (0.4, 0.7)):
        with pytest.raises(InputError, match="do not rise"):
            Stages(wrong, length=0.5)
    for parts in ([1.0], [1.0, -1.0]):
        with pytest.raises(InputError, match="do not fit"):
            Stages(length=0.5, parts=parts)


# The governor

COSTS = st.floats(0, 1e3)
TRACES = st.lists(st.tuples(COSTS, COSTS), max_size=60)
RATES = st.floats(0, 0.5)


@given(TRACES, RATES, COSTS)
def test_spending_stays_within_its_share_and_one_window(
    trace: list[tuple[float, float]], share: float, window: float
) -> None:
    governor, training = Governor(share, window), 0.0
    for trained, cost in trace:
        training += trained
        if governor.allows(training, cost):
            governor.spent(cost)
        else:  # nothing is refused that would fit
            assert governor.total + cost > share * training + window
        assert governor.total <= share * training + window


@given(TRACES, RATES, COSTS, st.floats(1, 10))
def test_what_cost_more_than_expected_is_paid_back_first(
    trace: list[tuple[float, float]], share: float, window: float, excess: float
) -> None:
    """However wrong the estimates, the bound is passed by one score at most."""
    governor, training, largest = Governor(share, window), 0.0, 0.0
    for trained, cost in trace:
        training += trained
        if governor.allows(training, cost):
            governor.spent(cost * excess)
            largest = max(largest, cost * excess)
        assert governor.total <= (share * training + window + largest) * (1 + 1e-12)


def test_the_share_is_used() -> None:
    governor = Governor(0.03, window=1.0)
    for training in range(1, 10_001):
        if governor.allows(training, 1.0):
            governor.spent(1.0)
    assert governor.total / 10_000 == pytest.approx(0.03, rel=0.01)


@given(TRACES, RATES, COSTS, st.integers(0, 60))
def test_the_governor_goes_on_from_a_state(
    trace: list[tuple[float, float]], share: float, window: float, cut: int
) -> None:
    def answers(governor: Governor, start: int, stop: int) -> list[bool]:
        given = []
        for number in range(start, min(stop, len(trace))):
            training = sum(trained for trained, _ in trace[: number + 1])
            given.append(governor.allows(training, trace[number][1]))
            governor.spent(trace[number][1] * given[-1])
        return given

    whole, first, second = (Governor(share, window) for _ in range(3))
    expected = answers(whole, 0, 60)
    before = answers(first, 0, cut)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + answers(second, cut, 60) == expected
