"""Scores are what they say, the gate knows noise, and what is read obeys its laws."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effcli.engine.data.corpus import Corpus
from effcli.engine.measure.meter import Meter
from effcli.engine.objectives.next_token import NextToken
from effcli.engine.protocols import Batch
from effcli.engine.selection.choose import Quotas, choose
from effcli.engine.selection.chooser import inverse_chances
from effcli.engine.selection.holdout import Row
from effcli.engine.selection.ngrams import STRENGTH, NGrams, scored
from effcli.engine.selection.overlap import GRAM, STEP, Grams
from effcli.engine.selection.passages import flat, passages_of
from effcli.engine.selection.pool import Shards
from effcli.engine.selection.quotas import allocate
from effcli.engine.selection.ratio import gate_of
from effcli.engine.selection.sidecar import COLUMNS, Scores

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order tests run."""
    monkeypatch.setitem(globals(), "RANDOM", np.random.default_rng(3))


def text(*documents: list[int] | np.ndarray) -> Row:
    return Row([np.asarray(one, dtype=np.int64) for one in documents])


# Passages


@given(st.lists(st.integers(1, 90), min_size=1, max_size=20), st.integers(1, 40))
def test_passages_cover_a_text_once_and_none_is_too_long(lengths: list[int], longest: int) -> None:
    row = text(*(RANDOM.integers(0, 9, length) for length in lengths))
    passages = passages_of(row, longest)
    assert passages.lengths.min() >= 1
    assert passages.lengths.max() <= longest
    assert passages.starts[0] == 0
    ends = passages.starts + passages.lengths
    assert (passages.starts[1:] == ends[:-1]).all()
    assert ends[-1] == row.tokens
    begins = row.document_starts()
    assert (np.searchsorted(begins, passages.starts, side="right") - 1 == passages.documents).all()
    assert (flat(row, passages) == row.read([0], row.tokens)[0]).all()
    some = RANDOM.permutation(len(passages))[:7]
    pieces = [row.read([int(passages.starts[i])], int(passages.lengths[i]))[0] for i in some]
    assert (flat(row, passages.part(some)) == np.concatenate(pieces)).all()


# Counts


def test_losses_are_those_of_smoothed_counts() -> None:
    counted, vocab = RANDOM.integers(0, 7, 500), 7
    table = NGrams(vocab)
    table.add(counted)
    tokens = RANDOM.integers(0, 7, 40)
    losses, rarities = table.score(tokens)

    def count(*gram: int) -> int:
        size = len(gram)
        windows = np.lib.stride_tricks.sliding_window_view(counted, size)
        return int((windows == gram).all(1).sum())

    for at, token in enumerate(tokens):
        chance = (count(token) + 1) / (500 + vocab)
        if at >= 1:
            before = tokens[at - 1]
            chance = (count(before, token) + STRENGTH[0] * chance) / (count(before) + STRENGTH[0])
        if at >= 2:
            pair = tokens[at - 2], tokens[at - 1]
            chance = (count(*pair, token) + STRENGTH[1] * chance) / (count(*pair) + STRENGTH[1])
            assert rarities[at] == pytest.approx(1 / (count(*pair) + 1), rel=1e-5)
        assert losses[at] == pytest.approx(-np.log(chance), rel=1e-5)


def test_scores_of_passages_are_means_over_them() -> None:
    row = text(*(RANDOM.integers(0, 9, n) for n in (30, 50, 11)))
    table = NGrams(9)
    table.add(RANDOM.integers(0, 9, 300))
    passages = passages_of(row, 16)
    together, _ = scored(table, row, passages)
    losses, _ = table.score(row.read([0], row.tokens)[0])
    edges = passages.starts, passages.starts + passages.lengths
    expected = [losses[a:b].mean() for a, b in zip(*edges, strict=True)]
    assert together == pytest.approx(expected, rel=1e-5)


# Overlap


def test_a_stretch_of_held_out_text_is_found_wherever_it_stands() -> None:
    held_out = text(RANDOM.integers(0, 4000, 400), RANDOM.integers(0, 4000, 300))
    grams = Grams(held_out)
    for start in (0, 13, 40, 250):
        copied = held_out.read([start], GRAM + STEP - 1)[0]
        pool = text(RANDOM.integers(0, 4000, 200), np.r_[RANDOM.integers(0, 4000, 77), copied])
        found = grams.passages_with(pool, passages_of(pool, 1000))
        assert found.tolist() == [False, True]
    clean = text(*(RANDOM.integers(0, 4000, 500) for _ in range(20)))
    assert not grams.passages_with(clean, passages_of(clean, 100)).any()


def test_documents_inside_another_text_are_counted() -> None:
    first, second = RANDOM.integers(0, 4000, 400), RANDOM.integers(0, 4000, 300)
    grams = Grams(text(first, second))
    assert grams.documents_in(text(RANDOM.integers(0, 4000, 500), second)) == 1
    assert grams.documents_in(text(first, second)) == 2
    assert grams.documents_in(text(second[:100], RANDOM.integers(0, 4000, 500))) == 0
    assert grams.documents_in(text(RANDOM.integers(0, 4000, 5))) == 0


# The gate


def _scores(good: int, bad: int) -> np.ndarray:
    kinds = RANDOM.normal([5.0, 0.2, 0.3, 0.8], [0.5, 0.2, 0.05, 0.05], (good, 4))
    first = RANDOM.normal([6.5, -1.5, 0.4, 0.9], [0.5, 0.5, 0.05, 0.05], (bad // 2, 4))
    second = RANDOM.normal([3.0, -2.5, 0.1, 0.5], [0.5, 0.5, 0.05, 0.05], (bad - bad // 2, 4))
    return np.concatenate([kinds, first, second])


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.8, 0.9])
def test_the_gate_measures_contamination_and_tells_good_from_bad(share: float) -> None:
    bad = int(3000 * share)
    pool, trusted = _scores(3000 - bad, bad), _scores(600, 0)
    gate, ratios = gate_of(pool, trusted, np.full(3000, 100), 0)
    assert gate.contamination == pytest.approx(share, abs=0.07)
    assert gate.exponent == (2.0 if share > 0.15 else 0.0)
    if bad:
        good = np.arange(3000) < 3000 - bad
        assert np.median(ratios[good]) > 10 * np.median(ratios[~good])
        new = gate.ratios(np.concatenate([_scores(200, 0), _scores(0, 200)]))
        assert np.median(new[:200]) > 10 * np.median(new[200:])


def test_a_score_that_is_no_number_has_no_ratio() -> None:
    pool = _scores(500, 500)
    pool[7, 2] = np.nan
    gate, ratios = gate_of(pool, _scores(200, 0), np.full(1000, 100), 0)
    assert np.isnan(ratios[7])
    assert np.isfinite(np.delete(ratios, 7)).all()
    assert np.isnan(gate.ratios(pool[:10])).tolist() == [n == 7 for n in range(10)]


# Choosing


@given(st.integers(0, 2**30), st.integers(1, 400), st.integers(1, 6), st.integers(1, 30_000))
def test_the_bounded_choice_is_the_choice_among_all(
    seed: int, count: int, clusters: int, tokens: int
) -> None:
    random = np.random.default_rng(seed)
    ids = random.permutation(10_000)[:count]
    scores, lengths = random.normal(size=count), random.integers(1, 200, count)
    numbers = random.integers(0, clusters, count).astype(np.int16)
    floors = random.dirichlet(np.ones(clusters)) * random.random()
    quotas = Quotas(floors, np.minimum(1, floors + random.random(clusters)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("effcli.engine.selection.choose.CHUNK", 37)
        chosen = choose(scores, ids, lengths, numbers, quotas, tokens, None).ids
    exact = (quotas.floors, quotas.caps, tokens)
    assert chosen.tolist() == allocate(ids, scores, lengths, numbers, *exact).tolist()


def test_weights_undo_what_the_draw_prefers() -> None:
    random = np.random.default_rng(3)
    scores, values = 0.4 * random.normal(size=4000), random.normal(size=4000)
    values += 2 * scores  # what is measured goes with what is preferred
    estimates, plain = [], []
    for seed in range(60):
        ids, lengths = np.arange(4000), np.ones(4000, dtype=np.int64)
        choice = choose(scores, ids, lengths, np.zeros(4000, np.int16), None, 800, (seed, 0))
        weights = inverse_chances(scores[choice.ids], choice.threshold, lengths[choice.ids])
        assert weights.mean() == pytest.approx(1, abs=1e-5)
        assert weights.max() <= 4.001 * weights.min()
        estimates.append(float((weights * values[choice.ids]).mean()))
        plain.append(float(values[choice.ids].mean()))
    assert abs(np.mean(estimates) - values.mean()) < 0.3 * abs(np.mean(plain) - values.mean())


# What is read


def _shards(seed: int = 0) -> Shards:
    row = text(*(RANDOM.integers(0, 50, 200) for _ in range(40)))
    passages = passages_of(row, 64)
    columns = {name: np.zeros(len(passages), kind) for name, kind in COLUMNS.items()}
    columns |= {"start": passages.starts, "length": passages.lengths}
    columns["loss"] = np.random.default_rng(1).normal(size=len(passages)).astype(np.float32)
    scores = Scores(columns, {})
    return Shards(row, scores, np.ones(len(passages), bool), 16, seed)


@given(st.lists(st.tuples(st.integers(1, 900), st.floats(0.05, 1)), max_size=30))
def test_no_window_is_looked_at_twice_in_an_epoch(asked: list[tuple[int, float]]) -> None:
    pool, seen = _shards(), list[int]()
    whole = pool.tokens_left()
    for tokens, admitted in asked:
        before = pool.tokens_left()
        found = pool.candidates(tokens, admitted, {})
        assert len(found) == min(-(-tokens // 16), before // 16)
        seen += found.ids.tolist()
    assert len(set(seen)) == len(seen)
    assert pool.tokens_left() == whole - 16 * len(seen)


def test_easy_windows_come_first_while_the_window_is_narrow() -> None:
    pool = _shards()
    loss = pool.columns()["loss"]
    easy = pool.candidates(pool.tokens_left() // 4, 0.25, {})["loss"]
    assert easy.max() <= np.quantile(loss, 0.27)
    rest = pool.candidates(10**9, 1.0, {})
    assert len(rest) == len(loss) - len(easy)


def test_another_seed_is_another_order_and_the_same_windows() -> None:
    first, second = (_shards(seed).candidates(10**9, 1.0, {}).ids for seed in (0, 1))
    assert first.tolist() != second.tolist()
    assert sorted(first) == sorted(second)


def test_windows_are_those_of_a_plain_run(corpus: Corpus, tmp_path: Path) -> None:
    count = 3
    ids = np.array([5, 0, 9])
    passages = passages_of(corpus.train, 64)
    columns = {name: np.zeros(len(passages), kind) for name, kind in COLUMNS.items()}
    columns |= {"start": passages.starts, "length": passages.lengths}
    scores = Scores(columns, {})
    pool = Shards(corpus.train, scores, np.ones(len(passages), bool), 32, 0)
    rows = pool.fetch(ids)
    assert rows.shape == (count, 33)
    assert (rows == corpus.train.read(ids * 32, 33)).all()


# Weighted losses


def test_a_weighted_loss_has_the_gradient_of_weighted_sequences() -> None:
    from effcli.engine.models.gpt import GPT
    from effcli.settings.model import GPTSettings

    model = GPT(GPTSettings(layers=1, width=16, heads=2, context=8), 40, 0)
    tokens = torch.from_numpy(RANDOM.integers(0, 40, (3, 9)))
    weights = torch.tensor([0.5, 2.0, 0.25])
    batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(3), weights)
    NextToken(5)(model, batch).mean.backward()  # type: ignore[no-untyped-call]
    found = [p.grad.to_dense().clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    logits = model(tokens[:, :-1])
    each = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    (each.view(3, -1).mean(1) * weights).mean().backward()
    wanted = [p.grad.to_dense() for p in model.parameters() if p.grad is not None]
    for mine, reference in zip(found, wanted, strict=True):
        assert torch.allclose(mine, reference, atol=1e-5)
    assert torch.equal(batch.part(1, 3).weights, weights[1:])  # type: ignore[arg-type]


# The ledger


def test_time_inside_another_account_is_booked_once() -> None:
    meter, started = Meter(), time.perf_counter()
    with meter.timing("train"):
        time.sleep(0.01)
        with meter.timing("select"):
            time.sleep(0.05)
    passed = time.perf_counter() - started
    assert meter.seconds["select"] >= 0.05
    assert meter.seconds["train"] >= 0.01
    assert meter.seconds["train"] + meter.seconds["select"] <= passed
