"""Clusters of passages by the tokens and pairs of tokens that are in them.

Counts are hashed into 256 buckets (Weinberger et al. 2009); the directions in which their
square roots differ from the mean are clustered by mini-batch k-means (Sculley 2010). Without
the mean, which is much the same in all text, most centers would be left with one passage.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effcli.engine.selection.duplicates import chunks
from effcli.engine.selection.passages import Ids, Text

Floats = NDArray[np.float32]
Numbers = NDArray[np.int16]
BUCKETS = 256
SAMPLE = 20_000  # passages that centers are found from
LEAST = 8  # passages for each cluster
CHUNK = 2**17  # tokens; there may be as many passages, each with all buckets
_BATCH = 4096  # with smaller ones centers starve
_FACTOR, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(64 - 8)


@dataclass(frozen=True)
class Clusters:
    """Where the centers of clusters are, the one of the most passages first."""

    mean: Floats
    """Of the features, of shape (BUCKETS)."""
    centers: Floats
    """In directions from the mean, of shape (clusters, BUCKETS)."""

    def assign(self, features: Floats) -> Numbers:
        """The nearest center of each passage, the first of those that are equally near."""
        from threadpoolctl import threadpool_limits

        # More threads would add in another order; in float32 that order could decide.
        places, centers = _directions(features, self.mean).astype(float), self.centers.astype(float)
        with threadpool_limits(1):
            nearness = places @ centers.T - (centers**2).sum(1) / 2
        numbers: Numbers = np.argmax(nearness, axis=1).astype(np.int16)
        return numbers


def find_clusters(
    tokens: Text | Ids,
    starts: Ids,
    lengths: Ids,
    *,
    clusters: int = 64,
    seed: int,
    vocab_size: int,
) -> tuple[Clusters, Numbers]:
    """Find at most that many clusters, and the one of each passage.

    Starts ascend and passages do not overlap. There is at most one cluster for LEAST passages,
    and none without any. The result depends on no number of threads: there is only one.
    """
    count = len(starts)
    drawn = np.random.default_rng(seed).permutation(count)[:SAMPLE]
    drawn.sort()
    sample = features(tokens, starts[drawn], lengths[drawn], vocab_size=vocab_size)
    mean = sample.sum(0) / np.float32(max(1, len(sample)))
    number = min(clusters, max(1, count // LEAST))
    found = Clusters(mean, _centers(_directions(sample, mean), number, seed))
    numbers = np.empty(count, dtype=np.int16)
    for part, row, edges in chunks(tokens, starts, lengths, CHUNK):
        numbers[part] = found.assign(_features(row, edges, vocab_size))
    sizes = np.bincount(numbers, minlength=len(found.centers))
    order = np.argsort(-sizes, kind="stable")[: max(1, np.count_nonzero(sizes))]
    place = np.empty(len(sizes), dtype=np.int16)
    place[order] = np.arange(len(order))
    return Clusters(mean, found.centers[order]), place[numbers]


def features(tokens: Text | Ids, starts: Ids, lengths: Ids, *, vocab_size: int) -> Floats:
    """Of each passage: square roots of its shares of buckets, so every row has length 1.

    Starts ascend and passages do not overlap. A passage without tokens has zeros. Returns an
    array of shape (passages, BUCKETS).
    """
    rows = np.empty((len(starts), BUCKETS), dtype=np.float32)
    for part, row, edges in chunks(tokens, starts, lengths, CHUNK):
        rows[part] = _features(row, edges, vocab_size)
    return rows


def _features(tokens: Ids, edges: Ids, vocab_size: int) -> Floats:
    ids = tokens.astype(np.uint64)
    first = np.repeat(np.arange(len(edges) - 1) * BUCKETS, np.diff(edges))  # of its passage
    is_inside = first[1:] == first[:-1]
    pairs = (ids[:-1] + np.uint64(1)) * np.uint64(vocab_size) + ids[1:]  # behind single tokens
    buckets = np.concatenate((first + _bucket(ids), (first[1:] + _bucket(pairs))[is_inside]))
    size = (len(edges) - 1) * BUCKETS
    counts = np.bincount(buckets, minlength=size).reshape(-1, BUCKETS).astype(np.float32)
    rows: Floats = np.sqrt(counts / np.maximum(1, counts.sum(1, keepdims=True)))
    return rows


def _bucket(codes: NDArray[np.uint64]) -> Ids:
    return ((codes * _FACTOR) >> _SHIFT).astype(np.int64)


def _directions(features: Floats, mean: Floats) -> Floats:
    """Where features are from the mean, in rows of length 1."""
    apart = features - mean
    lengths = np.linalg.norm(apart, axis=1, keepdims=True)
    directions: Floats = apart / np.maximum(lengths, np.float32(1e-12))
    return directions


def _centers(places: Floats, clusters: int, seed: int) -> Floats:
    if clusters == 1:
        return np.zeros((1, places.shape[1]), dtype=np.float32)
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    means = MiniBatchKMeans(clusters, n_init=1, batch_size=_BATCH, random_state=seed % 2**32)
    with threadpool_limits(1):
        centers: Floats = means.fit(places).cluster_centers_
    return centers.astype(np.float32)
