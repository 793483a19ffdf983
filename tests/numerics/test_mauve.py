"""MAUVE: 1 where nothing tells two sets of texts apart, near 0 where everything does."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from effcli.engine.measure.mauve import AT_ONCE, area, mauve, text_features
from effcli.engine.models.phase import Phase
from effcli.settings.phase import PhaseSettings

LEAST = 1 / 252  # under (1 - w)^5 over w^5: 5 B(5, 6)
Points = NDArray[np.float64]
counts = st.lists(st.integers(1, 50), min_size=2, max_size=8)


def _points(seed: int, count: int = 200, features: int = 8) -> Points:
    return np.random.default_rng(seed).normal(size=(count, features))


def _shares(*counts: float) -> Points:
    return np.array(counts) / sum(counts)


@given(counts, st.integers(0, 2**32 - 1))
def test_the_area_is_a_likeness_of_shares(first: list[int], seed: int) -> None:
    p, q = _shares(*first), _shares(*np.random.default_rng(seed).integers(1, 50, len(first)))
    assert area(p, p) == pytest.approx(1)
    assert area(p, q) == pytest.approx(area(q, p), abs=1e-12)
    assert LEAST < area(p, q) <= 1 + 1e-12
    half = np.append(p[:-1], [p[-1] / 2] * 2), np.append(q[:-1], [q[-1] / 2] * 2)
    assert area(*half) == pytest.approx(area(p, q), abs=1e-9)  # bins may be cut in any two


def test_the_area_of_what_has_nothing_in_common_is_that_of_the_mixture_alone() -> None:
    p = _shares(1, 1, 1e-15, 1e-15)
    assert area(p, p[::-1]) == pytest.approx(LEAST, rel=0.03)  # 25 weights make up the curve


def test_the_same_texts_cannot_be_told_apart_and_other_ones_can() -> None:
    first, second = _points(0), _points(1)
    assert mauve(first, first) == pytest.approx(1)
    assert mauve(first, first[::-1]) == pytest.approx(1)
    assert mauve(first, second) > 0.95
    assert mauve(first, second + 100) < 0.02
    assert mauve(np.ones((30, 4)), np.ones((30, 4))) == pytest.approx(1)


def test_it_falls_with_the_distance() -> None:
    first, second = _points(0), _points(1)
    found = [mauve(first, second + shift) for shift in (0.0, 0.3, 0.6, 1.0, 2.0)]
    assert all(less < more for more, less in pairwise(found)), found


def test_neither_the_order_nor_the_number_of_threads_matters() -> None:
    first, second = _points(0), _points(1) + 0.4
    found = mauve(first, second)
    assert found == mauve(first, second)
    assert found == pytest.approx(mauve(second, first), abs=1e-12)
    shuffled = first[np.random.default_rng(2).permutation(len(first))]
    assert found == pytest.approx(mauve(shuffled, second), abs=1e-12)


def test_features_are_of_each_text_alone() -> None:
    model = Phase(PhaseSettings(layers=1, width=16, heads=2, context=16), 257)
    texts = torch.randint(257, (AT_ONCE + 3, 16))
    found = text_features(model.train(), texts)
    assert model.training
    assert found.shape == (len(texts), 16)
    assert np.square(found).mean(1) == pytest.approx(np.ones(len(texts)), rel=1e-3)
    alone = text_features(model, texts[-1:])
    assert found[-1:] == pytest.approx(alone, abs=1e-5)
    changed = texts.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 257
    assert (np.abs(text_features(model, changed) - found).max(1) > 1e-4).all()
