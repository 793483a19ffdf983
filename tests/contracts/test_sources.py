"""The laws that every source of text and every tokenizer obeys."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effcli.engine.data import bpe
from effcli.engine.data.grammar import Grammar, NoisyGrammar
from effcli.engine.data.local import Local
from effcli.engine.data.source import Source, cut
from effcli.engine.data.stdlib import StandardLibrary
from effcli.engine.data.tokenizers import LONGEST_RUN, Tokenizer, byte_tokenizer, parse
from effcli.errors import InputError, ResourceError


@pytest.fixture(params=["grammar", "grammar-noisy", "python", "python:docs", "local"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    if request.param == "local":
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(50)))
        return Local(str(path))
    makers: dict[str, Any] = {"grammar": Grammar, "grammar-noisy": NoisyGrammar}
    kind, _, view = request.param.partition(":")
    return makers[kind]("3") if kind in makers else StandardLibrary(view)


def test_a_source_fits_the_protocol(source: Source) -> None:
    assert isinstance(source, Source)
    parse(source.tokenizer)


def test_a_source_gives_the_same_rows_again(source: Source) -> None:
    for split in source.splits:
        assert list(islice(source.rows(split), 20)) == list(islice(source.rows(split), 20))


def test_a_source_says_how_much_was_read(source: Source) -> None:
    rows = source.rows("train")
    list(islice(rows, 10))
    share = source.share_read()
    assert share is not None
    assert 0 <= share <= 1


def test_a_source_describes_itself_in_json(source: Source) -> None:
    assert json.loads(json.dumps(source.describe()))["kind"]


def test_own_splits_do_not_overlap(source: Source) -> None:
    if source.splits == {"train"}:
        return
    held_out = {row for split in ("val", "test") for row in source.rows(split)}
    train = set(source.rows("train"))
    common = held_out & train  # some sentences of a small grammar are likely to come twice
    assert len(common) < 0.1 * len(held_out)


TEXTS = [
    "",
    "plain text",
    "\x00\x01\x7f\r\n\t",
    "<|endoftext|> in a text is text",
    "日本語 🙂 é \u200b\u202e",
    " " * 300_000,
    "a" * 300_000,
    "no_space_at_all" * 20_000,
    "\n" * 10_000 + "x",
]


@pytest.fixture(scope="session")
def trained() -> Tokenizer:
    texts = [row.text for row in islice(Grammar("1").rows("train"), 300)]
    return bpe.train([text for text in texts if isinstance(text, str)], 320)


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request: pytest.FixtureRequest, trained: Tokenizer) -> Tokenizer:
    return trained if request.param == "bpe" else byte_tokenizer("")


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: f"{text[:8]!r}x{len(text)}")
def test_any_text_survives_encoding(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.separator not in ids
    assert int(tokenizer.token_bytes[ids].sum()) == len(text.encode())


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(st.characters(codec="utf8"), max_size=300))
def test_arbitrary_unicode_survives_encoding(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_batch_is_encoded_like_its_texts(tokenizer: Tokenizer) -> None:
    texts = [text for text in TEXTS if len(text) < 1000]
    together = tokenizer.encode_several(texts)
    for one, many in zip(map(tokenizer.encode, texts), together, strict=True):
        assert many is not None
        assert np.array_equal(one, many)


def test_a_saved_tokenizer_is_the_same_map(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "t.json")
    again = Tokenizer.load(tmp_path / "t.json")
    assert again.hash == tokenizer.hash
    assert again.vocab_size == tokenizer.vocab_size
    assert np.array_equal(again.encode("the fox sees"), tokenizer.encode("the fox sees"))


def test_another_map_has_another_hash(trained: Tokenizer) -> None:
    swapped = dict(trained.ranks)
    first, second = list(swapped)[-2:]
    swapped[first], swapped[second] = swapped[second], swapped[first]
    assert Tokenizer("x", "eff", swapped, trained.separator).hash != trained.hash


@pytest.mark.parametrize(
    "change",
    [
        {"hash": "0" * 64},
        {"tokens": []},
        {"pattern": "(a+)+b"},
        {"separator": 3},
        {"schema": 99},
        {"tokens": ["!!"]},
    ],
)
def test_a_damaged_tokenizer_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, change: dict[str, Any]
) -> None:
    tokenizer.save(tmp_path / "t.json")
    content = json.loads((tmp_path / "t.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(InputError):
        Tokenizer.load(tmp_path / "t.json")


def test_base64_that_says_the_same_otherwise_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    byte_tokenizer("").save(path)
    path.write_text(path.read_text().replace('"AA=="', '"AB=="'))  # bits that no byte has
    with pytest.raises(InputError, match="damaged"):
        Tokenizer.load(path)


def test_cutting_before_a_word_does_not_change_the_tokens(trained: Tokenizer) -> None:
    text = "".join(str(row.text) for row in islice(Grammar("2").rows("train"), 40))
    whole = trained.encode(text)
    assert len(text) < LONGEST_RUN
    for limit in (100, 333, 1000):
        parts = list(cut(text, limit))
        assert "".join(parts) == text
        assert max(map(len, parts)) <= limit
        assert np.array_equal(np.concatenate([trained.encode(part) for part in parts]), whole)


def test_both_trainers_make_equally_good_tokens() -> None:
    texts = [str(row.text) for row in islice(Grammar("1").rows("train"), 300)]
    sizes = []
    for make in (bpe._with_rustbpe, bpe._with_tokenizers):
        ranks = make(iter(texts), 319)
        assert sorted(ranks.values()) == list(range(319))
        tokenizer = Tokenizer("x", bpe.PATTERN, ranks, 319)
        sizes.append(sum(len(tokenizer.encode(text)) for text in texts))
    assert abs(sizes[0] - sizes[1]) < 0.01 * sizes[0]


def test_the_fallback_is_used_where_the_fast_trainer_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rustbpe", None)
    assert bpe.train(["the fox sees the crow " * 50], 270).vocab_size == 270


def test_too_little_text_for_a_tokenizer_is_said() -> None:
    with pytest.raises(InputError, match="too small or too uniform"):
        bpe.train(["aaa"], 4096)


@pytest.mark.parametrize("spec", ["bpe", "bpe:x", "bpe:100", "bpe:99999999", "gpt3", "bytes:7"])
def test_an_impossible_tokenizer_is_refused(spec: str) -> None:
    with pytest.raises(InputError):
        parse(spec)


@pytest.mark.parametrize("name", ["gpt2", "cl100k", "o200k"])
def test_without_a_network_published_tokenizers_say_what_to_do(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import socket

    from effcli.engine.data.tokenizers import published

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    import tiktoken.registry

    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    with pytest.raises(ResourceError) as raised:
        published(name)
    assert "TIKTOKEN_CACHE_DIR" in (raised.value.hint or "")
