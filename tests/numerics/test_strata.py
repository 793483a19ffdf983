"""Every batch holds every cluster in proportion, every window comes once per epoch."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Settings
from exactness import differences, final_state, stopping_after
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from effcli.engine.control.strata import (
    StrataFound,
    Stratified,
    Turns,
    by_ngrams,
    by_states,
    strata,
)
from effcli.engine.data.corpus import Corpus, Split
from effcli.engine.processes import Processes
from effcli.engine.protocols import Batch, BatchSource, Loss
from effcli.engine.runs.rundir import RunDir
from effcli.engine.session import Session
from effcli.errors import InputError, Stopped

CONTEXT = 4


def _split(tmp_path: Path, tokens: NDArray[Any]) -> Split:
    tokens.astype("<u2").tofile(tmp_path / "row.bin")
    entry = {"tokens": len(tokens), "documents": 1, "bytes": 1, "shards": ["row.bin"], "files": {}}
    return Split(tmp_path, entry, "uint16", 2**30)


def _source(tmp_path: Path, sizes: list[int], sequences: int, **how: Any) -> Stratified:
    """Windows of clusters that lie one after the other."""
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    split = _split(tmp_path, np.arange(len(clusters) * CONTEXT + 1) % 60_000)
    return Stratified(split, CONTEXT, sequences, how.pop("seed", 0), clusters, **how)


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=9), turns=st.integers(1, 400))
@settings(max_examples=60)
def test_after_any_number_of_turns_a_cluster_has_its_share_to_within_one(
    sizes: list[int], turns: int
) -> None:
    order = Turns(np.array(sizes)).next(turns)
    taken = np.cumsum(order[:, None] == np.arange(len(sizes)), axis=0)
    shares = np.arange(1, turns + 1)[:, None] * np.array(sizes) / sum(sizes)
    bound = 1 - 1 / max(1, 2 * len(sizes) - 2) if len(sizes) > 1 else 0
    assert np.abs(taken - shares).max() <= bound + 1e-9


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=9), cuts=st.data())
@settings(max_examples=30)
def test_turns_do_not_depend_on_how_many_are_asked_for_at_once(
    sizes: list[int], cuts: st.DataObject
) -> None:
    counts = cuts.draw(st.lists(st.integers(0, 20), max_size=8))
    turns = Turns(np.array(sizes))
    parts = [turns.next(count) for count in counts]
    whole = Turns(np.array(sizes)).next(sum(counts))
    assert np.concatenate([*parts, []]).tolist() == whole.tolist()


@pytest.mark.parametrize("sizes", [[64], [40, 24], [100, 50, 25, 12, 7, 4], [17] * 8, [500, 3]])
@pytest.mark.parametrize("sequences", [1, 8, 11])
def test_every_batch_is_in_proportion_and_every_epoch_complete(
    tmp_path: Path, sizes: list[int], sequences: int
) -> None:
    source = _source(tmp_path, sizes, sequences)
    assert isinstance(source, BatchSource)
    total, epochs = sum(sizes), 3
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    drawn: list[int] = []
    given_ = np.zeros(len(sizes))
    while len(drawn) < epochs * total:
        ids = source.draw(0.0).ids.numpy()
        due = (len(drawn) + sequences) * np.array(sizes) / total - given_
        held = np.bincount(clusters[ids], minlength=len(sizes))
        assert np.abs(held - due).max() < 1
        if sequences > 1 and max(sizes) <= total * (1 - 2 / sequences):
            assert np.count_nonzero(held) > 1  # never one cluster per step
        given_ += held
        drawn.extend(ids.tolist())
        assert source.unique_tokens == len(set(drawn)) * CONTEXT
    orders = [drawn[epoch * total : (epoch + 1) * total] for epoch in range(epochs)]
    assert all(sorted(order) == list(range(total)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


def test_what_is_read_are_the_windows_that_it_says(tmp_path: Path) -> None:
    batch = _source(tmp_path, [9, 7], 6).draw(0.5)
    for window, inputs, targets in zip(batch.ids, batch.inputs, batch.targets, strict=True):
        start = int(window) * CONTEXT
        assert inputs.tolist() == list(range(start, start + CONTEXT))
        assert targets.tolist() == list(range(start + 1, start + CONTEXT + 1))


def test_a_seed_gives_the_same_order_and_another_seed_another(tmp_path: Path) -> None:
    one, again, other = (
        torch.cat([_source(tmp_path, [30, 20], 10, seed=seed).draw(0.0).ids for _ in range(1)])
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


class _One(Processes):
    """One of two processes, which add up on paper."""

    def __init__(self, rank: int, meeting: list[torch.Tensor]) -> None:
        self.rank, self.world, self._meeting = rank, 2, meeting

    def add_up(self, tensors: Any) -> None:
        for tensor in tensors:
            self._meeting.append(tensor.clone())
            if len(self._meeting) == 2:
                tensor.copy_(sum(self._meeting))


def _loss(batch: Batch) -> Loss:
    each = batch.ids.float() / 7
    return Loss(each.mean(), each, torch.zeros(len(each), 1, 1))


def test_two_processes_read_and_tell_what_one_does(tmp_path: Path) -> None:
    meeting: list[torch.Tensor] = []
    ranks = [_One(rank, meeting) for rank in range(2)]
    alone = _source(tmp_path, [20, 14, 6], 8)
    sources = [_source(tmp_path, [20, 14, 6], 8, processes=rank) for rank in ranks]
    for _ in range(9):
        whole = alone.draw(0.0)
        alone.feedback(whole, _loss(whole))
        parts = []
        for source, rank in zip(sources, ranks, strict=True):
            batch = source.draw(0.0)
            assert torch.equal(batch.ids, whole.ids)
            mine = batch.part(*rank.share(len(batch)))
            source.feedback(mine, _loss(mine))
            parts.append(mine.ids)
        assert torch.equal(torch.cat(parts), whole.ids)
    (told,) = alone.hear(0.0)
    sources[0].hear(0.0)
    (both,) = sources[1].hear(0.0)  # the one that comes last sees the sum on paper
    assert isinstance(told, StrataFound)
    assert isinstance(both, StrataFound)
    assert both.sequences == told.sequences
    assert both.losses == pytest.approx(told.losses)


def test_the_losses_of_clusters_are_means_since_the_last_look(tmp_path: Path) -> None:
    source = _source(tmp_path, [20, 14, 6], 8)
    clusters = np.repeat(np.arange(3), [20, 14, 6])
    assert source.hear(0.0) == [StrataFound([0, 0, 0], [None, None, None])]
    for _ in range(2):
        seen = []
        for _ in range(3):
            batch = source.draw(0.0)
            for micro in (batch.part(0, 5), batch.part(5, 8)):
                source.feedback(micro, _loss(micro))
            seen.extend(batch.ids.tolist())
        (told,) = source.hear(0.0)
        assert isinstance(told, StrataFound)
        held = clusters[seen]
        assert told.sequences == np.bincount(held).tolist()
        means = [np.mean(np.array(seen)[held == cluster] / 7) for cluster in range(3)]
        assert told.losses == pytest.approx(means)


@pytest.mark.parametrize("cut", [0, 1, 7, 12])
def test_it_goes_on_from_any_batch_bit_for_bit(tmp_path: Path, cut: int) -> None:
    def read(source: Stratified, count: int) -> list[list[int]]:
        batches = []
        for _ in range(count):
            batch = source.draw(0.0)
            source.feedback(batch, _loss(batch))
            batches.append(batch.ids.tolist())
        return batches

    whole, begun, again = (_source(tmp_path, [31, 17, 9], 5) for _ in range(3))
    order = read(whole, 20)
    assert read(begun, cut) == order[:cut]
    state = begun.state_dict()
    read(begun, 1)  # what came later is not in it
    again.load_state_dict(state)
    assert read(again, 20 - cut) == order[cut:]
    assert again.unique_tokens == whole.unique_tokens
    assert not differences(again.state_dict(), whole.state_dict())


def test_what_another_process_heard_is_not_told_twice(tmp_path: Path) -> None:
    first, second = (_source(tmp_path, [8, 8], 4, processes=_One(rank, [])) for rank in range(2))
    batch = first.draw(0.0)
    first.feedback(batch, _loss(batch))
    second.load_state_dict(first.state_dict())
    assert not second.state_dict()["heard"].any()
    assert second.state_dict()["taken"] == first.state_dict()["taken"]
    again = _source(tmp_path, [8, 8], 4, processes=_One(0, []))
    again.load_state_dict(first.state_dict())
    assert torch.equal(again.state_dict()["heard"], first.state_dict()["heard"])


def _topics(windows: int, context: int) -> NDArray[Any]:
    """Text of two vocabularies, a third of it of the second."""
    rng = np.random.default_rng(0)
    second = np.arange(windows) % 3 == 2
    ids = rng.integers(0, 40, (windows, context)) + np.where(second, 100, 0)[:, None]
    return np.append(ids.ravel(), 0)


def test_clusters_are_found_in_tokens_and_in_states(tmp_path: Path) -> None:
    split = _split(tmp_path, _topics(300, 32))
    truth = (np.arange(300) % 3 == 2).astype(int)
    assert by_ngrams(split, 32, 200, 0, 2).tolist() == truth.tolist()
    rng = np.random.default_rng(1)
    centers = rng.normal(size=(2, 12))
    sizes = rng.uniform(0.5, 20, (300, 1))  # which directions do not depend on
    states = (sizes * (centers[truth] + 0.1 * rng.normal(size=(300, 12)))).astype(np.float32)
    assert by_states(states, 0, 2).tolist() == truth.tolist()
    assert np.array_equal(by_states(states, 5, 7), by_states(states, 5, 7))
    states[3, 3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        by_states(states, 0, 2)


def test_there_are_as_many_clusters_as_fill_batches(tmp_path: Path) -> None:
    make = partial(by_ngrams, _split(tmp_path, _topics(300, 32)), 32, 200, 0)
    numbers, said = strata(make, 2, 8)
    assert numbers is not None
    assert said is None
    assert np.bincount(numbers).tolist() == [200, 100]
    numbers, said = strata(make, 8, 50)
    assert numbers is not None
    assert said is not None
    assert len(np.bincount(numbers)) < 8
    assert np.bincount(numbers).min() >= 100
    assert f"{len(np.bincount(numbers))} clusters of data instead of 8" in said
    assert strata(make, 2, 51)[0] is None  # 100 windows are not two batches


@pytest.mark.parametrize("windows", [3, 200])
def test_data_of_one_cluster_turn_it_off_and_that_is_said(windows: int) -> None:
    same = np.ones((windows, 5), dtype=np.float32)
    numbers, said = strata(partial(by_states, same, 0), 8, 2)
    assert numbers is None
    assert said is not None
    assert "one cluster" in said


def test_a_run_reads_them_and_resumes_exactly(tiny: Settings, corpus: Corpus, place: Path) -> None:
    """A signal comes between two looks, so what was heard so far is in the state."""
    make = partial(by_ngrams, corpus.train, 32, corpus.tokenizer.vocab_size, 0)
    clusters, _ = strata(make, 4, 4)
    assert clusters is not None

    def run(folder: str, **how: Any) -> None:
        sets = ("evaluation.floors=false", "model.layers=1", "model.pair_rows=64")
        asked = tiny(*sets, steps=12, eval_every=5, out=place / folder)
        asked = asked.model_copy(update={"resume": how.pop("resume", False)})
        with Session("baseline", asked, **how) as session:
            shape = (session.corpus.train, 32, 4, 0, clusters)
            session.parts.batches = Stratified(*shape, session.parts.device.processes)
            session.train()

    run("whole")
    watch, stop = stopping_after(8)
    with pytest.raises(Stopped):
        run("cut", watch=watch, stop=stop)
    run("cut", resume=True)
    assert not differences(final_state(place / "cut"), final_state(place / "whole"))
    told = [row for row in RunDir(place / "whole").records() if row["kind"] == "strata"]
    assert [sum(row["sequences"]) for row in told] == [0, 20, 20, 8]
    assert all(loss > 1 for row in told[1:3] for loss in row["losses"])
