"""`eff prepare`, whole: local files, splits, mixes, resume, refusals."""

import bz2
import gzip
import json
import lzma
import signal
from collections.abc import Callable
from contextlib import suppress
from itertools import chain, cycle
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow
import pytest

from effcli.engine.data import job, tokenizers
from effcli.engine.data.corpus import Corpus, manifest_hash
from effcli.engine.data.prepare import prepare
from effcli.engine.records import Notice, Reading
from effcli.errors import CheckError, InputError, ResourceError, Stopped
from effcli.settings.prepare import PrepareSettings

ROWS = [f"Document number {n}: {'lorem ipsum ' * (n % 7)}" for n in range(300)]
LINES = "".join(json.dumps({"text": row, "id": n}) + "\n" for n, row in enumerate(ROWS)).encode()


def _parquet(path: Path) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    parquet.write_table(arrow.table({"text": ROWS}), path, row_group_size=50)


def _arrow(path: Path) -> None:
    import pyarrow as arrow

    table = arrow.table({"text": ROWS})
    with arrow.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table)


def _arrow_file(path: Path) -> None:
    import pyarrow as arrow

    table = arrow.table({"text": arrow.array(ROWS, type=arrow.large_string())})
    with arrow.ipc.new_file(str(path), table.schema) as stream:
        stream.write_table(table)


def _zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "a.jsonl.xz": lambda path: path.write_bytes(lzma.compress(LINES)),
    "a.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(LINES)),
    "a.jsonl.zst": lambda path: path.write_bytes(_zstd(LINES[:5000]) + _zstd(LINES[5000:])),
    "a.parquet": _parquet,
    "a.arrow": _arrow,
    "b.arrow": _arrow_file,
    "a.txt": lambda path: path.write_text("<|endoftext|>".join(ROWS)),
    "a.txt.gz": lambda path: path.write_bytes(gzip.compress("<|endoftext|>".join(ROWS).encode())),
}


def _texts(corpus: Corpus, split: str) -> list[str]:
    data = corpus.splits[split]
    if not data.documents:
        return []
    ids = data.read([0], data.tokens)[0]
    return [corpus.tokenizer.decode(part) for part in np.split(ids, data.document_starts())[1:]]


def _make(**settings: Any) -> tuple[dict[str, Any], Corpus]:
    summary = prepare(PrepareSettings(**settings))
    return summary, Corpus.open(Path(summary["corpus"]))


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_documents(place: Path, name: str) -> None:
    WRITERS[name](place / name)
    summary, corpus = _make(sources=(name,), tokenizer="bytes")
    found = {split: _texts(corpus, split) for split in ("train", "val", "test")}
    assert sorted(chain.from_iterable(found.values())) == sorted(ROWS)
    assert all(found.values())
    assert summary["rejected"] == 0
    for split, texts in found.items():
        assert summary["splits"][split]["documents"] == len(texts)
        assert summary["splits"][split]["bytes"] == sum(len(text.encode()) for text in texts)
        assert summary["splits"][split]["tokens"] == sum(len(t.encode()) + 1 for t in texts)


def test_a_folder_and_a_glob_are_all_their_files(place: Path) -> None:
    (place / "in" / "deep").mkdir(parents=True)
    for number, folder in enumerate(["in", "in", "in/deep"]):
        rows = ROWS[number * 100 : number * 100 + 100]
        (place / folder / f"{number}.txt").write_text("<|endoftext|>".join(rows))
    (place / "in" / "picture.png").write_bytes(b"\x89PNG")
    for source in ("in", "in/**/*.txt"):
        _, corpus = _make(sources=(source,), tokenizer="bytes", out=Path(f"out-{len(source)}"))
        found = list(chain.from_iterable(_texts(corpus, split) for split in corpus.splits))
        assert sorted(found) == sorted(ROWS)


def test_splits_do_not_depend_on_the_order_of_documents(place: Path) -> None:
    for name, rows in (("one", ROWS), ("two", ROWS[::-1])):
        (place / f"{name}.jsonl").write_text("".join(json.dumps({"text": r}) + "\n" for r in rows))
    held_out = [
        set(_texts(_make(sources=(f"{n}.jsonl",), tokenizer="bytes")[1], "val"))
        for n in ("one", "two")
    ]
    assert held_out[0] == held_out[1]
    _, other = _make(sources=("one.jsonl",), tokenizer="bytes", seed=1, out=Path("seeded"))
    assert set(_texts(other, "val")) != held_out[0]


def test_the_share_of_held_out_documents_is_what_was_asked(place: Path) -> None:
    rows = [f"row {n}" for n in range(4000)]
    (place / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    summary, _ = _make(sources=("a.jsonl",), tokenizer="bytes", held_out_share=0.2)
    for split in ("val", "test"):
        assert summary["splits"][split]["documents"] == pytest.approx(800, abs=100)


def test_own_splits_are_used_and_their_duplicates_removed_from_training(place: Path) -> None:
    (place / "val.txt").write_text("<|endoftext|>".join(ROWS[:10]))
    (place / "train.jsonl").write_bytes(LINES)
    summary, corpus = _make(
        sources=("train.jsonl",), val=Path("val.txt"), held_out_share=0.0, tokenizer="bytes"
    )
    assert _texts(corpus, "val") == ROWS[:10]
    assert summary["duplicates_removed"] == 10
    assert _texts(corpus, "train") == ROWS[10:]


def test_duplicates_are_removed_across_sources(place: Path) -> None:
    for name in ("one", "two"):
        (place / f"{name}.jsonl").write_bytes(LINES)
    _, corpus = _make(sources=("one.jsonl", "two.jsonl"), tokenizer="bytes", held_out_share=0.2)
    assert not set(_texts(corpus, "val")) & set(_texts(corpus, "train"))
    assert not set(_texts(corpus, "test")) & set(_texts(corpus, "train"))


def test_bad_rows_are_counted_by_reason(place: Path) -> None:
    bad = [
        b'{"text": ""}',
        b'{"text": "   "}',
        b'{"text": 7}',
        b'{"text": null}',
        b'["no", "object"]',
        b"not json",
        b'{"text": "\xff\xfe"}',
        b'{"text": "\\ud800"}',
    ]
    (place / "a.jsonl").write_bytes(LINES + b"\n".join(bad) + b"\n")
    summary, _ = _make(sources=("a.jsonl",), tokenizer="bytes")
    assert summary["rejected"] == 8
    assert summary["rejected_by_reason"] == {"empty": 2, "not_text": 4, "not_utf8": 2}


def test_too_many_bad_rows_fail_the_preparation(place: Path) -> None:
    (place / "a.jsonl").write_bytes(LINES + b'{"text": ""}\n' * 30)
    with pytest.raises(InputError, match="30 of 330 rows are not usable text") as raised:
        _make(sources=("a.jsonl",), tokenizer="bytes")
    assert "max_rejected" in (raised.value.hint or "")
    assert not [path for path in (place / "data").iterdir() if not path.name.startswith(".")]
    summary, _ = _make(sources=("a.jsonl",), tokenizer="bytes", max_rejected=0.1)
    assert summary["rejected"] == 30


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"body": "x"}\n', "begins without the field 'text'"),
        ("a.csv", b"a,b", "unknown kind of file"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
        ("a.jsonl.xz", lzma.compress(LINES)[:-20], "cannot be read"),
        ("a.jsonl.zst", _zstd(LINES)[10:], "cannot be read"),
        ("a.jsonl.zst", _zstd(LINES)[:-10], "cannot be read"),
        ("a.jsonl.zst", _zstd(LINES) + _zstd(LINES)[:50], "cannot be read"),
        ("a.parquet", b"PAR1", "damaged"),
        ("a.arrow", b"x" * 100, "damaged"),
        ("a.txt", b"", "no text for the train split"),
    ],
)
def test_a_bad_file_is_named(place: Path, name: str, content: bytes, message: str) -> None:
    (place / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        _make(sources=(name,), tokenizer="bytes")
    assert not (place / "data" / f"{name.split('.')[0]}-bytes").exists()


def test_offsets_that_lead_out_of_an_arrow_file_are_refused(place: Path) -> None:
    _arrow(place / "a.arrow")
    data = bytearray((place / "a.arrow").read_bytes())
    second = len(ROWS[0]).to_bytes(4, "little")  # where the second row begins
    at = data.index(bytes(4) + second) + 4
    data[at : at + 4] = (2**30).to_bytes(4, "little")
    (place / "a.arrow").write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        _make(sources=("a.arrow",), tokenizer="bytes")


def test_a_missing_column_names_the_ones_there_are(place: Path) -> None:
    _parquet(place / "a.parquet")
    with pytest.raises(InputError) as raised:
        _make(sources=("a.parquet",), text_column="body", tokenizer="bytes")
    assert raised.value.hint == "--text-column is one of: text"


def test_plain_text_without_separators_is_cut_and_nothing_is_lost(place: Path) -> None:
    text = "".join(
        f"Line {n} of a long text, é 日本.\n" + "\n" * (n % 9 == 0) for n in range(20_000)
    )
    (place / "novel.txt").write_text(text)
    summary, corpus = _make(sources=("novel.txt",), tokenizer="bytes")
    parts = [part for split in ("train", "val", "test") for part in _texts(corpus, split)]
    assert sum(map(len, parts)) == len(text)
    assert "\ufffd" not in "".join(parts)
    assert all(part in text for part in parts[:20])
    assert summary["splits"]["val"]["documents"] > 1


def test_one_endless_line_is_read_in_parts(place: Path) -> None:
    numbers = "".join(map(str, range(400_000)))
    text = ("é" * 30_001 + numbers + " ".join(map(str, range(100_000)))).encode()
    (place / "line.txt").write_bytes(text)
    _, corpus = _make(sources=("line.txt",), tokenizer="bytes")
    total = sum(corpus.splits[split].bytes for split in corpus.splits)
    assert total == len(text)


def test_an_endless_line_of_json_is_rejected_not_held(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from effcli.engine.data import local

    monkeypatch.setattr(local, "LONGEST_LINE", 5000)
    (place / "a.jsonl").write_bytes(LINES + b'{"text": "' + b"x" * 9000 + b'"}\n' + LINES)
    summary, _ = _make(sources=("a.jsonl",), tokenizer="bytes")
    assert summary["rejected_by_reason"] == {"not_text": 1}
    assert sum(split["documents"] for split in summary["splits"].values()) == 600


def test_a_very_long_document_is_cut(place: Path) -> None:
    (place / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"{n} " + "word " * 300_000}) + "\n" for n in range(3))
    )
    summary, _ = _make(sources=("a.jsonl",), tokenizer="bytes", max_rejected=0)
    assert sum(split["documents"] for split in summary["splits"].values()) > 60


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
def test_hostile_text_goes_through(place: Path, tokenizer: str) -> None:
    rows = [" " * 1_500_000, "\0" * 1000, "<|endoftext|> <|im_start|>", "a" * 1_200_000, "\n\n\n"]
    lines = "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()
    (place / "a.jsonl").write_bytes(LINES + lines)
    summary, corpus = _make(sources=("a.jsonl",), tokenizer=tokenizer, held_out_share=0.1)
    assert summary["rejected_by_reason"] == {"empty": 2}
    separators = corpus.train.read([0], corpus.train.tokens)[0] == corpus.tokenizer.separator
    assert separators.sum() == corpus.train.documents


def test_max_tokens_ends_the_training_split_exactly(place: Path) -> None:
    (place / "a.jsonl").write_bytes(LINES)
    summary, corpus = _make(sources=("a.jsonl",), tokenizer="bytes", max_tokens=777)
    assert summary["splits"]["train"]["tokens"] == 777
    assert corpus.train.bytes == 777 - corpus.train.documents


def test_a_mix_keeps_its_shares_and_its_order(place: Path) -> None:
    dice, wanted = Random(0), {"a.jsonl": 0.6, "b.jsonl": 0.3, "c.jsonl": 0.1}
    for name in wanted:
        lines = [json.dumps({"text": f"{name} {n} " * dice.randint(1, 99)}) for n in range(900)]
        (place / name).write_text("\n".join(lines))
    mix = ",".join(f"{name}:{share}" for name, share in wanted.items())
    settings: dict[str, Any] = {"mix": mix, "tokenizer": "bytes", "max_tokens": 400_000}
    summary, corpus = _make(**settings)
    shares = summary["mix"]["train"]
    for name, share in wanted.items():
        assert shares[name] / sum(shares.values()) == pytest.approx(share, abs=0.01)
    _, again = _make(**settings, out=Path("again"))
    _, other = _make(**settings, out=Path("other"), seed=1)
    assert corpus.hash == again.hash != other.hash


def test_a_mix_ends_with_its_first_source_unless_it_may_repeat(place: Path) -> None:
    (place / "small.jsonl").write_text(
        "".join(json.dumps({"text": f"small {n} " * 5}) + "\n" for n in range(200))
    )
    base: dict[str, Any] = {"mix": "small.jsonl:0.5,grammar:1:0.5", "tokenizer": "bytes"}
    summary, _ = _make(**base, max_tokens=200_000)
    assert summary["splits"]["train"]["tokens"] < 40_000
    summary, _ = _make(**base, max_tokens=200_000, repeat=True, out=Path("repeated"))
    assert summary["splits"]["train"]["tokens"] == 200_000
    shares = summary["mix"]["train"]
    assert shares["small.jsonl"] / sum(shares.values()) == pytest.approx(0.5, abs=0.01)


def test_a_second_run_does_nothing_and_says_so(place: Path) -> None:
    (place / "a.jsonl").write_bytes(LINES)
    first, corpus = _make(sources=("a.jsonl",), tokenizer="bytes")
    before = {path: path.stat().st_mtime_ns for path in corpus.folder.iterdir()}
    second, _ = _make(sources=("a.jsonl",), tokenizer="bytes")
    assert (first["status"], second["status"]) == ("prepared", "unchanged")
    assert {path: path.stat().st_mtime_ns for path in corpus.folder.iterdir()} == before


def test_another_corpus_of_the_same_name_is_not_overwritten(place: Path) -> None:
    (place / "a.jsonl").write_bytes(LINES)
    _make(sources=("a.jsonl",), tokenizer="bytes")
    with pytest.raises(InputError, match="other settings"):
        _make(sources=("a.jsonl",), tokenizer="bytes", seed=1)
    (place / "a.jsonl").write_bytes(LINES + LINES)
    with pytest.raises(InputError, match="not the text any more"):
        _make(sources=("a.jsonl",), tokenizer="bytes")
    summary, _ = _make(sources=("a.jsonl",), tokenizer="bytes", force=True)
    assert summary["status"] == "prepared"
    assert not list(Path("data").glob("*.old-*"))


def test_a_folder_with_other_things_is_left_alone(place: Path) -> None:
    (place / "thesis").mkdir()
    (place / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds something else"):
        _make(sources=("grammar:1",), out=Path("thesis"))
    assert (place / "thesis" / "chapter.tex").read_text() == "years of work"


@pytest.mark.parametrize("kind", ["single", "mix", "own"])
def test_an_interrupted_preparation_goes_on_to_the_same_bytes(
    place: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "COMMIT_SECONDS", 0.0)
    (place / "a.jsonl").write_bytes(LINES * 3)
    (place / "b.txt").write_text("<|endoftext|>".join(f"other {row}" for row in ROWS[:40]))
    settings: dict[str, Any] = {
        "single": {"sources": ("a.jsonl",), "tokenizer": "bpe:300"},
        "mix": {"mix": "a.jsonl:0.7,b.txt:0.3", "tokenizer": "bytes", "held_out_share": 0.3},
        "own": {"sources": ("a.jsonl",), "val": Path("b.txt"), "tokenizer": "bytes"},
    }[kind] | {"shard_tokens": 1024}
    _, whole = _make(**settings, out=Path("whole"))
    interruptions = 0
    for attempt in range(400):
        left = [37 + 30 * attempt]  # training a tokenizer is begun again each time

        def stop(left: list[int] = left) -> int | None:
            left[0] -= 1
            return signal.SIGINT if left[0] < 0 else None

        try:
            prepare(PrepareSettings(**settings, out=Path("parts")), stop=stop)
        except Stopped as error:
            interruptions += error.code == 130
            continue
        break
    assert interruptions > 3
    assert Corpus.open(Path("parts")).hash == whole.hash
    assert not Path("parts.partial").exists()


def test_a_preparation_that_was_begun_differently_is_begun_again(place: Path) -> None:
    (place / "a.jsonl").write_bytes(LINES)

    def at_once() -> int:
        return signal.SIGTERM

    with pytest.raises(Stopped):
        prepare(PrepareSettings(sources=("a.jsonl",), tokenizer="bytes"), stop=at_once)
    summary, _ = _make(sources=("a.jsonl",), tokenizer="bytes", seed=5)
    assert summary["status"] == "prepared"


def test_progress_is_reported(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "WATCH_SECONDS", 0.0)
    (place / "a.jsonl").write_bytes(LINES)
    seen: list[Any] = []
    prepare(PrepareSettings(sources=("a.jsonl",), tokenizer="bpe:300"), watch=seen.append)
    readings = [record for record in seen if isinstance(record, Reading)]
    shares = [record.share for record in readings]
    assert any(isinstance(record, Notice) and "tokenizer" in record.text for record in seen)
    assert len(readings) > 100
    assert all(share is not None and 0 <= share <= 1 for share in shares)
    assert readings[-1].tokens > 1000


def test_two_preparations_of_one_corpus_are_refused(place: Path) -> None:
    from effcli.engine.runs.lock import locked

    (place / "data").mkdir()
    with (
        locked(place / "data" / ".grammar-1-bytes.lock", "it"),
        pytest.raises(ResourceError, match="is in use by process"),
    ):
        _make(sources=("grammar:1",))


def test_a_full_disk_leaves_nothing_half_done(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        _make(sources=("grammar:1",))
    assert not (place / "data" / "grammar-1-bytes").exists()
    monkeypatch.undo()
    monkeypatch.chdir(place)
    summary, _ = _make(sources=("grammar:1",))
    assert summary["status"] == "prepared"


def test_the_embedded_corpus_needs_no_network_and_no_argument(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    summary, corpus = _make()
    assert summary["tokenizer"] == "bpe:4096"
    assert summary["splits"]["train"]["bytes"] > 3_000_000
    assert corpus.manifest["sources"][0]["python"]
    assert min(summary["splits"][split]["documents"] for split in ("val", "test")) > 5


def test_memory_stays_bounded_whatever_the_size(place: Path) -> None:
    """A corpus of 60 MB in one row group and one of 6 MB peak within 150 MB of each other."""
    import subprocess
    import sys

    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from effcli.engine.data.prepare import prepare\n"
        "from effcli.settings.prepare import PrepareSettings\n"
        "prepare(PrepareSettings(sources=(sys.argv[1],), tokenizer='bytes'))\n"
        "from effcli.engine.device import Device\n"
        "from effcli.settings.train import DeviceSettings\n"
        "print(Device(DeviceSettings(name='cpu')).peak_memory_bytes())\n"
    )
    peaks = []
    for name, times in (("small", 5_000), ("large", 50_000)):
        with (place / f"{name}.jsonl").open("w") as stream:
            for number in range(times):
                stream.write(json.dumps({"text": f"{number} " + "word " * 240}) + "\n")
        command = [sys.executable, "-c", code, f"{name}.jsonl"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 2**20)
    assert peaks[1] - peaks[0] < 150
    assert peaks[1] < 1000


def test_a_source_that_changed_is_not_up_to_date(place: Path) -> None:
    (place / "texts").mkdir()
    first = place / "texts" / "a.jsonl"
    first.write_bytes(LINES)
    _make(sources=("texts",), tokenizer="bytes")
    assert _make(sources=("texts",), tokenizer="bytes")[0]["status"] == "unchanged"
    first.touch()  # the same text, written again
    assert _make(sources=("texts",), tokenizer="bytes")[0]["status"] == "unchanged"
    first.write_bytes(LINES.replace(b"lorem", b"merol"))
    with pytest.raises(InputError, match="not the text any more"):
        _make(sources=("texts",), tokenizer="bytes")
    first.write_bytes(LINES)
    (place / "texts" / "b.jsonl").write_bytes(LINES)
    with pytest.raises(InputError, match="not the text any more"):
        _make(sources=("texts",), tokenizer="bytes")


def test_another_file_of_the_same_name_is_another_source(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFF_DATA", str(place / "all"))
    for name, lines in (("one", LINES), ("two", LINES.replace(b"lorem", b"merol"))):
        (place / name).mkdir()
        (place / name / "a.jsonl").write_bytes(lines)
    monkeypatch.chdir(place / "one")
    _make(sources=("a.jsonl",), tokenizer="bytes")
    monkeypatch.chdir(place / "two")
    with pytest.raises(InputError, match="not the text any more"):
        _make(sources=("a.jsonl",), tokenizer="bytes")


def test_a_preparation_of_text_that_changed_meanwhile_begins_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "COMMIT_SECONDS", 0.0)
    (place / "a.jsonl").write_bytes(LINES)
    calls = iter([None] * 100)
    settings = PrepareSettings(sources=("a.jsonl",), tokenizer="bytes")
    with pytest.raises(Stopped):
        prepare(settings, stop=lambda: next(calls, signal.SIGINT))
    (place / "a.jsonl").write_bytes(LINES.replace(b"lorem", b"merol"))
    said: list[Any] = []
    summary = prepare(settings, watch=said.append)
    texts = "".join(chain.from_iterable(_texts(Corpus.open(Path(summary["corpus"])), "train")))
    assert "merol" in texts
    assert "lorem" not in texts
    assert any("beginning again" in n.text for n in said if isinstance(n, Notice))


def test_a_row_without_text_is_one_bad_row(place: Path) -> None:
    (place / "a.jsonl").write_bytes(LINES + b'{"other": 1}\n' + LINES.replace(b"ipsum", b"musip"))
    summary, _ = _make(sources=("a.jsonl",), tokenizer="bytes")
    assert summary["rejected_by_reason"] == {"not_text": 1}


def test_blank_space_without_end_is_no_reason_to_fail(place: Path) -> None:
    text = "<|endoftext|>".join(ROWS) + "\nbefore" + " " * 1_000_000 + "after"
    (place / "a.txt").write_text(text)
    summary, _ = _make(sources=("a.txt",), tokenizer="bytes")
    assert summary["rejected"] == 0


def test_rejected_rows_are_named_before_the_tokenizer_complains(place: Path) -> None:
    (place / "a.jsonl").write_bytes(b'{"text": ""}\n' * 50)
    with pytest.raises(InputError, match="50 of 50 rows are not usable text"):
        _make(sources=("a.jsonl",), tokenizer="bpe:300")


def test_advice_on_rejected_rows_is_enough(place: Path) -> None:
    (place / "a.jsonl").write_bytes(LINES + b'{"text": ""}\n' * 150)
    with pytest.raises(InputError) as raised:
        _make(sources=("a.jsonl",), tokenizer="bytes")
    share = float((raised.value.hint or "").rpartition("=")[2])
    _make(sources=("a.jsonl",), tokenizer="bytes", max_rejected=share)


def test_what_is_left_without_text_is_explained(place: Path) -> None:
    (place / "a.jsonl").write_bytes(LINES)
    with pytest.raises(InputError, match="of them also held out"):
        _make(sources=("a.jsonl",), val=place / "a.jsonl", tokenizer="bytes")
    (place / "empty.jsonl").write_bytes(b"")
    with pytest.raises(InputError, match="no text for the test split") as raised:
        _make(sources=("a.jsonl",), test=place / "empty.jsonl", tokenizer="bytes")
    assert "another --test" in (raised.value.hint or "")


def test_a_manifest_that_was_edited_is_noticed(place: Path) -> None:
    (place / "a.jsonl").write_bytes(LINES)
    _, corpus = _make(sources=("a.jsonl",), tokenizer="bytes")
    path = corpus.folder / "corpus.json"
    tokens = corpus.train.tokens
    path.write_text(path.read_text().replace(f'"tokens": {tokens}', f'"tokens": {tokens - 1}'))
    with pytest.raises(InputError, match="not what was written"):
        Corpus.open(corpus.folder)
    with pytest.raises(CheckError, match="not what was written"):
        Corpus.verified(corpus.folder)


def test_rows_are_counted_once_however_many_passes_read_them(place: Path) -> None:
    for name in ("a", "b"):
        rows = ["" if n % 100 == 0 else f"{name} {n} words" for n in range(2000)]
        lines = [json.dumps({"text": row}) for row in rows]
        (place / f"{name}.jsonl").write_text("\n".join(lines))
    summary, corpus = _make(sources=("a.jsonl", "b.jsonl"), tokenizer="bytes")
    documents = sum(split.documents for split in corpus.splits.values())
    assert (summary["rejected"], documents) == (40, 3960)


def test_repeating_without_end_is_refused(place: Path, eff: Callable[..., Any]) -> None:
    (place / "a.jsonl").write_bytes(LINES)
    code, _, err = eff("prepare", "--mix", "a.jsonl:0.5,grammar:1:0.5", "--set", "repeat=true")
    assert code == 2
    assert "never end" in err


def test_repeating_nothing_is_refused(place: Path) -> None:
    (place / "a.jsonl").write_text('{"text": ""}\n' * 3)
    settings: dict[str, Any] = {"mix": "a.jsonl:0.5,grammar:1:0.5", "max_tokens": 10_000}
    with pytest.raises(InputError, match=r"no training text in a.jsonl"):
        _make(**settings, repeat=True, max_rejected=1.0, tokenizer="bytes")


def test_pieces_of_a_document_stay_together(place: Path) -> None:
    for name in ("a", "b"):
        rows = [f"{name}{n} " * 8000 for n in range(20)]
        lines = [json.dumps({"text": row}) for row in rows]
        (place / f"{name}.jsonl").write_text("\n".join(lines))
    _, corpus = _make(
        mix="a.jsonl:0.5,b.jsonl:0.5", tokenizer="bytes", held_out_share=0.3, max_tokens=10**6
    )
    seen = {split: {t.split()[1] for t in _texts(corpus, split)} for split in corpus.splits}
    assert not seen["train"] & seen["val"]
    assert not seen["train"] & seen["test"]
    assert not seen["val"] & seen["test"]


def test_a_tokenizer_never_sees_held_out_text(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        rows = [f"{name}{n} " * 8000 for n in range(20)]
        lines = [json.dumps({"text": row}) for row in rows]
        (place / f"{name}.jsonl").write_text("\n".join(lines))
    seen: set[str] = set()
    monkeypatch.setattr(
        "effcli.engine.data.bpe.train",
        lambda texts, _: (seen.update(texts), tokenizers.byte_tokenizer("bytes"))[1],
    )
    settings: dict[str, Any] = {"mix": "a.jsonl:0.5,b.jsonl:0.5", "held_out_share": 0.3}
    _, corpus = _make(**settings, tokenizer="bpe:300")
    assert seen
    for split in ("val", "test"):
        assert not seen & set(_texts(corpus, split))


def test_a_stop_at_the_last_document_changes_nothing(place: Path) -> None:
    (place / "a.jsonl").write_bytes(LINES)
    settings: dict[str, Any] = {"sources": ("a.jsonl",), "tokenizer": "bytes"}
    settings |= {"held_out_share": 0.3, "max_tokens": 700}
    _, whole = _make(**settings, out=Path("whole"))
    for calls in range(200):
        left = [calls]

        def stop(left: list[int] = left) -> int | None:
            left[0] -= 1
            return signal.SIGINT if left[0] == -1 else None

        out = Path(f"parts-{calls}")
        try:
            prepare(PrepareSettings(**settings, out=out), stop=stop)
        except Stopped:
            prepare(PrepareSettings(**settings, out=out))
        else:
            break
        assert Corpus.open(out).hash == whole.hash
    assert calls > 20


def _labeled(path: Path, labels: list[Any]) -> None:
    """Documents whose label, if any, is also in their text."""
    rows = [
        {"text": f"{label} {row}", **({} if label is None else {"kind": label})}
        for label, row in zip(cycle(labels), ROWS, strict=False)
    ]
    if path.suffix == ".parquet":
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(rows), path, row_group_size=50)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize("labels", [["wiki", "logs", None, "code"], [7, 0, None]])
def test_documents_keep_the_labels_of_their_rows(place: Path, name: str, labels: list[Any]) -> None:
    _labeled(place / name, labels)
    _, corpus = _make(sources=(name,), label_column="kind", tokenizer="bytes")
    assert corpus.label_names == ["" if label is None else str(label) for label in labels]
    for split in corpus.splits:
        numbers = corpus.splits[split].labels()
        assert numbers is not None
        named = [corpus.label_names[number] or "None" for number in numbers]
        assert named == [text.split()[0] for text in _texts(corpus, split)]


def test_held_out_text_has_labels_that_training_text_has(place: Path) -> None:
    _labeled(place / "a.jsonl", ["wiki", "logs"])
    _labeled(place / "b.jsonl", ["other", "logs", "wiki"])
    _, corpus = _make(
        sources=("a.jsonl",), val=Path("b.jsonl"), label_column="kind", tokenizer="bytes"
    )
    assert corpus.label_names == ["wiki", "logs"]
    labels = corpus.val.labels()
    assert labels is not None
    first = [text.split()[0] for text in _texts(corpus, "val")]
    assert labels.tolist() == [int(name == "logs") for name in first]


def test_labels_are_of_the_training_text_alone(place: Path) -> None:
    _labeled(place / "a.jsonl", ["wiki", "logs"])
    _labeled(place / "b.jsonl", [2.5])
    _, corpus = _make(
        sources=("a.jsonl",), val=Path("b.jsonl"), label_column="kind", tokenizer="bytes"
    )
    assert corpus.label_names == ["wiki", "logs"]
    assert corpus.val.labels() is None


@pytest.mark.parametrize("calls", [1, 60, 160, 310, 10_000])
def test_labels_are_numbered_alike_wherever_a_preparation_is_continued(
    place: Path, calls: int
) -> None:
    _labeled(place / "a.jsonl", ["late" if n > 200 else "early" for n in range(300)])
    settings: dict[str, Any] = {"sources": ("a.jsonl",), "tokenizer": "bytes", "max_tokens": 9000}
    settings |= {"label_column": "kind"}
    _, whole = _make(**settings, out=Path("whole"))
    left = iter(range(calls))

    def stop() -> int | None:
        return None if next(left, None) is not None else signal.SIGINT

    with suppress(Stopped):
        prepare(PrepareSettings(**settings, out=Path("parts")), stop=stop)
    prepare(PrepareSettings(**settings, out=Path("parts")))
    parts = Corpus.open(Path("parts"))
    assert parts.hash == whole.hash
    assert parts.label_names == whole.label_names == ["early", "late"]


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        (["wiki"], {"label_column": "sort"}, "nothing in a.jsonl has a label 'sort'"),
        (list(range(257)), {"label_column": "kind"}, "more than 256 values"),
        ([2.5], {"label_column": "kind"}, "neither a short text nor a whole number: 2.5"),
        (["x" * 101], {"label_column": "kind"}, "neither a short text nor a whole number"),
        (["wiki"], {"label_column": "kind", "sources": ("a.jsonl", "python")}, "one source"),
        (["wiki"], {"label_column": "kind", "sources": ("a.txt",)}, "has no effect on a.txt"),
    ],
)
def test_labels_that_cannot_be_kept_are_refused(
    place: Path, labels: list[Any], settings: dict[str, Any], message: str
) -> None:
    _labeled(place / "a.jsonl", labels)
    (place / "a.txt").write_text("some text")
    chosen = PrepareSettings(**{"sources": ("a.jsonl",), "tokenizer": "bytes", **settings})
    with pytest.raises(InputError, match=message):
        prepare(chosen, given={"label_column"})


def test_a_generated_corpus_names_its_labels_and_others_have_none(place: Path) -> None:
    _, noisy = _make(sources=("grammar-noisy:1",), max_tokens=10_000)
    assert noisy.label_names == ["easy", "hard", "duplicate", "noise"]
    _, plain = _make(sources=("grammar:1",), max_tokens=10_000)
    assert plain.label_names == []


def test_a_corpus_from_before_a_setting_is_the_same_without_it(place: Path) -> None:
    (place / "a.jsonl").write_bytes(LINES)
    settings: dict[str, Any] = {"sources": ("a.jsonl",), "tokenizer": "bytes"}
    _, corpus = _make(**settings)
    old = json.loads((corpus.folder / "corpus.json").read_text())
    del old["sha256"], old["request"]["label_column"]
    old["sha256"] = manifest_hash(old)
    (corpus.folder / "corpus.json").write_text(json.dumps(old))
    assert _make(**settings)[0]["status"] == "unchanged"
    with pytest.raises(InputError, match=r"other settings \(label_column\)"):
        _make(**settings, label_column="id", out=corpus.folder)


def test_hostile_labels_are_kept_as_text(place: Path) -> None:
    labels = ["\ud800", "\x1b[2J", "\u202eabc"]
    rows = [{"text": row, "kind": labels[n % 3]} for n, row in enumerate(ROWS)]
    (place / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, corpus = _make(sources=("a.jsonl",), label_column="kind", tokenizer="bytes")
    assert corpus.label_names == ["?", *labels[1:]]
    assert b"\x1b" not in (corpus.folder / "corpus.json").read_bytes()


def _tokenizer_of(name: str, rows: list[str], spec: str = "bpe:300") -> Corpus:
    Path(f"{name}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    out = Path("data") / name
    return _make(sources=(f"{name}.jsonl",), tokenizer=spec, out=out, force=True)[1]


@pytest.mark.parametrize("spec", ["like:first", "like:data/first"])
def test_a_corpus_takes_over_the_tokenizer_of_another(place: Path, spec: str) -> None:
    first = _tokenizer_of("first", ROWS)
    (place / "a.jsonl").write_bytes(LINES.replace(b"lorem ipsum", b"other words"))
    summary, second = _make(sources=("a.jsonl",), tokenizer=spec)
    assert Path(summary["corpus"]).name == "a-like-first"
    assert second.tokenizer.hash == first.tokenizer.hash
    assert second.manifest["tokenizer"] == first.manifest["tokenizer"]
    texts = chain.from_iterable(_texts(second, split) for split in second.splits)
    assert sorted(texts) == sorted(row.replace("lorem ipsum", "other words") for row in ROWS)


def test_a_corpus_is_up_to_date_as_long_as_the_tokenizer_it_took_over(place: Path) -> None:
    _tokenizer_of("first", ROWS)
    _tokenizer_of("twin", ROWS)
    (place / "a.jsonl").write_bytes(LINES)
    settings: dict[str, Any] = {"sources": ("a.jsonl",), "out": Path("data") / "a"}
    _make(**settings, tokenizer="like:first")
    assert _make(**settings, tokenizer="like:twin")[0]["status"] == "unchanged"
    _tokenizer_of("first", [row.upper() for row in ROWS])
    with pytest.raises(InputError, match=r"other settings \(tokenizer\)"):
        _make(**settings, tokenizer="like:first")
    summary, corpus = _make(**settings, tokenizer="like:first", force=True)
    assert summary["status"] == "prepared"
    assert corpus.tokenizer.hash == Corpus.open(Path("data/first")).tokenizer.hash


def test_a_tokenizer_that_changed_meanwhile_begins_a_preparation_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "COMMIT_SECONDS", 0.0)
    _tokenizer_of("first", ROWS)
    (place / "a.jsonl").write_bytes(LINES)
    calls = iter([None] * 100)
    settings = PrepareSettings(sources=("a.jsonl",), tokenizer="like:first")
    with pytest.raises(Stopped):
        prepare(settings, stop=lambda: next(calls, signal.SIGINT))
    other = _tokenizer_of("first", ROWS, "bytes")
    corpus = Corpus.open(Path(prepare(settings)["corpus"]))
    assert corpus.tokenizer.hash == other.tokenizer.hash


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("like:frist", "there is no corpus 'frist'", "did you mean 'first'?"),
        ("like:", "there is no tokenizer 'like:'", "like:CORPUS takes over"),
        ("lik:first", "there is no tokenizer called 'lik'", "did you mean 'like'?"),
    ],
)
def test_a_corpus_to_take_a_tokenizer_from_has_to_be_there(
    place: Path, spec: str, message: str, hint: str
) -> None:
    _tokenizer_of("first", ROWS, "bytes")
    with pytest.raises(InputError, match=message) as raised:
        _make(sources=("first.jsonl",), tokenizer=spec)
    assert hint in (raised.value.hint or "")
    assert [path.name for path in Path("data").glob("[!.]*")] == ["first"]


def test_a_tokenizer_that_is_taken_over_needs_no_sample(place: Path) -> None:
    _tokenizer_of("first", ROWS, "bytes")
    chosen = PrepareSettings(sources=("first.jsonl",), tokenizer="like:first", bpe_sample=5000)
    with pytest.raises(InputError, match="no tokenizer is trained"):
        prepare(chosen, given={"bpe_sample"})
