"""`eff doctor`: finds everything out, changes nothing, survives what it examines."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from effcli.engine.checkup import hardware, places, software
from effcli.engine.checkup.rows import Row, found

Eff = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _rows(eff: Eff, expected: int = 0) -> dict[str, dict[str, Any]]:
    code, out, err = eff("doctor", "--json")
    assert code == expected, err
    document = json.loads(out)
    assert (document["schema"], document["command"]) == (1, "doctor")
    assert document["ready"] is (expected == 0)
    return {row["name"]: row for row in document["rows"]}


def test_everything_that_matters_is_found_out(eff: Eff, place: Path) -> None:
    rows = _rows(eff)
    assert {"eff", "python", "torch", "device", "kernels", "precision", "threads"} < set(rows)
    assert {"torch.compile", "energy", "memory", "runs", "corpora", "cache", "hub"} < set(rows)
    assert all(rows[f"peak {name}"]["number"] > 1e8 for name in ("float32", "bfloat16"))
    assert rows["prepared"]["hint"] == "eff prepare makes one"
    assert "offline" in rows["hub"]["value"]
    assert list(place.iterdir()) == []
    kept = json.loads((Path(os.environ["EFF_CACHE"]) / "peaks.json").read_text())
    assert rows["peak float32"]["number"] in kept.values()


def test_the_table_says_what_to_do(eff: Eff) -> None:
    code, out, err = eff("doctor")
    assert (code, err) == (0, "")
    assert "training can work here" in out
    assert "eff prepare makes one" in out


def test_it_has_no_settings(eff: Eff) -> None:
    code, _, err = eff("doctor", "--set", "device.name=cpu")
    assert code == 2
    assert "no setting called 'device'" in err


def test_prepared_corpora_are_named(eff: Eff, place: Path) -> None:
    (place / "data" / "mine").mkdir(parents=True)
    (place / "data" / "mine" / "corpus.json").touch()
    assert _rows(eff)["prepared"]["value"] == "mine"


def test_a_folder_that_cannot_hold_runs_is_essential(
    eff: Eff, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "file").touch()
    monkeypatch.setenv("EFF_RUNS", str(place / "file" / "runs"))
    rows = _rows(eff, 4)
    assert rows["runs"]["status"] == "missing"
    assert rows["runs"]["hint"] == "set EFF_RUNS to another folder"
    code, out, err = eff("doctor")
    assert code == 4
    assert "training cannot work here" in out
    assert err.startswith("error: training cannot work here: runs: ")


def test_a_folder_of_corpora_is_essential_only_while_it_is_empty(
    eff: Eff, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places.os, "access", lambda path, mode: "data" not in str(path))
    (place / "data").mkdir()
    assert _rows(eff, 4)["corpora"]["status"] == "missing"
    (place / "data" / "mine").mkdir()
    (place / "data" / "mine" / "corpus.json").touch()
    assert _rows(eff)["corpora"]["status"] == "note"


def test_a_full_disk_is_essential(eff: Eff, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**10, 10**10 - 5, 5))
    rows = _rows(eff, 4)
    assert "only 5 bytes free" in rows["runs"]["value"]
    assert rows["cache"]["status"] == "note"


@pytest.mark.parametrize(
    ("requirement", "status", "value"),
    [
        ("numpy>=1.0", "ok", ""),
        ("numpy", "ok", ""),
        ("numpy>=999.1", "missing", "older than 999.1"),
        ("no-such-thing>=1", "missing", "not installed"),
    ],
)
def test_a_package_that_is_missing_or_old_is_essential(
    monkeypatch: pytest.MonkeyPatch, requirement: str, status: str, value: str
) -> None:
    monkeypatch.setattr(software, "requires", lambda _: [requirement, "x>=1; extra == 'dev'"])
    *_, row = software.versions()
    assert row.status == status
    assert value in row.value
    assert status == "ok" or row.hint == f"pip install '{requirement}'"


def test_versions_are_compared_as_numbers() -> None:
    assert software._numbers("2.13.0+cpu") > software._numbers("2.9")
    assert software._numbers("10.0") > software._numbers("9.99.1rc2")


def test_a_check_that_breaks_says_so() -> None:
    def broken() -> Iterator[Row]:
        yield Row("first", "ok", "here")
        raise ImportError("no torch")

    rows = found("processor", broken)
    assert [row.name for row in rows] == ["first", "processor"]
    assert rows[1].value == "cannot be found out: ImportError: no torch"


def test_without_torch_there_is_still_an_answer(place: Path) -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom effcli.app import run\n"
        "sys.exit(run(['doctor', '--json', '--offline']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert "cannot be found out" in rows["processor"]["value"]
    assert rows["numpy"]["status"] == "ok"


def test_a_container_that_gets_less_is_noticed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = place / "cpu.max"
    monkeypatch.setattr(hardware, "_QUOTA", quota)
    quota.write_text("max 100000\n")
    assert hardware._cpu_quota() is None
    quota.write_text("50000 100000\n")
    row = {row.name: row for row in hardware.processor()}["threads"]
    assert row.status == "note"
    assert "this container gets 0.5" in row.value
    assert row.hint == "--set device.threads=1 may be faster"


@pytest.mark.parametrize(("major", "has"), [(7, "no units"), (9, "units")])
def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch, major: int, has: str) -> None:
    from types import SimpleNamespace

    import torch

    about = SimpleNamespace(name="H100", total_memory=80 * 10**9, major=major, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, 0))
    (row,) = hardware._gpus()
    assert (row.name, row.value) == ("gpu 0", f"H100, 80 GB, compute {major}.0")
    device: Any = SimpleNamespace(kind="cuda")
    assert f"the GPU has {has} for bfloat16" in hardware._reason(device)


def test_cached_tokenizers_are_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(place))
    (row,) = places.tokenizers()
    assert row.status == "note"
    assert row.value == f"none in {place}"
    for file in (file for files in places.PUBLISHED.values() for file in files):
        (place / places._key(file)).touch()
    (row,) = places.tokenizers()
    assert (row.status, row.value) == ("ok", f"gpt2, cl100k, o200k in {place}")
    # The name that tiktoken itself gives to this file.
    assert (place / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4").exists()


class _Answer(BaseHTTPRequestHandler):
    status = 200

    def do_HEAD(self) -> None:
        self.send_response(type(self).status)
        self.send_header("Location", "http://127.0.0.1:9/")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("status", [200, 302, 401, 503])
def test_any_answer_of_the_hub_is_one(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(_Answer, "status", status)
    with HTTPServer(("127.0.0.1", 0), _Answer) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://me:secret@127.0.0.1:{server.server_port}")
        monkeypatch.setenv("no_proxy", "*")
        if status == 200:  # a password in an address is for libraries that know what to do with it
            monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        (row,) = places.hub()
    assert "secret" not in row.value
    assert status != 200 or (row.status, row.value) == ("ok", "http://127.0.0.1 answers")


def test_a_hub_that_does_not_answer_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(places, "HUB_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        (row,) = places.hub()
    assert time.monotonic() - started < 3
    assert (row.status, "cannot be reached" in row.value) == ("note", True)


@pytest.mark.parametrize("endpoint", ["file:///etc", "huggingface.co", "http://"])
def test_an_endpoint_that_is_no_address_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    (row,) = places.hub()
    assert "not a web address" in row.value
