"""The order of the data is a permutation, needs no memory, and differs between epochs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from effcli.engine.data.order import mix64, permuted, training_order


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_every_index_comes_once(size: int, key: int) -> None:
    assert sorted(permuted(np.arange(size), size, key)) == list(range(size))


@given(
    size=st.integers(1, 500),
    seed=st.integers(0, 2**63),
    cuts=st.lists(st.integers(1, 400), min_size=1, max_size=6),
)
def test_parts_of_the_order_are_the_order(size: int, seed: int, cuts: list[int]) -> None:
    """Resume and any number of processes see the same stream."""
    whole = training_order(0, sum(cuts), size, seed)
    start, parts = 0, []
    for cut in cuts:
        parts.append(training_order(start, cut, size, seed))
        start += cut
    assert np.array_equal(np.concatenate(parts), whole)


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(training_order(e * 100, 100, 100, s)) for e in range(4) for s in range(4)}
    assert len(orders) == 16


def test_the_order_looks_random() -> None:
    order = training_order(0, 50_000, 50_000, 1).astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(order, np.arange(50_000))[0, 1]) < 0.02


def test_a_large_order_takes_no_memory() -> None:
    assert permuted(np.array([0, 10**12]), 10**13, 5).max() < 10**13


def test_the_scrambler_is_splitmix64() -> None:
    assert mix64(0) == 0xE220A8397B1DCDAF  # the first number of the reference with seed 0
