"""Shards hold what was written, across their ends, and damage is noticed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effcli.engine.data.corpus import Corpus, Split, locate, manifest_hash
from effcli.engine.data.prepare import prepare
from effcli.engine.data.write import SplitWriter
from effcli.errors import CheckError, InputError
from effcli.settings.prepare import PrepareSettings


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    shard=st.integers(1, 25),
    cut=st.integers(0, 30),
    dtype=st.sampled_from(["uint16", "uint32"]),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], shard: int, cut: int, dtype: str
) -> None:
    """Also when the writer was stopped after some documents, and had written more since."""
    folder = tmp_path_factory.mktemp("shards")
    values = np.arange(sum(lengths) + len(lengths), dtype=np.uint32) % 60_000
    documents = np.split(values, np.cumsum([length + 1 for length in lengths])[:-1])
    writer = SplitWriter(folder, "train", dtype, shard, None)
    for number, ids in enumerate(documents):
        if number == cut:
            writer.flush()
            state = writer.state()
            writer.add(np.full(7, 9, dtype=np.uint32), 3, 1)  # work that is lost by a kill
            writer.flush()
            writer.abandon()
            writer = SplitWriter(folder, "train", dtype, shard, state)
        writer.add(ids, 10, number % 3)
    entry = writer.close()
    split = Split(folder, entry, dtype, shard)
    assert split.tokens == len(values)
    assert np.array_equal(split.read([0], len(values))[0], values)
    starts = np.cumsum([0] + [length + 1 for length in lengths])[:-1]
    assert np.array_equal(split.document_starts(), starts)
    labels = split.labels()
    expected = [number % 3 for number in range(len(lengths))]
    assert (labels is None and not any(expected)) or labels is not None
    if labels is not None:
        assert labels.tolist() == expected
    assert (
        sum(file["bytes"] for name, file in entry["files"].items() if ".bin" in name)
        == len(values) * np.dtype(dtype).itemsize
    )
    on_disk = {path.name for path in folder.iterdir()}
    assert set(entry["files"]) <= on_disk
    assert {name for name in on_disk if name.endswith(".bin")} == set(entry["shards"])


def test_windows_are_read_in_any_order(corpus: Corpus) -> None:
    tokens = corpus.val.read([0], 500)[0]
    rows = corpus.val.read([77, 3, 400], 50)
    for row, start in zip(rows, (77, 3, 400), strict=True):
        assert np.array_equal(row, tokens[start : start + 50])


def test_documents_begin_with_the_separator(corpus: Corpus) -> None:
    starts = corpus.val.document_starts()
    tokens = corpus.val.read([0], corpus.val.tokens)[0]
    assert (tokens[starts] == corpus.tokenizer.separator).all()
    assert (tokens == corpus.tokenizer.separator).sum() == len(starts) == corpus.val.documents


@pytest.fixture
def small(place: Path) -> Path:
    (place / "text.txt").write_text(
        "".join(f"Document {n} is here.<|endoftext|>" for n in range(400))
    )
    prepare(PrepareSettings(sources=("text.txt",), tokenizer="bytes", out=place / "corpus"))
    return place / "corpus"


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit": lambda data: bytes([data[0] ^ 4]) + data[1:],
    "cut short": lambda data: data[:-2],
    "empty": lambda _: b"",
    "longer": lambda data: data + b"\0\0",
    "zeros": lambda data: b"\0" * len(data),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["train-00000.bin", "val-00000.bin", "train.documents"])
def test_a_damaged_shard_is_refused(small: Path, file: str, damage: str) -> None:
    path = small / file
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(InputError, match="is damaged"):
        Corpus.open(small)
    with pytest.raises(CheckError, match=file.replace(".", r"\.")):
        Corpus.verified(small)


def test_a_missing_shard_is_refused(small: Path) -> None:
    (small / "train-00000.bin").unlink()
    with pytest.raises(InputError, match="damaged"):
        Corpus.open(small)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema": 99}', "null", "\xff"])
def test_a_damaged_manifest_is_refused(small: Path, content: str) -> None:
    (small / "corpus.json").write_bytes(content.encode("latin1"))
    with pytest.raises(InputError):
        Corpus.open(small)


@pytest.mark.parametrize(
    "changes",
    [{"tokens": 10**15}, {"tokens": -1}, {"tokens": "9"}, {"shards": []}, {"shards": ["../x.bin"]}],
)
def test_a_manifest_that_makes_no_sense_is_refused(small: Path, changes: dict[str, Any]) -> None:
    """Its hash holds: it was not damaged, but made so."""
    manifest = json.loads((small / "corpus.json").read_text())
    del manifest["sha256"]
    manifest["splits"]["train"].update(changes)
    sealed = {**manifest, "sha256": manifest_hash(manifest)}
    (small / "corpus.json").write_text(json.dumps(sealed))
    with pytest.raises(InputError):
        Corpus.open(small)


def test_ids_that_the_tokenizer_does_not_have_are_refused(corpus: Corpus) -> None:
    corpus.val._vocab_size = 50
    with pytest.raises(InputError, match="ids that its tokenizer does not have"):
        corpus.val.read([0], 500)


def test_another_tokenizer_beside_the_shards_is_refused(small: Path, corpus_folder: Path) -> None:
    content = json.loads((small / "corpus.json").read_text())
    content["tokenizer"]["hash"] = "0" * 64
    (small / "corpus.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="tokenizer"):
        Corpus.open(small)


def test_a_corpus_is_found_by_name_path_or_as_the_last_one(place: Path) -> None:
    with pytest.raises(InputError, match="no corpus was prepared"):
        locate(None)
    for seed in (1, 2):
        prepare(PrepareSettings(sources=(f"grammar:{seed}",), max_tokens=3000))
    assert locate(None).name == "grammar-2-bytes"
    assert locate("grammar-1-bytes") == Path("data/grammar-1-bytes")
    assert locate("data/grammar-1-bytes") == Path("data/grammar-1-bytes")
    prepare(PrepareSettings(sources=("grammar:1",), max_tokens=3000))  # up to date: still the last
    assert locate(None).name == "grammar-1-bytes"
    with pytest.raises(InputError) as raised:
        locate("grammar-3-bytes")
    assert "did you mean" in (raised.value.hint or "")


def test_the_beginning_of_a_text_is_a_text_of_its_own(corpus: Corpus) -> None:
    whole, part = corpus.train, corpus.first(0.3).train
    assert part.tokens == int(0.3 * whole.tokens)
    assert np.array_equal(part.read([0], part.tokens), whole.read([0], part.tokens))
    starts = whole.document_starts()
    assert np.array_equal(part.document_starts(), starts[starts < part.tokens])
    assert part.documents == len(part.document_starts())
    assert corpus.first(1.0) is corpus
    assert len({corpus.hash, corpus.first(0.3).hash, corpus.first(0.31).hash}) == 3
    assert corpus.first(0.3).val.tokens == corpus.val.tokens
