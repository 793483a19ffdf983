"""A stream is read like shards, a little at a time, and goes on exactly where it was."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from conftest import TINY
from hub_server import HubServer
from pydantic import ValidationError
from test_hub import _card, _parquet

from effcli.engine.data import stream
from effcli.engine.data.corpus import Corpus
from effcli.engine.data.grammar import Grammar, write
from effcli.engine.data.prepare import prepare
from effcli.engine.data.source import Row
from effcli.engine.records import Step, never, unwatched
from effcli.engine.runs import checkpoint
from effcli.engine.selection import streamed as streaming
from effcli.engine.selection.passages import passages_of
from effcli.engine.selection.pool import Candidates, Shards
from effcli.engine.selection.standing import Seen
from effcli.engine.selection.streamed import Streamed, Terms, measured, streamed
from effcli.errors import InputError
from effcli.methods.aql import run
from effcli.settings.aql import AqlSettings, PreparationSettings
from effcli.settings.layers import resolve
from effcli.settings.prepare import PrepareSettings

CONTEXT, ROUND = 32, 2048
PREP = PreparationSettings(passage=128, clusters=4)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So little at a time that every bound is reached."""
    monkeypatch.setattr(streaming, "BLOCK", 2**12)
    monkeypatch.setattr(stream, "BATCH_ITEMS", 16)


def _documents(first: int, count: int) -> list[str]:
    texts = (write("sentence", Random(number)) for number in range(first, first + count))
    return [f"<{number}> {text}" for number, text in enumerate(texts, first)]


def _file(place: Path, texts: list[str]) -> Path:
    place.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return place


def _corpus(place: Path, **asked: Any) -> Corpus:
    folder = place / "corpus"
    asked = {"tokenizer": "bytes", "max_tokens": 40_000, "out": folder, **asked}
    prepare(PrepareSettings(**asked))
    return Corpus.open(folder)


def _pool(corpus: Corpus, **terms: Any) -> Streamed:
    scores, yardstick = measured(corpus, PREP, unwatched, never)
    terms = {"ratio": 0.2, "context": CONTEXT, "passage": PREP.passage, "copies": 2, **terms}
    return streamed(corpus, scores, scores.eligible(2), yardstick, Terms(**terms))


@pytest.fixture(params=["file", "two", "mix"])
def corpus(request: pytest.FixtureRequest, place: Path) -> Corpus:
    """Of one source, of two, of a mix of two; each begins a longer stream."""
    names = [str(_file(place / f"{n}.jsonl", _documents(1000 * n, 250))) for n in (1, 2)]
    if request.param == "file":
        return _corpus(place, sources=names[:1], held_out_share=0.1)
    if request.param == "two":
        return _corpus(place, sources=names, held_out_share=0.1)
    return _corpus(place, mix=f"{names[0]}:0.7,{names[1]}:0.3", held_out_share=0.1)


def _round(pool: Streamed, number: int) -> Candidates:
    """The window of easy ones opens."""
    harder = {"uncertainty": np.linspace(0, 1, 64) * number}
    return pool.candidates(ROUND, min(1.0, 0.3 + 0.1 * number), harder)


def _rounds(pool: Streamed, first: int, last: int) -> list[tuple[Any, ...]]:
    found = []
    for number in range(first, last):
        candidates = _round(pool, number)
        columns = {name: column.tolist() for name, column in candidates.columns.items()}
        found.append((columns, pool.fetch(candidates.ids[::-1]).tolist(), pool.spent))
    return found


def _everything(pool: Streamed) -> str:
    """All text that comes by; a separator is ÿ."""
    parts: list[bytes] = []

    def read() -> None:
        while True:
            windows = pool.fetch(pool.candidates(ROUND, 1.0, {}).ids)
            parts.append(windows[:, :-1].clip(0, 255).astype(np.uint8).tobytes())

    with pytest.raises(InputError, match="the stream ended after"):
        read()
    return b"".join(parts).decode("latin1")


def test_a_stream_goes_on_exactly_from_every_cut(corpus: Corpus, place: Path) -> None:
    pool = _pool(corpus)
    states, expected = [], []
    for number in range(9):
        states.append(pool.state_dict())
        expected += _rounds(pool, number, number + 1)
    assert _rounds(_pool(corpus), 0, 9) == expected
    for cut in (0, 1, 4, 8):
        checkpoint.save(place / "checkpoints", cut, {}, {"pool": states[cut]}, 100)
        again = _pool(corpus)
        saved = checkpoint.load_state(place / "checkpoints" / f"step-{cut:09d}")["pool"]
        again.load_state_dict(saved, np.empty(0, dtype=np.int64))
        if cut:
            ids = np.array(expected[cut - 1][0]["id"])
            assert again.fetch(ids[::-1]).tolist() == expected[cut - 1][1]
            assert again.spent == expected[cut - 1][2]
        assert _rounds(again, cut, 9) == expected[cut:]


def test_a_step_that_is_undone_reads_nothing_again(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = _pool(corpus)
    _rounds(pool, 0, 3)
    before, state = pool.fetch(pool.state_dict()["now"].numpy()), pool.state_dict()
    expected = _rounds(pool, 3, 4)
    monkeypatch.setattr(Streamed, "_read_again", None)
    pool.load_state_dict(state, np.empty(0, dtype=np.int64))
    assert np.array_equal(pool.fetch(state["now"].numpy()), before)
    assert _rounds(pool, 3, 4) == expected


def test_every_window_comes_once_and_easy_ones_first(corpus: Corpus) -> None:
    pool, seen = _pool(corpus), []
    for number in range(8):
        candidates = _round(pool, number)
        assert np.array_equal(candidates.ids, np.unique(candidates.ids))
        seen.append(candidates.ids)
    ids = np.concatenate(seen)
    assert len(np.unique(ids)) == len(ids)
    assert any(one.min() < before.max() for one, before in zip(seen[1:], seen, strict=False))


def test_with_all_admitted_they_come_in_the_order_of_the_stream(corpus: Corpus) -> None:
    pool = _pool(corpus)
    ids = np.concatenate([pool.candidates(ROUND, 1.0, {}).ids for _ in range(8)])
    assert (np.diff(ids) > 0).all()
    assert len(ids) * CONTEXT == pytest.approx(8 * ROUND, rel=0.1)


def test_shards_and_stream_give_a_window_the_same_tokens_and_scores(place: Path) -> None:
    corpus = _corpus(place, sources=[str(_file(place / "1.jsonl", _documents(0, 250)))])
    scores, yardstick = measured(corpus, PREP, unwatched, never)
    shards = Shards(corpus.train, scores, scores.eligible(2), CONTEXT, 0)
    mine = _pool(corpus).candidates(2**12 - 2**10, 1.0, {})
    assert len(mine) > 64
    pool = _pool(corpus)
    pool.candidates(2**12 - 2**10, 1.0, {})
    assert np.array_equal(pool.fetch(mine.ids), shards.fetch(mine.ids))
    passages = passages_of(corpus.train, PREP.passage)
    middles = mine.ids * CONTEXT + CONTEXT // 2
    owners = np.searchsorted(passages.starts, middles, side="right") - 1
    theirs = yardstick.columns(corpus.train, passages)
    for name, column in theirs.items():
        assert np.array_equal(mine[name], column[owners]), name
    kept = mine["loss"] == scores["loss"][owners]  # but for passages that were counted
    assert kept.mean() > 0.8
    assert np.array_equal(mine["cluster"], scores["cluster"][owners])


def test_held_out_documents_never_come(place: Path) -> None:
    texts = _documents(0, 250)
    own = {name: _file(place / f"{name}.jsonl", texts[at : at + 4]) for name, at in _OWN}
    corpus = _corpus(place, sources=[str(_file(place / "1.jsonl", texts))], **own)
    assert corpus.manifest["duplicates_removed"] == 8
    text = _everything(_pool(corpus))
    held_out = [number for _, at in _OWN for number in range(at, at + 4)]
    assert not [number for number in held_out if f"<{number}>" in text]
    assert sum(f"<{number}>" in text for number in range(250)) > 200


_OWN = (("val", 10), ("test", 20))


def test_a_document_that_is_held_out_by_its_hash_never_comes(corpus: Corpus) -> None:
    own = corpus.tokenizer.decode(corpus.val.read([0], corpus.val.tokens)[0].tolist())
    text = _everything(_pool(corpus))
    numbers = [n for first in (1000, 2000) for n in range(first, first + 250)]
    known = [n for n in numbers if f"<{n}>" in own]
    assert len(known) > 3
    assert not [n for n in known if f"<{n}>" in text]


def test_copies_beyond_those_allowed_are_left_out(place: Path) -> None:
    texts = _documents(0, 60) + 5 * ["<copied> " + "again and again. " * 20] + _documents(60, 60)
    sources = [str(_file(place / "1.jsonl", texts))]
    corpus = _corpus(place, sources=sources, held_out_share=0.02)
    for copies, lines in ((1, 20), (2, 40)):
        text = _everything(_pool(corpus, copies=copies))
        assert abs(text.count("again and again.") - lines) <= 6  # windows of two documents


def test_what_was_seen_is_counted_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from effcli.engine.selection import standing

    monkeypatch.setattr(standing, "REMEMBERED", 50)
    random, seen, known = np.random.default_rng(0), Seen.nothing(), dict[int, int]()
    for _ in range(4):
        digests = random.integers(0, 8, 10).astype(np.uint64)
        number, seen = seen.add(digests, 3)
        for digest, found in zip(digests.tolist(), number.tolist(), strict=True):
            assert min(found, 3) == min(known.get(digest, 0), 3)
            known[digest] = known.get(digest, 0) + 1
    for start in range(0, 1000, 20):
        _, seen = seen.add(np.arange(start, start + 20, dtype=np.uint64) + np.uint64(100), 3)
        assert len(seen.newer) + len(seen.older) < 2 * 50 + 20


def test_an_endless_stream_is_read_as_far_as_needed_and_not_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = _corpus(place, sources=["grammar:1"])
    monkeypatch.setattr(Grammar, "DOCUMENTS", {**Grammar.DOCUMENTS, "train": 2**31})
    texts, read = Grammar("1"), []

    def counted(self: Grammar, split: str) -> Iterator[Row]:
        for index in range(self.DOCUMENTS[split]):
            read.append(index)
            yield texts.row(split, index)

    monkeypatch.setattr(Grammar, "rows", counted)
    pool, sizes = _pool(corpus), []
    for number in range(12):
        pool.candidates(ROUND, 0.4, {}) if number < 10 else pool.candidates(ROUND, 1.0, {})
        standing = pool._standings[-1]
        sizes.append((len(standing.now) + len(standing.waiting)) * CONTEXT)
        assert standing.tokens <= (number + 1) * ROUND / 0.4 * 1.5 + 2**13
    assert max(sizes) <= (streaming.WAITING + 2) * 2**12 + ROUND
    mean = pool._standings[-1].tokens / sum(pool._standings[-1].at.positions)
    assert len(read) <= pool._standings[-1].tokens / mean + 3 * 16


def test_where_nothing_is_easy_the_easiest_come(corpus: Corpus) -> None:
    pool = _pool(corpus)
    candidates = pool.candidates(ROUND, 1e-9, {})
    assert len(candidates) * CONTEXT >= ROUND / 2
    assert pool._standings[-1].tokens < (streaming.AHEAD + 2) * 2**12
    rest = pool._standings[-1].waiting
    assert np.mean(candidates["loss"]) < np.mean(rest["loss"])


def test_a_stream_that_became_another_is_refused(place: Path) -> None:
    source = _file(place / "1.jsonl", _documents(0, 250))
    corpus = _corpus(place, sources=[str(source)])
    _file(source, _documents(1, 250))
    with pytest.raises(InputError, match="not the text any more"):
        _pool(corpus)


Settings = Callable[..., AqlSettings]


@pytest.fixture
def asked(place: Path) -> Settings:
    """Makes settings of a tiny run on a stream of labeled documents."""
    kinds = ("good", "noise")
    texts = _documents(0, 250)
    rows = [{"text": text, "kind": kinds[n % 4 == 0]} for n, text in enumerate(texts)]
    source = place / "labeled.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = _corpus(place, sources=[str(source)], label_column="kind", held_out_share=0.1)

    def make(*assignments: str, **flags: Any) -> AqlSettings:
        flags = {"data": str(corpus.folder), "streaming": True, "eval_every": 0, **flags}
        extra = ["prep.clusters=4", "prep.passage=128", 'choice.good=["good"]']
        return resolve(AqlSettings, flags, [*TINY, *extra, *assignments]).settings

    return make


def _losses(settings: AqlSettings, stop_after: int = 10**9) -> list[float]:
    steps: dict[int, float] = {}
    run(
        settings,
        lambda record: steps.update({record.index: record.loss}) if type(record) is Step else None,
        lambda: 15 if len(steps) >= stop_after else None,
    )
    return [steps[number] for number in sorted(steps)]


def test_a_run_that_was_stopped_ends_as_one_that_was_not(asked: Settings, place: Path) -> None:
    from effcli.errors import Stopped

    often = {"tokens": 12_800, "curriculum": "root", "page": False}
    whole = _losses(asked(out=place / "whole", **often))
    with pytest.raises(Stopped):
        _losses(asked(out=place / "cut", **often), 37)
    later = _losses(asked(out=place / "cut", resume=True, **often))
    assert later == whole[-len(later) :]
    assert 0 < len(later) < len(whole)
    reports = [json.loads((place / n / "report.json").read_text()) for n in ("whole", "cut")]
    assert reports[0]["flops"] == reports[1]["flops"]
    for name in ("precision", "unique_tokens", "cluster_entropy"):
        assert reports[0]["selection"][name] == reports[1]["selection"][name]
    assert 0.5 < reports[0]["selection"]["precision"] <= 1
    assert reports[0]["selection"]["unique_tokens"] == 12_800


def test_a_stream_that_is_too_short_is_refused_where_that_is_known(asked: Settings) -> None:
    with pytest.raises(InputError, match="the stream ended after"):
        _losses(asked("choice.rounds=4", tokens=60_000, page=False))


def test_streaming_wants_a_budget_and_nothing_that_comes_again(asked: Settings) -> None:
    for flags, told in (
        ({}, "streaming needs --tokens"),
        ({"minutes": 1.0}, "streaming needs --tokens"),
        ({"tokens": 1000, "epochs": 2}, "epochs has no effect"),
    ):
        with pytest.raises((InputError, ValidationError), match=told):
            asked(**flags)
    for name in ("remember", "reuse"):
        with pytest.raises((InputError, ValidationError), match="do not go with streaming"):
            asked(f"choice.{name}=true", "choice.tilt=0.5", tokens=1000)


def test_a_whole_corpus_that_is_too_short_is_refused_at_the_start(place: Path) -> None:
    source = str(_file(place / "1.jsonl", _documents(0, 120)))
    corpus = _corpus(place, sources=[source], max_tokens=None)
    flags = {"data": str(corpus.folder), "streaming": True, "tokens": 50_000}
    settings = resolve(AqlSettings, flags, [*TINY, "prep.clusters=4"]).settings
    with pytest.raises(InputError, match="of a stream of"):
        run(settings)


def test_the_hub_is_read_while_it_comes_and_nothing_of_it_is_kept(place: Path) -> None:
    random, config = Random(0), "wikitext-2-raw-v1"

    def lines(first: int, count: int) -> list[str]:
        noise = ["".join(random.choice("abcdefghij ") for _ in range(1200)) for _ in range(count)]
        texts = enumerate(noise, first)
        return [line for n, text in texts for line in (f" = Title {n} = \n", f" {text} . \n")]

    shard, sizes = (
        f"{config}/{{}}-00000-of-00001.parquet",
        (("train", 0, 600), ("validation", 900, 20)),
    )
    files = {"README.md": _card(config), shard.format("test"): _parquet(lines(950, 20))}
    files |= {shard.format(split): _parquet(lines(*numbers)) for split, *numbers in sizes}
    with HubServer({"Salesforce/wikitext": files}) as hub:

        def python(home: str, *arguments: str) -> str:
            own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(place / home), "HF_HUB_DISABLE_XET": "1"}
            own |= {"EFF_DATA": str(place / "data")}
            command = [sys.executable, *arguments]
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, **own}, check=False
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        made = ("--tokenizer", "bytes", "--max-tokens", "60k")
        python("first", "-m", "effcli", "prepare", "wikitext-2", *made)
        folder = place / "data" / "wikitext-2-bytes"
        hub.requests.clear()
        found = json.loads(python("second", "-c", READ, str(folder)))
        assert [one for one in hub.requests if "train-0" in one]
    corpus = Corpus.open(folder)
    tokens = corpus.train.read([0], 50_000)[0].tolist()
    assert found["tokens"][:50_000] == tokens
    assert found["total"] > 4 * corpus.train.tokens
    files_kept = [path for path in (place / "second").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files_kept) < len(files[shard.format("train")]) / 4


READ = """
import json, sys
from pathlib import Path
from effcli.engine.data.corpus import Corpus
from effcli.engine.selection.reopened import Documents

documents = Documents(Corpus.open(Path(sys.argv[1])), 32)
tokens = []
while (block := documents.read(2**14)) is not None:
    tokens += block.row.read([0], block.row.tokens)[0].tolist()
print(json.dumps({"total": len(tokens), "tokens": tokens[:60_000]}))
"""
