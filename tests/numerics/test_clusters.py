"""Topics that were planted in a text are found again, always in the same way."""

import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from effcli.engine.selection import clusters as module
from effcli.engine.selection.clusters import (
    BUCKETS,
    Clusters,
    features,
    find_clusters,
)

Row = NDArray[np.int64]
VOCAB = 4096


def _topics(count: int, topics: int, seed: int = 0) -> tuple[Row, Row, Row, Row]:
    """Passages of a common vocabulary and, half the time, the words of one topic; unequal sizes."""
    rng = np.random.default_rng(seed)
    weights = np.arange(topics, 0, -1) + topics
    labels = rng.choice(topics, count, p=weights / weights.sum())
    lengths = rng.integers(80, 400, count)
    common = rng.zipf(1.5, lengths.sum()) % VOCAB
    words = rng.integers(0, VOCAB, (topics, 40))
    own = words[np.repeat(labels, lengths), rng.integers(0, 40, lengths.sum())]
    tokens = np.where(rng.random(lengths.sum()) < 0.5, own, common)
    return tokens, np.cumsum(lengths) - lengths, lengths, labels


@pytest.mark.parametrize("topics", [2, 6, 12])
def test_planted_topics_are_recovered(topics: int) -> None:
    tokens, starts, lengths, labels = _topics(1500, topics)
    _, found = find_clusters(tokens, starts, lengths, clusters=topics, seed=0, vocab_size=VOCAB)
    assert adjusted_rand_score(labels, found) > 0.9


def test_the_first_cluster_is_the_largest_and_none_is_empty() -> None:
    tokens, starts, lengths, _ = _topics(1500, 6)
    found, numbers = find_clusters(tokens, starts, lengths, clusters=10, seed=1, vocab_size=VOCAB)
    sizes = np.bincount(numbers)
    assert np.all(np.diff(sizes) <= 0)
    assert sizes.min() > 0
    assert found.centers.shape == (len(sizes), BUCKETS)
    assert numbers.dtype == np.int16


def test_a_seed_gives_the_same_clusters_and_another_seed_others() -> None:
    text = _topics(1000, 6)[:3]
    one, again, other = (
        find_clusters(*text, clusters=20, seed=seed, vocab_size=VOCAB) for seed in (3, 3, 4)
    )
    assert np.array_equal(one[1], again[1])
    assert np.array_equal(one[0].centers, again[0].centers)
    assert not np.array_equal(one[1], other[1])


def test_text_that_arrives_later_is_assigned_as_the_text_before_was() -> None:
    tokens, starts, lengths, _ = _topics(1000, 6)
    found, numbers = find_clusters(tokens, starts, lengths, clusters=12, seed=0, vocab_size=VOCAB)
    kept = Clusters(**{name: array.copy() for name, array in vars(found).items()})
    rows = features(tokens, starts, lengths, vocab_size=VOCAB)
    assert np.array_equal(kept.assign(rows), numbers)
    single = [int(kept.assign(row[None])[0]) for row in rows[:100]]
    assert single == numbers[:100].tolist()


def test_centers_from_a_sample_serve_all_passages(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, starts, lengths, labels = _topics(1500, 6)
    monkeypatch.setattr(module, "SAMPLE", 300)
    _, found = find_clusters(tokens, starts, lengths, clusters=6, seed=0, vocab_size=VOCAB)
    assert adjusted_rand_score(labels, found) > 0.9


@pytest.mark.parametrize("count", [1, 7, 15])
def test_few_passages_are_one_cluster(count: int) -> None:
    tokens, starts, lengths, _ = _topics(count, 2)
    found, numbers = find_clusters(tokens, starts, lengths, seed=0, vocab_size=VOCAB)
    assert numbers.tolist() == [0] * count
    assert len(found.centers) == 1


def test_more_clusters_than_passages_are_cut_to_an_eighth_of_them() -> None:
    tokens, starts, lengths, _ = _topics(40, 2)
    _, numbers = find_clusters(tokens, starts, lengths, clusters=64, seed=0, vocab_size=VOCAB)
    assert 2 <= numbers.max() + 1 <= 5


def test_no_passages_are_no_error() -> None:
    nothing = np.empty(0, dtype=np.int64)
    found, numbers = find_clusters(nothing, nothing, nothing, seed=0, vocab_size=VOCAB)
    assert numbers.shape == (0,)
    assert np.isfinite(found.centers).all()


def test_passages_that_are_all_the_same_are_one_cluster() -> None:
    tokens = np.tile(np.arange(50), 100)
    starts, lengths = np.arange(100) * 50, np.full(100, 50)
    _, numbers = find_clusters(tokens, starts, lengths, clusters=8, seed=0, vocab_size=VOCAB)
    assert not numbers.any()


def _features_by_hand(row: list[int]) -> NDArray[np.float64]:
    """Python's integers instead of arrays."""
    codes = [*row, *((a + 1) * VOCAB + b for a, b in pairwise(row))]
    counts = np.zeros(BUCKETS)
    for code in codes:
        counts[(code * 0x9E3779B97F4A7C15 % 2**64) >> 56] += 1
    return np.sqrt(counts / max(1, counts.sum()))


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=12), min_size=1, max_size=12))
def test_features_are_counted_as_by_hand_and_stop_at_the_edges(rows: list[list[int]]) -> None:
    lengths = np.array([len(row) for row in rows])
    tokens = np.array([token for row in rows for token in row], dtype=np.int64)
    found = features(tokens, np.cumsum(lengths) - lengths, lengths, vocab_size=VOCAB)
    expected = np.stack([_features_by_hand(row) for row in rows])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose((found**2).sum(1), lengths > 0, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 1000, 10**6])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = _topics(300, 4)[:3]
    expected = find_clusters(*text, clusters=8, seed=0, vocab_size=VOCAB)
    monkeypatch.setattr(module, "CHUNK", chunk)
    found = find_clusters(*text, clusters=8, seed=0, vocab_size=VOCAB)
    assert np.array_equal(found[0].centers, expected[0].centers)
    assert np.array_equal(found[1], expected[1])


_PROGRAM = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from test_clusters import VOCAB, _topics, find_clusters
found, numbers = find_clusters(*_topics(1000, 6)[:3], clusters=20, seed=0, vocab_size=VOCAB)
print(hashlib.sha256(found.centers.tobytes() + numbers.tobytes()).hexdigest())
"""


def test_the_number_of_threads_changes_nothing() -> None:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, os.path.dirname(__file__)],
            env=os.environ | dict.fromkeys(names, threads),
            stdout=subprocess.PIPE,
        )
        for threads in ("1", "4")
    ]
    hashes = [program.communicate(timeout=120)[0] for program in programs]
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 65
