"""Named corpora, read by the real hub client from a stand-in server on loopback."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from hub_server import REVISION, HubServer
from pyarrow import parquet

from effcli.settings.corpora import CORPORA, MIXES

ARTICLES = 60


def _parquet(rows: list[str], column: str = "text") -> bytes:
    stream = io.BytesIO()
    parquet.write_table(arrow.table({column: rows}), stream)
    return stream.getvalue()


def _wikitext(first: int, last: int) -> list[str]:
    """Lines as WikiText has them: headings, blank lines, paragraphs."""
    lines: list[str] = []
    for number in range(first, last):
        lines += [f" = Title {number} = \n", "", f" Article {number} begins here . \n"]
        lines += [" = = Section = = \n", "", f" More about {number} , and the end . \n"]
    return lines


def _card(config: str) -> bytes:
    files = "".join(
        f"  - split: {split}\n    path: {config}/{split}-*\n"
        for split in ("train", "validation", "test")
    )
    return f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n".encode()


def _mini_wikitext(config: str) -> dict[str, bytes]:
    return {
        "README.md": _card(config),
        f"{config}/train-00000-of-00001.parquet": _parquet(_wikitext(0, ARTICLES)),
        f"{config}/validation-00000-of-00001.parquet": _parquet(_wikitext(0, 5)),
        f"{config}/test-00000-of-00001.parquet": _parquet(_wikitext(100, 106)),
    }


@pytest.fixture
def hub() -> Iterator[HubServer]:
    stories = [f"Story {n}: once upon a time, {'and then ' * (n % 5)}the end." for n in range(600)]
    pages = [f"Page {n} of the web. {'More words. ' * (n % 9)}" for n in range(600)]
    datasets = {
        "Salesforce/wikitext": _mini_wikitext("wikitext-2-raw-v1"),
        "roneneldan/TinyStories": {
            "README.md": b"---\n{}\n---\n",
            "data/train-00000-of-00001.parquet": _parquet(stories),
            "data/validation-00000-of-00001.parquet": _parquet(stories[:20]),
        },
        "Skylion007/openwebtext": {
            "README.md": b"---\n{}\n---\n",
            "data/train-00000-of-00002.parquet": _parquet(pages[:300]),
            "data/train-00001-of-00002.parquet": _parquet(pages[300:]),
        },
    }
    with HubServer(datasets) as server:
        yield server


def _eff(hub_url: str, place: Path, *arguments: str) -> tuple[int, str, str]:
    """A process of its own: the client reads its address only once."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(place / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        "EFF_DATA": str(place / "data"),
    }
    command = [sys.executable, "-m", "effcli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stdout, done.stderr


def _summary(hub: HubServer, place: Path, *arguments: str) -> dict[str, Any]:
    code, out, err = _eff(hub.url, place, "prepare", *arguments, "--json")
    assert code == 0, err
    summary: dict[str, Any] = json.loads(out)
    return summary


def test_wikitext_is_downloaded_and_put_together_to_articles(hub: HubServer, place: Path) -> None:
    summary = _summary(hub, place, "wikitext-2", "--tokenizer", "bytes")
    assert summary["splits"]["val"]["documents"] == 5
    assert summary["splits"]["test"]["documents"] == 6
    assert summary["splits"]["train"]["documents"] == ARTICLES - 5
    assert summary["duplicates_removed"] == 5
    assert summary["rejected"] == 0
    manifest = json.loads((place / "data" / "wikitext-2-bytes" / "corpus.json").read_text())
    source = manifest["sources"][0]
    assert source["hub_id"] == "Salesforce/wikitext"
    assert source["revision"] == REVISION
    from effcli.engine.data.corpus import Corpus

    corpus = Corpus.open(place / "data" / "wikitext-2-bytes")
    second = corpus.val.document_starts()[1]
    text = corpus.tokenizer.decode(corpus.val.read([0], int(second))[0])
    assert text == "".join(_wikitext(0, 1))
    asked = len(hub.requests)
    assert _summary(hub, place, "wikitext-2", "--tokenizer", "bytes")["status"] == "unchanged"
    assert len(hub.requests) == asked  # a second run does not even ask


def test_a_streamed_corpus_gets_its_splits_by_hash(hub: HubServer, place: Path) -> None:
    arguments = ["openwebtext", "--tokenizer", "bytes", "--held-out-share", "0.1"]
    summary = _summary(hub, place, *arguments)
    documents = [summary["splits"][split]["documents"] for split in ("train", "val", "test")]
    assert sum(documents) == 600
    assert min(documents) > 30


def test_a_mix_of_named_corpora_keeps_its_shares(hub: HubServer, place: Path) -> None:
    summary = _summary(
        hub,
        place,
        "multi",
        "--tokenizer",
        "bytes",
        "--held-out-share",
        "0.2",
        "--max-tokens",
        "9000",
    )
    total = sum(summary["mix"]["train"].values())
    for name, share in MIXES["multi"].shares.items():
        assert summary["mix"]["train"][name] / total == pytest.approx(share, abs=0.03)


def test_the_table_is_complete() -> None:
    for name, entry in CORPORA.items():
        assert entry.hub_id.count("/") == 1, name
        assert entry.license
        assert entry.size
    for mix in MIXES.values():
        assert sum(mix.shares.values()) == pytest.approx(1.0)
        assert set(mix.shares) <= set(CORPORA)


def _assert_clean_failure(
    place: Path, result: tuple[int, str, str], code: int, message: str
) -> None:
    found, out, err = result
    assert found == code, err
    assert out == ""
    lines = err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in err
    assert not list((place / "data").glob("*/corpus.json"))


def test_a_refused_connection_is_one_line(place: Path) -> None:
    result = _eff("http://127.0.0.1:9", place, "prepare", "wikitext-2", "--tokenizer", "bytes")
    _assert_clean_failure(place, result, 3, "cannot read Salesforce/wikitext from the hub")


def test_a_data_set_that_is_gone_is_one_line(hub: HubServer, place: Path) -> None:
    result = _eff(hub.url, place, "prepare", "fineweb-edu", "--tokenizer", "bytes")
    _assert_clean_failure(place, result, 2, "the hub has no data set HuggingFaceFW/fineweb-edu")


def test_a_file_that_breaks_off_is_one_line(hub: HubServer, place: Path) -> None:
    hub.truncate = 200
    result = _eff(hub.url, place, "prepare", "wikitext-2", "--tokenizer", "bytes", "--quiet")
    assert result[0] in (2, 3)
    _assert_clean_failure(place, result, result[0], "Salesforce/wikitext")


def test_a_column_that_is_missing_is_one_line(hub: HubServer, place: Path) -> None:
    arguments = ["prepare", "tinystories", "--tokenizer", "bytes", "--text-column", "story"]
    result = _eff(hub.url, place, *arguments)
    _assert_clean_failure(place, result, 2, "there is no column 'story'")
    assert "--text-column is one of: text" in result[2]


def test_a_configuration_that_is_missing_is_one_line(hub: HubServer, place: Path) -> None:
    result = _eff(hub.url, place, "prepare", "wikitext-103", "--tokenizer", "bytes")
    _assert_clean_failure(place, result, 2, "Salesforce/wikitext is not what was expected")
