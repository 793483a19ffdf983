"""A mix reads its corpora in their shares, each window once, none of two corpora."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Settings
from exactness import differences, final_state, stopping_after
from hypothesis import given
from hypothesis import strategies as st

from effcli.engine.data.batches import Shuffled
from effcli.engine.data.corpus import Corpus
from effcli.engine.data.mixed import Mixed, MixedSplit, opened
from effcli.engine.data.order import dealt
from effcli.engine.data.prepare import prepare
from effcli.engine.measure.evaluate import HeldOut
from effcli.engine.measure.floors import ngram_floors
from effcli.engine.runs.rundir import CONFIG
from effcli.errors import InputError, Stopped
from effcli.methods import baseline
from effcli.settings.layers import read_toml
from effcli.settings.prepare import PrepareSettings

Eff = Callable[..., tuple[int, str, str]]
SETS = [part for assignment in TINY for part in ("--set", assignment)]
SHARES = {"one": 0.3, "two": 0.6, "three": 0.1}
CONTEXT = 64


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three corpora of bytes: one has few tokens, one has labels; and one of other tokens."""
    folder = tmp_path_factory.mktemp("texts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFF_DATA", str(folder))
        for number, name in enumerate(SHARES):
            usual: dict[str, Any] = {"max_tokens": (30_000, 40_000, 20_000)[number]}
            source = f"grammar:{number + 1}"
            prepare(PrepareSettings(sources=(source,), out=folder / name, **usual))
        other = PrepareSettings(sources=("grammar:1",), tokenizer="bpe:300", max_tokens=9000)
        prepare(other.model_copy(update={"out": folder / "other"}))
        rows = [{"text": f"text {n} " * 20, "label": "ab"[n % 2]} for n in range(300)]
        lines = folder / "rows.jsonl"
        lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
        how = {"tokenizer": "bytes", "label_column": "label", "out": folder / "labeled"}
        prepare(PrepareSettings(sources=(str(lines),), **how))
    return folder


@pytest.fixture(autouse=True)
def _data(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFF_DATA", str(texts))


@pytest.fixture
def mix() -> Mixed:
    found = opened("one:0.3,two:0.6,three:0.1")
    assert isinstance(found, Mixed)
    return found


def _alone(name: str) -> Corpus:
    return opened(name)


def _counts(owners: Any, parts: int) -> Any:
    """Turns of each part after each number."""
    return np.cumsum(owners[:, None] == np.arange(parts), axis=0)


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    cuts=st.lists(st.integers(1, 90), min_size=1, max_size=4),
)
def test_turns_are_even_and_each_comes_once_an_epoch(sizes: list[int], cuts: list[int]) -> None:
    total = sum(sizes)
    owners, turns = dealt(np.arange(2 * total), sizes)
    for owner, size in enumerate(sizes):
        assert turns[owners == owner].tolist() == list(range(2 * size))
        assert (owners[:total] == owner).sum() == size
    counts = _counts(owners, len(sizes))
    due = np.arange(1, 2 * total + 1)[:, None] * np.array(sizes) / total
    assert np.abs(counts - due).max() <= max(0.5, len(sizes) / 2 - 0.5)
    for start, stop in pairwise([0, *np.cumsum(cuts).tolist()]):  # a stretch is a function of it
        again = dealt(np.arange(start, stop) % (2 * total), sizes)
        assert np.array_equal(again[0], owners[np.arange(start, stop) % (2 * total)])


def test_every_corpus_has_its_share_as_far_as_the_scarcest_goes(mix: Mixed) -> None:
    for name in ("train", "val"):
        whole = {corpus: _alone(corpus).splits[name].tokens for corpus in SHARES}
        most = min(tokens / SHARES[corpus] for corpus, tokens in whole.items())
        split = mix.splits[name]
        sizes = [stop - start for start, stop in split.stretches(split.tokens)]
        assert sizes == [round(most * share) for share in SHARES.values()]
        assert any(size == tokens for size, tokens in zip(sizes, whole.values(), strict=True))


def test_windows_are_those_of_the_corpora_each_once_in_their_shares(mix: Mixed) -> None:
    windows, sequences = mix.train.windows(CONTEXT), 7
    parts = [_alone(name).train for name in SHARES]
    texts = [part.read([0], part.tokens)[0] for part in parts]
    stretches = mix.train.stretches(mix.train.tokens)
    source = Shuffled(mix.train, CONTEXT, sequences, seed=5)
    drawn = [source.draw(0.0) for _ in range(-(-windows // sequences))]
    ids = torch.cat([batch.ids for batch in drawn])[:windows].numpy()
    assert sorted(ids) == list(range(windows))
    rows = torch.cat([batch.inputs for batch in drawn])[:windows].numpy()
    targets = torch.cat([batch.targets for batch in drawn])[:windows].numpy()
    begins, owners = mix.train.begins(ids, CONTEXT), np.empty(windows, dtype=int)
    for row, begin in enumerate(begins):
        owner = owners[row] = sum(begin >= start for start, _ in stretches) - 1
        start, stop = stretches[owner]
        assert begin + CONTEXT < stop
        own = texts[owner][begin - start : begin - start + CONTEXT + 1]
        assert np.array_equal(rows[row], own[:-1])
        assert np.array_equal(targets[row], own[1:])
    shares = _counts(owners, 3)[299] / 300
    assert np.abs(shares - list(SHARES.values())).max() < 0.01
    assert source.unique_tokens == windows * CONTEXT


def test_a_part_of_the_order_is_the_order_and_epochs_differ(mix: Mixed) -> None:
    size = mix.train.windows(CONTEXT)
    whole = mix.train.order(0, 2 * size, CONTEXT, 3)
    for start, stop in ((0, 1), (size - 5, size + 9), (41, 300)):
        again = mix.train.order(start, stop - start, CONTEXT, 3)
        assert np.array_equal(again, whole[start:stop])
    assert sorted(whole[size:]) == list(range(size))
    assert not np.array_equal(whole[:size], whole[size:])
    assert not np.array_equal(whole, mix.train.order(0, 2 * size, CONTEXT, 4))


def test_a_mix_of_one_is_that_one(corpus: Corpus) -> None:
    alone, mixed = corpus.train, MixedSplit([corpus.train], [[0]])
    assert (mixed.tokens, mixed.bytes, mixed.in_row) == (alone.tokens, alone.bytes, alone.tokens)
    for start, count in ((0, 40), (alone.windows(96) - 7, 30)):
        assert np.array_equal(mixed.order(start, count, 96, 8), alone.order(start, count, 96, 8))
    assert np.array_equal(mixed.spread(96, 50), alone.spread(96, 50))
    assert np.array_equal(mixed.read([5, 77], 900), alone.read([5, 77], 900))
    assert np.array_equal(mixed.document_starts(), alone.document_starts())
    windows = corpus.val.read(corpus.val.spread(96, 9), 97)
    assert ngram_floors(mixed, windows, 257) == ngram_floors(alone, windows, 257)


def test_the_whole_is_read_across_the_ends_of_corpora(mix: Mixed) -> None:
    row = mix.val.read([0], mix.val.tokens)[0]
    parts = [_alone(name).val.read([0], stop - start)[0] for name, (start, stop) in _val(mix)]
    assert np.array_equal(row, np.concatenate(parts))
    starts = mix.val.document_starts()
    assert len(starts) == mix.val.documents
    assert (row[starts] == mix.tokenizer.separator).all()
    assert (row == mix.tokenizer.separator).sum() == len(starts)


def _val(mix: Mixed) -> list[tuple[str, tuple[int, int]]]:
    return list(zip(SHARES, mix.val.stretches(mix.val.tokens), strict=True))


def test_held_out_text_is_of_all_corpora_in_their_shares(mix: Mixed) -> None:
    held_out = HeldOut.of(mix.val, mix.tokenizer.token_bytes, CONTEXT, 40 * CONTEXT)
    assert held_out.tokens.shape == (40, CONTEXT + 1)
    begins = mix.val.spread(CONTEXT, 40)
    counts = [int(((start <= begins) & (begins < stop)).sum()) for _, (start, stop) in _val(mix)]
    assert np.abs(np.array(counts) - 40 * np.array(list(SHARES.values()))).max() <= 1


def test_floors_count_and_tune_on_all_corpora(mix: Mixed) -> None:
    """Also one that is smaller than what is set aside for tuning."""
    body, whole = mix.train.stretches(mix.train.tokens * 9 // 10), mix.train.stretches(10)
    assert [stop > start for start, stop in body] == [True] * 3
    assert [start for start, _ in whole] == [start for start, _ in body]
    held_out = HeldOut.of(mix.val, mix.tokenizer.token_bytes, CONTEXT, 40 * CONTEXT)
    mixed = ngram_floors(mix.train, held_out.tokens, 257)
    alone = ngram_floors(_alone("two").train, held_out.tokens, 257)
    assert mixed["trigram"] < alone["trigram"]


def test_documents_are_labeled_by_their_corpora() -> None:
    mix = opened("one:0.5,labeled:0.25,two:0.25")
    labels, names = mix.train.labels(), mix.label_names
    assert names == ["one", "a", "b", "two"]
    assert labels is not None
    starts = mix.train.document_starts()
    ends = [stop for _, stop in mix.train.stretches(mix.train.tokens)]
    spots = np.searchsorted(ends, starts, side="right")
    own = _alone("labeled").train.labels()
    assert own is not None
    assert set(labels[spots == 0]) == {0}
    assert np.array_equal(labels[spots == 1], own[: (spots == 1).sum()] + 1)
    assert set(labels[spots == 2]) == {3}


def test_the_hash_is_of_contents_and_shares(mix: Mixed, texts: Path) -> None:
    assert opened(mix.data).hash == opened(mix.name).hash == mix.hash
    assert mix.data == ",".join(f"{texts / name}:{share}" for name, share in SHARES.items())
    others = ("one:0.4,two:0.5,three:0.1", "one:0.3,two:0.6,labeled:0.1")
    halves = mix.first(0.5)
    assert len({mix.hash, halves.hash, *(opened(other).hash for other in others)}) == 4
    assert halves.train.tokens == pytest.approx(mix.train.tokens / 2, abs=2)
    assert halves.val.tokens == mix.val.tokens
    assert mix.first(1) is mix
    told = mix.identity()
    assert [part["share"] for part in told["parts"]] == pytest.approx(list(SHARES.values()))
    assert sum(part["train_tokens"] for part in told["parts"]) == told["train_tokens"]


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        ("one:0.5,tow:0.5", "there is no corpus 'tow'", "'two'"),
        ("one:0.5,two:x", "--data two:x: not of the form name:share", None),
        ("one:0.5,two", "--data two: not of the form name:share", None),
        ("one:0.5,two:0.4", "--data: the shares add up to 0.9, not to 1", None),
        ("one:1.5,two:-0.5", "--data: every part needs a name and a share above 0", None),
        ("one:0.5,one:0.5", "--data: one is named twice", None),
        ("one:0.5,./one:0.5", "is in the mix twice", None),
        ("one:0.5,other:0.5", "other has other tokens than", "--tokenizer like:"),
        ("one:1", "there is no corpus 'one:1'", "'one'"),
    ],
)
def test_what_cannot_be_mixed_is_said_in_one_line(
    eff: Eff, texts: Path, monkeypatch: Any, data: str, message: str, hint: str | None
) -> None:
    monkeypatch.chdir(texts)
    code, _, err = eff("baseline", "--data", data, "--steps", "1", *SETS)
    assert code == 2
    assert message in err.splitlines()[0]
    assert hint is None or hint in err
    assert len(err.splitlines()) <= 2


@pytest.mark.parametrize(
    "command",
    [
        ["aql", "--ratio", "0.5"],
        ["aql", "select", "--ratio", "0.5"],
        ["distill", "--teacher", "nowhere"],
        ["distill", "cache", "--teacher", "nowhere"],
        ["bench", "baselines"],
    ],
)
def test_who_keeps_files_beside_a_corpus_needs_one(eff: Eff, command: list[str]) -> None:
    code, _, err = eff(*command, "--data", "one:0.5,two:0.5")
    assert code == 2
    assert "eff prepare --mix" in err or "there is no run in nowhere" in err


def test_whatever_asks_for_a_folder_is_told_that_there_is_none(mix: Mixed) -> None:
    with pytest.raises(InputError, match="a mix, which has no folder") as raised:
        print(mix.folder)
    assert "--mix" in (raised.value.hint or "")
    assert not hasattr(mix, "nothing")


def test_a_part_without_a_window_is_refused(mix: Mixed) -> None:
    shortest = min(stop - start for start, stop in mix.train.stretches(mix.train.tokens))
    with pytest.raises(InputError, match="less than one context"):
        Shuffled(mix.train, shortest, 2, 0)
    with pytest.raises(InputError, match="less than one context"):
        HeldOut.of(mix.val, mix.tokenizer.token_bytes, mix.val.in_row, 1000)


def test_a_run_on_a_mix_resumes_exactly(tiny: Settings, place: Path) -> None:
    """Over the end of an epoch, from a folder that has moved on."""

    def settings(folder: str, **flags: Any) -> Any:
        usual = {"data": "one:0.3,two:0.6,three:0.1", "steps": 9, "out": place / folder, **flags}
        return tiny("text_share=0.01", "evaluation.floors=false", **usual)

    baseline.run(settings("whole"))
    watch, stop = stopping_after(4)
    with pytest.raises(Stopped):
        baseline.run(settings("cut"), watch, stop)
    baseline.run(settings("cut", resume=True, data=read_toml(place / "cut" / CONFIG)["data"]))
    assert not differences(final_state(place / "cut"), final_state(place / "whole"))


def test_a_run_says_what_was_mixed(eff: Eff, place: Path) -> None:
    flags = ["--data", "two:0.75,three:0.25", "--steps", "3", "--out", place / "r", *SETS]
    plan = json.loads(eff("baseline", *flags, "--dry-run", "--json")[1])
    assert plan["corpus"].startswith("two:0.75,three:0.25 (")
    code, out, err = eff("baseline", *flags, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["mix"] == {"two": 0.75, "three": 0.25}
    assert report["floors"]["trigram"] < report["floors"]["unigram"]
    code, out, _ = eff("report", place / "r")
    assert code == 0
    assert "two 0.75, three 0.25" in out
