"""What is said about an arm is as rarely wrong as it claims, and found as often."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from effcli.engine.bench import statistics
from effcli.engine.bench.statistics import (
    Array,
    Verdict,
    equivalence,
    holm,
    interval,
    sign_flip,
    verdicts,
)

# Cross-fertilized less self-fertilized heights of Darwin's 15 pairs, in eighths of an inch.
DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
MARGIN = 0.01
OPPOSITE = {"better": "worse", "worse": "better"}
Draw = Callable[[np.random.Generator, int], Array]


def normal(random: np.random.Generator, n: int) -> Array:
    return random.normal(size=n)


def skewed(random: np.random.Generator, n: int) -> Array:
    """Skewness 0.95, mean zero."""
    return random.lognormal(0, 0.3, size=n) - math.exp(0.3**2 / 2)


def gains(effects: Sequence[float], seed: int, n: int = 5) -> dict[str, Array]:
    """Arms with these effects and 1 % of noise in each difference; the reference's is shared."""
    noise = np.random.default_rng(seed).normal(0, 0.01 / math.sqrt(2), (len(effects) + 1, n))
    return {str(i): e + noise[i] - noise[-1] for i, e in enumerate(effects)}


def suites(effects: Sequence[float], count: int, n: int = 5) -> Iterator[list[str]]:
    for seed in range(count):
        yield [verdict.name for verdict in verdicts(gains(effects, seed, n), MARGIN).values()]


def share(effects: Sequence[float], name: str, n: int = 5) -> float:
    """In how many suites the first arm gets this verdict."""
    return sum(names[0] == name for names in suites(effects, 200, n)) / 200


def scipys_bca(values: Array, level: float) -> tuple[float, float]:
    found = stats.bootstrap(
        (values,), np.mean, method="BCa", confidence_level=level, n_resamples=50_000, batch=5_000
    )
    return found.confidence_interval.low, found.confidence_interval.high


@pytest.mark.parametrize("n", [5, 10])
@pytest.mark.parametrize("draw", [normal, skewed])
def test_intervals_cover_the_mean_as_often_as_they_say(draw: Draw, n: int) -> None:
    random = np.random.default_rng(n)
    ends = np.array([interval(draw(random, n)) for _ in range(3000)])
    assert np.mean((ends[:, 0] <= 0) & (ends[:, 1] >= 0)) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("n", [5, 10])
def test_intervals_are_not_wide_for_safety(n: int) -> None:
    random = np.random.default_rng(n)
    samples = skewed(random, 500 * n).reshape(500, n)
    student = stats.t.ppf(0.975, n - 1) * samples.std(axis=1, ddof=1) / math.sqrt(n)
    widths = [high - low for low, high in map(interval, samples)]
    assert 1 <= np.mean(widths / (2 * student)) < 1.15


@pytest.mark.parametrize("n", [6, 10, 30])
@pytest.mark.parametrize("draw", [normal, skewed])
def test_the_bootstrap_is_scipys(draw: Draw, n: int) -> None:
    values = draw(np.random.default_rng(n), n)
    found = statistics._bca(values, stats.norm.ppf(0.95))
    assert found == pytest.approx(scipys_bca(values, 0.9), abs=0.02 * np.ptp(values))


def test_an_interval_follows_skewness_and_is_never_inside_students() -> None:
    values = np.array([0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.4, 0.6, 1.2, 3.5])
    low, high = interval(values)
    assert low == pytest.approx(stats.ttest_1samp(values, 0).confidence_interval().low)
    tail = stats.norm.sf(math.sqrt(10 / 9) * stats.t.ppf(0.975, 9))
    assert high == pytest.approx(scipys_bca(values, 1 - 2 * tail)[1], rel=0.03)


def test_an_interval_is_the_same_each_time_and_moves_with_its_values() -> None:
    values = skewed(np.random.default_rng(0), 7)
    low, high = interval(values)
    assert interval(values) == (low, high)
    assert interval(3 * values + 5) == pytest.approx((3 * low + 5, 3 * high + 5))
    assert interval(-values) == pytest.approx((-high, -low))
    assert interval(values, 0.99)[0] < low < high < interval(values, 0.99)[1]


@pytest.mark.parametrize("value", [0.0, 0.1, -3e-200, 1e100])
def test_equal_values_have_an_interval_of_no_width(value: float) -> None:
    assert interval([value] * 5) == (value, value)


@pytest.mark.parametrize("values", [[], [0.3]])
def test_one_value_bounds_nothing(values: list[float]) -> None:
    assert interval(values) == (-math.inf, math.inf)


@pytest.mark.parametrize("n", [2, 3, 5, 12])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.9999])
def test_one_value_far_from_the_others_breaks_no_interval(n: int, level: float) -> None:
    low, high = interval([0.0] * (n - 1) + [1e-50], level)
    assert low < 1e-50 / n < high


def test_sign_flips_are_fishers() -> None:
    """Of the 32,768 flips of Darwin's pairs, 863 have at least their sum (Fisher 1935)."""
    assert sign_flip(DARWIN) == 863 / 2**15


@pytest.mark.parametrize(
    ("values", "flips"),
    [
        ([], 1),
        ([1], 1),
        ([-1], 2),
        ([1, 2, 3, 4, 5], 1),
        ([-1, 2, 3, 4, 5], 2),
        ([1, 2, 3, -4], 7),  # a sum of 2: five sums are greater, two are equal
        ([1, 1, 1, -1], 5),
        ([0, 0, 0], 8),
        ([0.1, 0.2, -0.3], 5),  # 0 and -0 are tied, whatever their rounding
    ],
)
def test_sign_flips_are_counted_exactly(values: list[float], flips: int) -> None:
    assert sign_flip(values) == flips / 2 ** len(values)


def test_sign_flips_of_many_values_are_exact_and_no_more_are_taken() -> None:
    assert sign_flip([1] * 40) == 2**-40
    assert sign_flip([1] * 38 + [-1] * 2) == (1 + 40 + 780) / 2**40
    with pytest.raises(ValueError, match="40"):
        sign_flip([1] * 41)


@given(
    st.lists(st.integers(-50, 50), max_size=12),
    st.floats(1e-6, 1e6),
)
def test_sign_flips_know_no_unit_and_no_order(values: list[int], unit: float) -> None:
    assert sign_flip([unit * value for value in reversed(values)]) == sign_flip(values)


def test_holm_adjusts_the_table_of_benjamini_and_hochberg() -> None:
    """The 15 p-values of Benjamini and Hochberg (1995): Holm rejects three at 0.05."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
    p += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    by_hand = [0.0015, 0.0056, 0.0247, 0.1140, 0.2211, 0.2780, 0.2780, 0.2780, 0.3213] + [1] * 6
    assert holm(p) == pytest.approx(by_hand)
    assert holm(p[::-1]) == pytest.approx(by_hand[::-1])


def test_holm_of_few() -> None:
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_equivalence_is_the_tests_done_by_hand() -> None:
    """With two degrees of freedom, Student's upper tail is 1/2 - t / (2 sqrt(2 + t^2))."""
    assert equivalence([-1, 0, 1], 1) == pytest.approx(1 / 2 - math.sqrt(3) / (2 * math.sqrt(5)))
    near = 1 / 2 - 2 * math.sqrt(3) / (2 * math.sqrt(14))  # of mean 1 to the margin 3
    assert equivalence([0, 1, 2], 3) == pytest.approx(near)
    assert equivalence([0, -1, -2], 3) == pytest.approx(near)


@pytest.mark.parametrize("margin", [0.1, 1.0, 30.0])
def test_equivalence_is_scipys_tests(margin: float) -> None:
    below = stats.ttest_1samp(DARWIN, margin, alternative="less").pvalue
    above = stats.ttest_1samp(DARWIN, -margin, alternative="greater").pvalue
    assert equivalence(DARWIN, margin) == pytest.approx(max(below, above))


def test_equivalence_without_spread_or_margin() -> None:
    assert equivalence([0.1] * 5, 0.2) == 0
    assert equivalence([0.1] * 5, 0.05) == 1
    assert equivalence([0.0], 1) == 1
    for margin in (0, -1, math.nan):
        with pytest.raises(ValueError, match="positive"):
            equivalence(DARWIN, margin)


def test_a_verdict_holds_the_figures_of_its_tests() -> None:
    verdict = verdicts({"selfed": [-x for x in DARWIN], "noise": [1, -1, 2, -2, 0.5]}, 100)
    selfed = verdict["selfed"]
    assert selfed.p == pytest.approx(stats.ttest_1samp(DARWIN, 0).pvalue)
    assert selfed.p_adjusted == pytest.approx(2 * selfed.p)
    assert selfed.p_flip == 863 / 2**15
    assert (selfed.low, selfed.high) == interval([-x for x in DARWIN])
    assert selfed.mean == pytest.approx(-sum(DARWIN) / 15)
    assert (selfed.n, selfed.is_screen) == (15, False)


def test_real_effects_are_found_and_none_has_none() -> None:
    """The bars are what the docstring of verdicts promises, less the noise of 200 suites."""
    assert share([0.03], "better") >= 0.95
    assert share([-0.03], "worse") >= 0.95
    assert share([0.0], "inconclusive") + share([0.0], "equivalent") >= 0.95


def test_real_effects_are_found_among_arms_without() -> None:
    among = [0.03] + [0.0] * 7
    assert share(among, "better") >= 0.75
    assert share(among, "better", n=6) >= 0.9


def test_suites_without_effect_seldom_tell_of_one() -> None:
    told = list(suites([0.0] * 8, 200))
    assert sum("better" in names for names in told) <= 0.05 * 200
    assert sum("worse" in names for names in told) <= 0.05 * 200
    assert sum("better" in names or "worse" in names for names in told) <= 0.06 * 200


def test_suites_at_the_margin_seldom_tell_of_equivalence() -> None:
    told = sum("equivalent" in names for names in suites([MARGIN] * 4 + [-MARGIN] * 4, 200))
    assert told <= 0.05 * 200


def test_a_difference_within_the_margin_does_not_matter() -> None:
    values = {"arm": [0.010, 0.011, 0.009, 0.010, 0.011]}
    assert verdicts(values, margin=0.02)["arm"].name == "equivalent"
    assert verdicts(values, margin=0.01)["arm"].name == "better"


def test_one_seed_that_disagrees_keeps_five_from_being_better() -> None:
    """Its t-test alone would say better: p = 0.02."""
    verdict = verdicts({"arm": [-0.001, 0.03, 0.03, 0.03, 0.03]}, MARGIN)["arm"]
    assert verdict.p < 0.05 < verdict.p_flip == 2 / 32
    assert verdict.name == "inconclusive"


def test_a_level_that_no_flip_reaches_is_not_reached() -> None:
    effect = gains([0.5], seed=0, n=7)["0"]
    found = verdicts({"five": effect[:5], "seven": effect}, MARGIN, level=0.99)
    assert found["five"].p_adjusted < 0.01 < found["five"].p_flip == 1 / 32
    assert found["five"].name == "inconclusive"
    assert found["seven"].name == "better"


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4])
def test_a_screen_says_nothing_and_costs_the_others_nothing(n: int) -> None:
    full = gains([0.03], seed=0)
    for screen in ([1.0] * n, [1.0, 1.001, 1.002, 1.003][:n], [1e-9] * n):
        found = verdicts({"screen": screen, **full}, MARGIN)
        assert found["screen"].is_screen
        assert found["screen"].name == "inconclusive"
        assert found["0"] == verdicts(full, MARGIN)["0"]


def test_five_equal_values_need_no_spread() -> None:
    found = verdicts({"up": [0.5] * 5, "down": [-0.5] * 5, "same": [0.0] * 5}, MARGIN)
    assert [verdict.name for verdict in found.values()] == ["better", "worse", "equivalent"]
    nearly = [0.5, 0.5, 0.5, 0.5, math.nextafter(0.5, 1)]
    assert verdicts({"arm": nearly, "tiny": [5e-324, 0, 0, 0, 0]}, MARGIN)["arm"].p == 0


@given(
    st.lists(st.lists(st.floats(-0.1, 0.1), max_size=8), max_size=4),
    st.floats(-0.2, 0.2),
)
def test_the_opposite_values_have_the_opposite_verdict(
    table: list[list[float]], effect: float
) -> None:
    arms = {str(i): [effect + x for x in values] for i, values in enumerate(table)}
    mirrored = {arm: [-x for x in values] for arm, values in arms.items()}
    for arm, verdict in verdicts(mirrored, MARGIN).items():
        straight: Verdict = verdicts(arms, MARGIN)[arm]
        assert verdict.name == OPPOSITE.get(straight.name, straight.name)
        assert verdict.p_adjusted == pytest.approx(straight.p_adjusted)
        assert (verdict.low, verdict.high) == pytest.approx((-straight.high, -straight.low))


@pytest.mark.parametrize("hole", [None, math.nan, math.inf])
@pytest.mark.parametrize("test", [interval, sign_flip, lambda x: verdicts({"arm": x}, MARGIN)])
def test_seeds_that_are_missing_are_refused(test: Callable[..., object], hole: object) -> None:
    with pytest.raises(ValueError, match="missing"):
        test([0.1, hole, 0.2])
