"""What is drawn from a stream depends on what is in it, a seed and an epoch, on nothing else."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from effcli.engine.data.order import mix64
from effcli.engine.selection import keys as keys_module
from effcli.engine.selection.best import Best
from effcli.engine.selection.keys import finite, gumbel, keys, uniform
from effcli.engine.selection.quotas import allocate, bounds

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Items = tuple[Ids, Floats, Ids]
SEEDS = st.integers(0, 2**32)
SURPRISING = 1e-3  # the tests of chance are fixed, so this is met once and for all


def items(seed: int, size: int) -> Items:
    """Different ids in any order; keys in steps of 1/8, with many ties; 1 to 9 tokens."""
    random = np.random.default_rng(seed)
    ids = random.permutation(3 * size)[:size].astype(np.int64)
    return ids, random.integers(-20, 20, size) / 8, random.integers(1, 10, size)


def plain(ids: Ids, keys: Floats, tokens: Ids, budget: int) -> list[int]:
    """The shortest row of best items that reaches the budget, one by one."""
    kept, total = [], 0
    for _, number, count in sorted(zip(-keys, ids, tokens, strict=True)):
        if total >= budget:
            break
        kept.append(int(number))
        total += count
    return kept


def kept(best: Best) -> tuple[list[int], list[float], list[int]]:
    return best.ids.tolist(), best.keys.tolist(), best.tokens.tolist()


def offered(parts: list[Items], budget: int) -> Best:
    best = Best(budget)
    for part in parts:
        best.offer(*part)
    return best


def split(whole: Items, cuts: list[int]) -> list[Items]:
    edges = sorted(cut % (len(whole[0]) + 1) for cut in cuts)
    columns = [np.split(column, edges) for column in whole]
    return list(zip(*columns, strict=True))


# Keys


def test_noise_is_the_scrambler_of_the_order_of_data() -> None:
    ids = np.array([0, 1, 17, 2**40, 2**62])
    key = mix64(mix64(mix64(3) + 2) + 5)
    expected = [((mix64(mix64(number) ^ key) >> 12) + 0.5) / 2**52 for number in ids.tolist()]
    assert uniform(ids, 3, 2, 5).tolist() == expected


@pytest.mark.parametrize("bits", [0, 2**64 - 1])
def test_noise_is_never_0_or_1(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        keys_module, "mix64_array", lambda values: np.full_like(values, np.uint64(bits))
    )
    ids = np.arange(3)
    assert ((uniform(ids, 0, 0, 0) > 0) & (uniform(ids, 0, 0, 0) < 1)).all()
    assert np.isfinite(gumbel(ids, 0, 0)).all()


def test_noise_has_its_distribution() -> None:
    ids = np.arange(100_000)
    assert stats.kstest(uniform(ids, 1, 0, 0), "uniform").pvalue > SURPRISING
    assert stats.kstest(gumbel(ids, 1, 0), "gumbel_r").pvalue > SURPRISING


@pytest.mark.parametrize("other", [(2, 0, 0), (1, 1, 0), (1, 0, 1), (0, 1, 0), (2, 1, 0)])
def test_seeds_epochs_and_salts_are_unrelated(other: tuple[int, int, int]) -> None:
    ids = np.arange(100_000)
    assert stats.pearsonr(uniform(ids, 1, 0, 0), uniform(ids, *other)).pvalue > SURPRISING
    shifted = uniform(ids, 1, 0, 0)
    assert stats.pearsonr(shifted[1:], uniform(ids, *other)[:-1]).pvalue > SURPRISING


@given(seed=SEEDS, size=st.integers(1, 50), epoch=st.integers(0, 9))
def test_noise_belongs_to_an_id_and_not_to_its_place(seed: int, size: int, epoch: int) -> None:
    ids, scores, _ = items(seed, size)
    order = np.argsort(ids)
    there = keys(scores, ids, seed, epoch)[order]
    assert np.array_equal(there, keys(scores[order], ids[order], seed, epoch))
    assert np.array_equal(keys(scores, ids, seed, epoch, sampled=False), scores)


@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.0, 0.0], [1.5, -1.0, 0.0, 0.5]])
def test_pairs_are_drawn_without_replacement_as_often_as_softmax_says(scores: list[float]) -> None:
    """All orders of two of four, against chances in closed form: by scores, or equal."""
    draws, ids, ones = 6000, np.arange(4), np.ones(4, dtype=np.int64)
    counts = np.zeros((4, 4))
    for seed in range(draws):
        best = Best(2)
        best.offer(ids, keys(np.array(scores), ids, seed % 100, seed // 100), ones)
        counts[best.ids[0], best.ids[1]] += 1
    chance = np.exp(scores) / np.exp(scores).sum()
    expected = chance[:, None] * chance / (1 - chance[:, None])
    is_pair = ~np.eye(4, dtype=bool)
    assert counts[is_pair].sum() == draws
    assert stats.chisquare(counts[is_pair], draws * expected[is_pair]).pvalue > SURPRISING


# The best of a stream


@given(seed=SEEDS, size=st.integers(0, 60), budget=st.integers(0, 120), cuts=st.lists(SEEDS))
def test_any_chunks_in_any_order_keep_the_best_within_bounded_memory(
    seed: int, size: int, budget: int, cuts: list[int]
) -> None:
    whole = items(seed, size)
    best = Best(budget)
    thresholds = [best.threshold]
    for part in reversed(split(whole, cuts)):
        best.offer(*part)
        assert best.tokens[:-1].sum() < max(budget, 1)
        assert len(best) <= budget
        thresholds.append(best.threshold)
    assert best.ids.tolist() == plain(*whole, budget)
    assert kept(best) == kept(offered([whole], budget))
    assert thresholds == sorted(thresholds)


@given(
    seed=SEEDS,
    size=st.integers(0, 60),
    budget=st.integers(0, 120),
    cuts=st.lists(SEEDS, max_size=5),
)
def test_the_best_of_parts_are_the_best_of_the_whole(
    seed: int, size: int, budget: int, cuts: list[int]
) -> None:
    whole = items(seed, size)
    merged = Best(budget)
    for part in split(whole, cuts):
        worker = offered([part], budget)
        before = kept(worker)
        merged.merge(worker)
        assert kept(worker) == before
    assert kept(merged) == kept(offered([whole], budget))


def test_ties_go_to_the_smaller_id() -> None:
    best = Best(2)
    for number in (7, 3, 9, 5):
        best.offer(np.array([number]), np.array([1.0]), np.array([1]))
    assert best.ids.tolist() == [3, 5]


@given(seed=SEEDS, size=st.integers(1, 40), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_what_is_not_finite_is_counted_and_never_kept(seed: int, size: int, bad: float) -> None:
    ids, scores, tokens = items(seed, size)
    is_bad = ids % 3 == 0
    noisy = keys(np.where(is_bad, bad, scores), ids, seed, 0)
    assert np.array_equal(finite(noisy), ~is_bad)
    best, clean = Best(10**6), Best(10**6)
    best.offer(ids, noisy, tokens)
    clean.offer(ids[~is_bad], noisy[~is_bad], tokens[~is_bad])
    assert kept(best) == kept(clean)
    assert best.quarantined == is_bad.sum()
    clean.merge(best)
    assert clean.quarantined == is_bad.sum()


@given(
    seed=SEEDS,
    budget=st.integers(1, 60),
    times=st.lists(st.integers(0, 2**19), min_size=1, max_size=8),
)
def test_decay_without_touching_is_decay_of_every_key(
    seed: int, budget: int, times: list[int]
) -> None:
    """At every time; they are so far apart that keys are counted anew. All numbers are exact."""
    decay = 8.0
    best = Best(budget, decay)
    whole = items(seed, 6 * len(times))
    arrivals = np.repeat(sorted(times), 6)
    for count, now in enumerate(sorted(times), start=1):
        best.offer(*(column[6 * count - 6 : 6 * count] for column in whole), at=now)
        ids, fresh, tokens = (column[: 6 * count] for column in whole)
        decayed = fresh - decay * (now - arrivals[: 6 * count])
        assert best.ids.tolist() == plain(ids, decayed, tokens, budget)
        of = dict(zip(ids.tolist(), decayed.tolist(), strict=True))
        assert best.keys_at(now).tolist() == [of[number] for number in best.ids.tolist()]


@given(seed=SEEDS, budget=st.integers(1, 60), order=st.permutations(range(5)))
def test_decay_knows_no_order_and_no_parts(seed: int, budget: int, order: list[int]) -> None:
    """Chunks that come late, at times across which keys are counted anew."""
    times = [0.0, 3.0, 2.0**20, 2.0**20 + 1, 2.0**22]
    parts = split(items(seed, 30), [6, 12, 18, 24])
    whole, late, merged = Best(budget, 0.5), Best(budget, 0.5), Best(budget, 0.5)
    for place in range(5):
        whole.offer(*parts[place], at=times[place])
        late.offer(*parts[order[place]], at=times[order[place]])
        worker = Best(budget, 0.5)
        worker.offer(*parts[order[place]], at=times[order[place]])
        merged.merge(worker)
    for other in (late, merged):
        assert other.ids.tolist() == whole.ids.tolist()
        assert other.keys_at(2.0**22).tolist() == whole.keys_at(2.0**22).tolist()


def test_keys_stay_apart_however_late_it_is() -> None:
    best = Best(1, decay=1.0)
    best.offer(np.array([1, 2]), np.array([0.25, 0.5]), np.array([1, 1]), at=2.0**60)
    assert best.ids.tolist() == [2]
    merged = Best(1, decay=1.0)
    merged.merge(best)
    assert merged.keys_at(2.0**60).tolist() == [0.5]


@given(seed=SEEDS, budget=st.integers(1, 60), cut=st.integers(0, 6))
def test_a_stream_goes_on_bit_for_bit(seed: int, budget: int, cut: int) -> None:
    parts = split(items(seed, 30), [5, 10, 15, 20, 25])
    best, again = Best(budget, 0.3), Best(budget, 0.3)
    state: dict[str, Any] = {}
    for number, part in enumerate(parts):
        if number == cut:
            state = best.state_dict()
        best.offer(*part, at=number * 1.7e6)
    state = state or best.state_dict()
    assert all(isinstance(value, int | float | torch.Tensor) for value in state.values())
    again.load_state_dict(state)
    for number, part in list(enumerate(parts))[cut:]:
        again.offer(*part, at=number * 1.7e6)
    assert kept(again) == kept(best)
    assert (again.since, again.quarantined) == (best.since, best.quarantined)


# Quotas


def drawn_bounds(seed: int, clusters: int) -> tuple[Floats, Floats]:
    """Floors with a sum of at most 1; caps from the floor to anywhere."""
    random = np.random.default_rng(seed)
    floors = random.dirichlet(np.ones(clusters)) * random.random()
    return floors, floors + random.random(clusters) * random.random()


@given(
    seed=SEEDS,
    size=st.integers(0, 80),
    clusters=st.integers(1, 6),
    budget=st.integers(1, 300),
)
def test_quotas_hold(seed: int, size: int, clusters: int, budget: int) -> None:
    ids, scores, tokens = items(seed, size)
    cluster = ids % clusters
    floors, caps = drawn_bounds(seed, clusters)
    chosen = allocate(ids, scores, tokens, cluster, floors, caps, budget)
    is_chosen = np.isin(ids, chosen)
    assert len(set(chosen.tolist())) == len(chosen) == is_chosen.sum()
    total = tokens[is_chosen].sum()
    assert total >= min(budget, tokens.sum())
    assert total - (tokens[is_chosen].max() if len(chosen) else 0) < budget

    used = np.bincount(cluster[is_chosen], tokens[is_chosen], clusters)
    following = np.full(clusters, np.inf)  # the tokens of the best item that was left
    for number in range(clusters):
        of_cluster = cluster == number
        taken = plain(ids[of_cluster], scores[of_cluster], tokens[of_cluster], int(used[number]))
        assert set(taken) == set(ids[is_chosen & of_cluster].tolist())
        best_first = plain(ids[of_cluster], scores[of_cluster], tokens[of_cluster], 10**9)
        if left := best_first[len(taken) :]:
            following[number] = tokens[ids == left[0]][0]
    could_grow = used + following <= caps * budget
    is_starved = (used < floors * budget) & np.isfinite(following)
    if (is_starved & could_grow).any():
        assert (used <= caps * budget).all()
    # Beyond the cap by more than the item that led to the floor: nothing else was left.
    last = np.array([tokens[cluster == c].max(initial=0) for c in range(clusters)])
    if (used > np.maximum(caps * budget, floors * budget + last)).any():
        assert not could_grow.any()
        assert not is_starved.any()


@given(seed=SEEDS, clusters=st.integers(1, 6))
def test_every_cluster_gets_its_floor_where_the_budget_has_room(seed: int, clusters: int) -> None:
    ids, _, tokens = items(seed, 120)
    cluster = ids % clusters
    floors = 0.8 * np.random.default_rng(seed).dirichlet(np.ones(clusters))
    scores = -10.0 * cluster  # without floors, the first clusters would take all
    chosen = allocate(ids, scores, tokens, cluster, floors, floors, 300)
    used = np.bincount(cluster, tokens * np.isin(ids, chosen), clusters)
    there = np.bincount(cluster, tokens, clusters)
    assert (used >= np.minimum(floors * 300, there)).all()


@given(seed=SEEDS, size=st.integers(0, 60), budget=st.integers(1, 200))
def test_without_bounds_the_best_of_all_are_chosen(seed: int, size: int, budget: int) -> None:
    whole = items(seed, size)
    chosen = allocate(*whole, whole[0] % 4, np.zeros(4), np.full(4, np.inf), budget)
    assert chosen.tolist() == plain(*whole, budget)


@given(seed=SEEDS, size=st.integers(0, 60), budget=st.integers(1, 200))
def test_a_choice_knows_no_order_of_arrival(seed: int, size: int, budget: int) -> None:
    ids, scores, tokens = items(seed, size)
    order = np.random.default_rng(seed + 1).permutation(size)
    shares = drawn_bounds(seed, 4)
    here = allocate(ids, scores, tokens, ids % 4, *shares, budget)
    there = allocate(
        ids[order], scores[order], tokens[order], ids[order] % 4, *shares, budget=budget
    )
    assert here.tolist() == there.tolist()


def test_a_choice_by_hand() -> None:
    """Of 10 tokens at least 2 from each half and at most 6; the best are all in the first."""
    ids, tokens = np.arange(8), np.full(8, 2)
    cluster = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    scores = np.array([9.0, 8, 7, 6, 1, 2, np.nan, 3])
    shares = np.array([0.2, 0.2]), np.array([0.6, 0.6])
    assert allocate(ids, scores, tokens, cluster, *shares, 10).tolist() == [0, 1, 2, 7, 5]
    assert allocate(ids, scores, tokens, cluster, *shares, 99).tolist() == [0, 1, 2, 3, 7, 5, 4]


def test_a_floor_is_worth_more_than_a_cap() -> None:
    """The second half reaches its 5 of 10 tokens only by passing its cap of 5."""
    ids, tokens, scores = np.arange(4), np.array([5, 5, 6, 6]), np.array([4.0, 3, 2, 1])
    shares = np.array([0.0, 0.5]), np.array([1.0, 0.5])
    assert allocate(ids, scores, tokens, ids // 2, *shares, 10).tolist() == [0, 2]


@given(
    seed=SEEDS,
    clusters=st.integers(1, 64),
    low=st.floats(0, 1),
    high=st.floats(1, 4),
)
def test_bounds_leave_room_on_both_sides(seed: int, clusters: int, low: float, high: float) -> None:
    random = np.random.default_rng(seed)
    share = random.dirichlet(np.ones(clusters))
    weight = random.lognormal(0, 2, clusters)
    floors, caps = bounds(share, weight, low, high)
    assert floors.sum() <= 1 + 1e-12
    assert caps.sum() >= 1 - 1e-12
    assert ((floors >= 0) & (floors <= caps) & (caps <= 1)).all()
    assert np.allclose(floors, low * share * weight / (share @ weight))


def test_an_empty_cluster_has_no_share_and_no_weights_mean_the_pool() -> None:
    share = np.array([0.25, 0.75, 0.0])
    assert bounds(share, np.array([1.0, 1.0, np.nan]))[0].tolist() == [0.125, 0.375, 0.0]
    assert bounds(share, np.zeros(3))[1].tolist() == [0.5, 1.0, 0.0]
    with pytest.raises(ValueError, match="sides of 1"):
        bounds(share, np.ones(3), low=1.5)
