"""Batches that hold every cluster of windows in proportion, so that fewer are lopsided by chance.

The clusters take turns as chairmen do who are to sit in proportion (Tijdeman 1980, "The
chairman assignment problem"): after any number of sequences, a cluster has had its exact
share of them to within one. So an epoch ends with every window read once, wherever a batch
begins, and the data keep their distribution.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from effcli.engine.data.corpus import Split
from effcli.engine.data.order import mix64, permuted
from effcli.engine.processes import Processes
from effcli.engine.protocols import Batch, Loss, sent
from effcli.engine.records import Record
from effcli.engine.selection.clusters import find_clusters
from effcli.errors import InputError

Numbers = NDArray[np.int64]
LEAST_BATCHES = 2  # that the windows of a cluster must fill
_SAMPLE = 4096  # windows of a batch of k-means


@dataclass(frozen=True, slots=True)
class StrataFound(Record):
    """Mean training loss of each cluster since the last look, in nats per token."""

    kind: ClassVar[str] = "strata"
    sequences: list[int]
    """Read of each cluster since then."""
    losses: list[float | None]


class Turns:
    """Whose turn it is: an endless order of clusters, the same in every epoch.

    `sizes` are windows of each cluster, none of them 0. With K clusters, the discrepancy is at
    most 1 - 1/(2K - 2) after any number of turns, in exact arithmetic.
    """

    def __init__(self, sizes: Numbers) -> None:
        self._sizes, self._total = sizes.astype(np.int64), int(sizes.sum())
        self._parts = max(1, 2 * len(sizes) - 2)  # of a turn: what the bound is a multiple of
        self.taken = np.zeros(len(sizes), dtype=np.int64)

    def next(self, count: int) -> Numbers:
        """The clusters of the next turns."""
        turns = np.empty(count, dtype=np.int64)
        unit = self._total * self._parts
        done = int(self.taken.sum())
        for place in range(count):
            due = ((done + place + 1) * self._sizes - self.taken * self._total) * self._parts
            late = -(-(unit - self._total - due) // (self._sizes * self._parts))  # turns until
            late[due < self._total] = np.iinfo(np.int64).max  # it is not yet allowed
            turns[place] = chosen = int(late.argmin())
            self.taken[chosen] += 1
        return turns


class Stratified:
    """Every window once per epoch, in an order that is a function of (seed, epoch, cluster, index).

    `clusters` has the number of each window's cluster, from 0; all of them have windows. Its
    state is how many windows of each cluster were drawn.
    """

    def __init__(
        self,
        split: Split,
        context: int,
        sequences: int,
        seed: int,
        clusters: Numbers,
        processes: Processes | None = None,
    ) -> None:
        assert len(clusters) == split.windows(context), "every window has a cluster"
        self._split, self._context, self._sequences, self._seed = split, context, sequences, seed
        self._clusters = torch.from_numpy(clusters.astype(np.int64))
        self._sizes = np.bincount(clusters)
        assert self._sizes.all(), "every cluster has windows"
        self._members = np.argsort(clusters, kind="stable")
        self._first = np.cumsum(self._sizes) - self._sizes
        self._turns = Turns(self._sizes)
        self._processes = processes
        self._rank = 0 if processes is None else processes.rank
        self._heard: Float[Tensor, "2 clusters"] = torch.zeros(2, len(self._sizes))

    def draw(self, progress: float) -> Batch:
        """The windows whose clusters have the next turns."""
        del progress  # what is read does not depend on it
        before = self._turns.taken.copy()
        turns = self._turns.next(self._sequences)
        windows = np.empty(self._sequences, dtype=np.int64)
        for cluster in np.unique(turns):
            chosen = turns == cluster
            number = before[cluster] + np.arange(chosen.sum())
            windows[chosen] = self._windows(int(cluster), number)
        starts = self._split.begins(windows, self._context)
        tokens = torch.from_numpy(self._split.read(starts, self._context + 1))
        return Batch(tokens[:, :-1], tokens[:, 1:], torch.from_numpy(windows))

    def _windows(self, cluster: int, numbers: Numbers) -> Numbers:
        """Of an endless order of one cluster's windows: each epoch its own."""
        size, places = int(self._sizes[cluster]), np.empty_like(numbers)
        for epoch in np.unique(numbers // size):
            chosen = numbers // size == epoch
            key = mix64(mix64(mix64(self._seed) + int(epoch)) ^ mix64(cluster))
            places[chosen] = permuted(numbers[chosen] % size, size, key)
        windows: Numbers = self._members[self._first[cluster] + places]
        return windows

    def feedback(self, batch: Batch, loss: Loss) -> None:
        """Add up the losses of each cluster, where they are: nobody waits for them."""
        losses = loss.per_sequence.float()
        if self._clusters.device != losses.device:
            self._clusters = self._clusters.to(losses.device)
            self._heard = self._heard.to(losses.device)
        clusters = self._clusters[sent(batch.ids, losses.device)]
        self._heard = self._heard.index_add(
            1, clusters, torch.stack((losses, losses.new_ones(len(losses))))
        )

    def hear(self, loss: float) -> list[Record]:
        """Tell how each cluster went since the last time."""
        del loss  # of held-out text, which has no clusters
        heard, self._heard = self._heard, torch.zeros_like(self._heard)
        if self._processes is not None:
            self._processes.add_up([heard])
        sums, counts = heard.tolist()
        losses = [
            total / count if count else None for total, count in zip(sums, counts, strict=True)
        ]
        return [StrataFound([int(count) for count in counts], losses)]

    @property
    def unique_tokens(self) -> int:
        """Every window is new until its epoch ends."""
        return int(np.minimum(self._turns.taken, self._sizes).sum()) * self._context

    def state_dict(self) -> dict[str, Any]:
        """How many windows of each cluster were drawn, and what this process heard of them."""
        return {"taken": self._turns.taken.tolist(), "heard": self._heard, "rank": self._rank}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._turns.taken = np.array(state["taken"], dtype=np.int64)
        if state["rank"] != self._rank:  # what another heard is not to be told twice
            state = {"heard": torch.zeros_like(self._heard)}
        self._heard = state["heard"].to(self._heard.device)


def by_ngrams(split: Split, context: int, vocab_size: int, seed: int, clusters: int) -> Numbers:
    """At most so many clusters of the windows of a text, by the tokens and pairs in them."""
    starts = split.begins(np.arange(split.windows(context), dtype=np.int64), context)
    lengths = np.full_like(starts, context)
    how = {"clusters": clusters, "seed": seed, "vocab_size": vocab_size}
    return find_clusters(split, starts, lengths, **how)[1].astype(np.int64)


def by_states(states: NDArray[np.float32], seed: int, clusters: int) -> Numbers:
    """At most so many clusters of windows by the directions of their pooled hidden states.

    `states` has a row for each window. Seed and states alone decide (Sculley 2010).
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    if not np.isfinite(states).all():
        raise InputError("a hidden state is not finite", "the teacher is damaged, or diverged")
    lengths = np.linalg.norm(states, axis=1, keepdims=True)
    places = states / np.maximum(lengths, np.float32(1e-12))
    distinct = len(np.unique(places[:_SAMPLE], axis=0))  # k-means warns of more clusters
    how: dict[str, Any] = {"n_init": 3, "batch_size": _SAMPLE, "reassignment_ratio": 0.01}
    means = MiniBatchKMeans(max(1, min(clusters, distinct)), random_state=seed % 2**32, **how)
    with threadpool_limits(1):
        found = means.fit_predict(places)
    return _numbered(found)


def strata(
    make: Callable[[int], Numbers], clusters: int, sequences: int
) -> tuple[Numbers | None, str | None]:
    """As many clusters as fill batches, the largest first, and what to say where they are fewer.

    `make` finds at most as many as it is asked for. There are none, but words, where the data
    have only one.
    """
    count = clusters
    while count > 1:
        numbers = _numbered(make(count))
        sizes = np.bincount(numbers)
        enough = int((sizes >= LEAST_BATCHES * sequences).sum())
        if enough == len(sizes) > 1:
            if enough == clusters:
                return numbers, None
            few = f"others would fill fewer than {LEAST_BATCHES} batches"
            return numbers, f"{enough} clusters of data instead of {clusters}: {few}"
        count = min(count - 1, max(2, enough)) if len(sizes) > 1 else 1
    return None, "the data have one cluster: batches are drawn without regard to clusters"


def _numbered(found: NDArray[Any]) -> Numbers:
    """Numbers from 0 without gaps, the largest cluster first."""
    _, numbers, sizes = np.unique(found, return_inverse=True, return_counts=True)
    place = np.empty(len(sizes), dtype=np.int64)
    place[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return place[numbers]
