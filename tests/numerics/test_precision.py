"""Bits are spent where they help, never more bytes than there are, and uniformly if in doubt."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from effcli.engine.quant.precision import (
    MEASURED_AGAIN,
    OPTIONS,
    Bits,
    alike,
    assign,
    candidates,
    measured,
)
from effcli.errors import InputError

Floats = NDArray[np.float64]
WINDOWS = 12


class _Tensors:
    """Tensors whose damage adds up: `scales` times 4^-bits, and noise that windows share."""

    def __init__(self, scales: list[float], numbers: list[int], noise: float = 0.0) -> None:
        self.names = [f"t{index}" for index in range(len(scales))]
        self._scale = dict(zip(self.names, scales, strict=True))
        self._numbers = dict(zip(self.names, numbers, strict=True))
        self._noise, self._rng = noise, np.random.default_rng(0)
        self.asked: list[dict[str, float]] = []

    def damage(self, bits: Bits) -> Floats:
        self.asked.append(dict(bits))
        base = np.linspace(0.5, 1.5, WINDOWS)
        total = sum(self._scale[name] * 4.0**-one for name, one in bits.items())
        return base * total + self._noise * self._rng.normal(size=WINDOWS)

    def size(self, name: str, bits: float) -> int:
        scales = 2 * math.ceil(self._numbers[name] / 16)  # bytes that no formula of bits has
        return math.ceil(self._numbers[name] * bits / 8) + scales

    def bytes(self, bits: Bits) -> int:
        return sum(self.size(name, one) for name, one in bits.items())


@given(
    scales=st.lists(st.floats(0.01, 100), min_size=1, max_size=4),
    numbers=st.lists(st.integers(16, 400), min_size=4, max_size=4),
    share=st.floats(0, 1),
)
@settings(max_examples=40)
def test_few_tensors_get_what_brute_force_finds(
    scales: list[float], numbers: list[int], share: float
) -> None:
    tensors = _Tensors(scales, numbers[: len(scales)])
    least, most = (tensors.bytes(dict.fromkeys(tensors.names, one)) for one in (1.0, 8.0))
    budget = int(least + share * (most - least))
    found = assign(tensors.names, tensors.damage, tensors.size, budget)
    best = min(
        tensors.damage(bits).mean()
        for way in itertools.product(OPTIONS, repeat=len(scales))
        if tensors.bytes(bits := dict(zip(tensors.names, way, strict=True))) <= budget
    )
    assert found.bytes == tensors.bytes(found.bits) <= budget
    assert found.damage == pytest.approx(best, rel=1e-9)
    assert found.damage <= found.uniform_damage
    assert found.uniform == max(
        one for one in OPTIONS if tensors.bytes(dict.fromkeys(tensors.names, one)) <= budget
    )


@given(
    st.lists(st.lists(st.floats(0, 10), min_size=5, max_size=5), min_size=5, max_size=12),
    st.data(),
)
@settings(max_examples=40)
def test_many_tensors_share_bits_by_cluster_and_no_way_is_missed_or_too_large(
    rows: list[list[float]], data: st.DataObject
) -> None:
    table = np.array(rows)
    sizes = (
        np.cumsum(np.ones_like(table), axis=1).astype(np.int64)
        * (1 + np.arange(len(table)))[:, None]
    )
    budget = data.draw(st.integers(int(sizes[:, 0].sum()), int(sizes[:, -1].sum())))
    clusters = alike(table)
    count = clusters.max() + 1
    assert count <= 4
    ways = candidates(table, clusters, sizes, budget)
    every = np.arange(len(table))
    totals = [(table[every, list(way)].sum(), sizes[every, list(way)].sum()) for way in ways]
    assert all(size <= budget for _, size in totals)
    damages = [damage for damage, _ in totals]
    assert damages == pytest.approx(sorted(damages))
    fitting = 0
    for choice in itertools.product(range(5), repeat=count):
        fitting += sizes[every, np.array(choice)[clusters]].sum() <= budget
    assert len(ways) == fitting
    for way in ways[:5]:
        for cluster in range(count):
            assert (
                len({option for option, c in zip(way, clusters, strict=True) if c == cluster}) == 1
            )


def test_tensors_that_are_damaged_alike_are_together() -> None:
    kinds = np.array([0, 1, 2, 3] * 5)
    curves = 10.0 ** -np.array([[0, 1, 2, 4, 6], [3, 3, 3, 4, 5], [1, 5, 5, 5, 6], [5, 6, 6, 7, 7]])
    table = curves[kinds] * np.random.default_rng(0).uniform(0.8, 1.2, (20, 5))
    found = alike(table)
    pairs = {(kind, cluster) for kind, cluster in zip(kinds, found, strict=True)}
    assert len(pairs) == 4
    assert len(set(alike(np.ones((7, 5))))) == 1
    assert alike(np.ones((3, 5))).tolist() == [0, 1, 2]  # so few need not share


def test_a_few_tensors_that_matter_get_the_bits() -> None:
    scales = [50.0] * 3 + [0.05] * 9
    tensors = _Tensors(scales, [256] * 12, noise=1e-4)
    budget = tensors.bytes(dict.fromkeys(tensors.names, 2.0))
    found = assign(tensors.names, tensors.damage, tensors.size, budget)
    assert found.is_mixed
    assert found.uniform == 2.0
    assert found.damage < found.uniform_damage / 4
    assert found.gain > 2 * found.gain_error
    assert min(found.bits[name] for name in tensors.names[:3]) >= 4
    assert tensors.bytes(found.bits) <= budget


def test_where_nothing_is_gained_bits_are_uniform() -> None:
    """All tensors alike, and noise as large as the differences."""
    uniform = 0
    for seed in range(20):
        tensors = _Tensors([1.0] * 6, [256] * 6, noise=0.3)
        tensors._rng = np.random.default_rng(seed)
        budget = tensors.bytes(dict.fromkeys(tensors.names, 2.0))
        found = assign(tensors.names, tensors.damage, tensors.size, budget)
        if not found.is_mixed:
            uniform += 1
            assert found.damage == found.uniform_damage
            assert set(found.bits.values()) == {2.0}
    assert uniform >= 14  # the best of ten ways is lucky more often than one of forty


def test_errors_that_meet_are_measured_again_and_the_best_are() -> None:
    """Two tensors that are harmless alone ruin each other at one bit."""
    tensors = _Tensors([3.0, 3.0, 0.01, 0.01], [256] * 4)

    def damage(bits: Bits) -> Floats:
        meets = bits.get("t2") == 1.0 and bits.get("t3") == 1.0
        return tensors.damage(bits) + 5.0 * meets

    budget = tensors.bytes(dict.fromkeys(tensors.names, 2.0))
    naive = assign(tensors.names, tensors.damage, tensors.size, budget)
    assert naive.bits["t2"] == naive.bits["t3"] == 1.0
    tensors.asked.clear()
    found = assign(tensors.names, damage, tensors.size, budget)
    assert not found.bits["t2"] == found.bits["t3"] == 1.0
    together = [asked for asked in tensors.asked if len(asked) == 4]
    assert len(together) <= MEASURED_AGAIN + 1


def test_damage_that_is_not_finite_is_the_worst_and_below_zero_is_none() -> None:
    def damage(bits: Bits) -> Floats:
        broken = math.nan if 1.0 in bits.values() else math.inf if 1.58 in bits.values() else 0.0
        return np.array([0.1, -0.3, -0.1]) * len(bits) + broken

    table = measured(["a", "b"], damage)
    assert np.all(table[:, :2] == table.max())
    assert np.isfinite(table).all()
    sizes = np.array([[1, 2, 3, 4, 5]] * 2)
    assert candidates(table, alike(table), sizes, 10)[0] == (2, 2)  # no better with more bytes
    found = assign(["a", "b"], damage, lambda _, bits: int(10 * bits), 70)
    assert set(found.bits.values()) == {2.0}


def test_a_budget_that_nothing_fits_is_refused() -> None:
    tensors = _Tensors([1.0], [256])
    with pytest.raises(InputError, match=r"10 bytes are fewer .* 64 at 1 bits"):
        assign(tensors.names, tensors.damage, tensors.size, 10)
