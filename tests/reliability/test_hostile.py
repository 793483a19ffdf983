"""Text of others never becomes markup of a page or control of a terminal, whatever carries it."""

import json
import logging
import os
import shutil
import subprocess
import sys
import unicodedata
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Settings

from effcli.engine.data.job import manifest_hash
from effcli.engine.runs import plots
from effcli.methods import baseline
from effcli.safe import guard_libraries, safe_json

Eff = Callable[..., tuple[int, str, str]]
SETS = [part for assignment in TINY for part in ("--set", assignment)]
EVIL = (
    "<script>alert(1)<\x2fscript>\"'><img src=x onerror=alert(2)> javascript:alert(3) &lt; --> ]]>"
    "\x1b]52;c;QUJD\x07\x1b]8;;http://evil\x1b\\\x1b[2J\x9b31m\x9d0;x\x9c\x7f\u202e\u2066\u2028"
    "[red]red[/red] :smile: {{ 7*7 }} {% x %} $\\frac$ %s {0}"
)
NAME = EVIL.replace("/", "_")[:120]
DIRECTIONS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "2000")  # nothing is cut off


def _is_clean(text: str) -> bool:
    controls = {c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"}
    return not controls and not DIRECTIONS & set(text)


def _said(eff: Eff, *arguments: Any, code: int | None = 0) -> str:
    """What a command says in both ways of saying it, after checking that nothing controls."""
    texts = []
    for more in ([], ["--json"], ["--debug"]):
        found, out, err = eff(*arguments, *more)
        assert code is None or found == code, err
        assert _is_clean(out), ascii(out)
        assert _is_clean(err), ascii(err)
        texts += [out, err]
        if more == ["--json"] and out:
            json.loads(out)
    return "".join(texts)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus_folder: Path) -> Path:
    """A run of two steps."""
    from effcli.settings.baseline import BaselineSettings
    from effcli.settings.layers import resolve

    folder = tmp_path_factory.mktemp("trained") / "run"
    flags = {"data": str(corpus_folder), "steps": 4, "eval_every": 2, "out": folder}
    baseline.run(resolve(BaselineSettings, flags, TINY).settings)
    return folder


@pytest.fixture
def evil_run(trained: Path, place: Path) -> Path:
    """The same run, with everything in it that somebody else may have written."""
    folder = place / NAME
    shutil.copytree(trained, folder)
    env = json.loads((folder / "env.json").read_text())
    for name in ("device", "optimizer", "python", "system", "eff", "commit", "command"):
        env[name] = EVIL
    env["packages"] = {EVIL: EVIL}
    env["corpus"]["name"] = env["corpus"]["hash"] = env["corpus"]["tokenizer"]["name"] = EVIL
    env["sessions"] = [{"started_at": EVIL, "python": EVIL}]
    (folder / "env.json").write_text(json.dumps(env))
    with (folder / "config.toml").open("a", encoding="utf8") as stream:
        stream.write(f"# {EVIL}\n".replace("\x7f", "").translate(dict.fromkeys(range(32))))
        stream.write("\n")
    with (folder / "records.jsonl").open("a") as stream:
        stream.write(json.dumps({"kind": "sample", "prompt": EVIL, "text": EVIL}) + "\n")
        ledger = next(
            row
            for row in map(json.loads, (trained / "records.jsonl").read_text().splitlines()[::-1])
            if row["kind"] == "ledger"
        )
        ledger["flops"][EVIL], ledger["seconds"][EVIL] = 5e9, 3.0
        ledger["joules"] = {EVIL: 3.0}
        stream.write(json.dumps(ledger) + "\n")
    return folder


class _Page(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words += data


def _check_page(path: Path) -> _Page:
    text = path.read_text("utf8")
    assert _is_clean(text)
    page = _Page(text)
    dangerous = {"script", "img", "iframe", "object", "embed", "link", "base", "form", "a", "image"}
    assert not page.tags & (dangerous | {"foreignobject", "animate", "set"})
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        assert name not in ("src", "srcdoc", "action", "formaction")
        assert "href" not in name or (value or "").startswith("#"), value
        assert "javascript:" not in (value or "")
    assert "<script" not in text
    return page


POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@pytest.mark.usefixtures("draws")
def test_a_page_of_a_run_holds_only_text_of_others(eff: Eff, evil_run: Path) -> None:
    said = _said(eff, "report", evil_run)
    assert "[red]red[/red]" in said  # shown, not obeyed
    page = _check_page(evil_run / "report.html")
    assert ("content", POLICY) in page.attributes
    assert "<script>alert(1)" in page.words  # the text is there, as text
    assert "{{ 7*7 }}" in page.words


def test_the_policy_stands_before_anything_it_is_about(trained: Path) -> None:
    head = (trained / "report.html").read_text().partition("<style>")[0]
    assert head.index("Content-Security-Policy") < head.index("<title>")


@pytest.mark.usefixtures("draws")
def test_a_comparison_holds_only_text_of_others(
    eff: Eff, evil_run: Path, trained: Path, place: Path
) -> None:
    _said(eff, "report", trained, evil_run, "--out", place / "page.html")
    page = _check_page(place / "page.html")
    assert ("content", POLICY) in page.attributes
    assert "alert(1)" in page.words


NAMES = (
    *("a$\\frac$b", "_under", "a\nb", "\udcff\udcfe", "-->", "日本語🙂"),
    *("x" * 150, "-dash", "%s{0}"),
)


def _named(trained: Path, folder: Path) -> Path | None:
    """A copy of a run; nothing if that is not a name on this file system."""
    try:
        return shutil.copytree(trained, folder)
    except (OSError, UnicodeError):
        return None


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_folder_is_a_name(eff: Eff, trained: Path, place: Path, name: str) -> None:
    folder = _named(trained, place / "runs" / name)
    if folder is None:
        pytest.skip("not a name on this file system")
    _said(eff, "report", folder)
    _said(eff, "verify", folder)
    _said(eff, "report", trained, folder, "--out", place / "page.html")
    _check_page(folder / "report.html")
    _check_page(place / "page.html")


@pytest.mark.usefixtures("draws")
def test_any_name_of_a_folder_can_be_drawn(eff: Eff, trained: Path, place: Path) -> None:
    folders = [folder for name in NAMES if (folder := _named(trained, Path("runs") / name))]
    code, _, err = eff("report", trained, *folders, "--out", "page.html")
    assert code == 0, err
    _check_page(place / "page.html")
    assert "<!-- runs/a$\\frac$b -->" in (place / "page.html").read_text("utf8")


def test_other_commands_say_names_safely(eff: Eff, evil_run: Path, trained: Path) -> None:
    _said(eff, "verify", evil_run, code=4)
    _said(eff, "generate", evil_run, EVIL, "--max-new-tokens", "5", code=2)  # it was edited
    _said(eff, "generate", trained, EVIL, "--max-new-tokens", "5")
    _said(eff, "generate", trained, EVIL, "--max-new-tokens", "5", "--num-return-sequences", "2")
    seal = json.loads((evil_run / "files.json").read_text())
    seal[EVIL] = {"bytes": 1, "sha256": EVIL}
    (evil_run / "files.json").write_text(json.dumps(seal))
    assert "alert" in _said(eff, "verify", evil_run, code=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["baseline", "--data", EVIL],
        ["baseline", "--config", EVIL],
        ["baseline", "--preset", EVIL],
        ["baseline", "--steps", EVIL],
        ["baseline", "--track", EVIL],
        ["baseline", "--set", EVIL],
        ["baseline", "--set", f"{EVIL}=1"],
        ["baseline", "--set", f"model.name={EVIL}"],
        ["baseline", "--set", f"seed={EVIL}"],
        ["baseline", "--resume", "--out", EVIL],
        ["prepare", EVIL],
        ["prepare", "--mix", f"{EVIL}:1"],
        ["prepare", "--tokenizer", EVIL],
        ["generate", EVIL],
        ["report", EVIL],
        ["report", EVIL, EVIL],
        ["verify", EVIL],
        [EVIL],
        ["baseline", f"--{EVIL}"],
        ["doctor", EVIL],
    ],
    ids=lambda arguments: ascii(arguments[0])[:20] + str(len(arguments)),
)
def test_errors_say_their_words_safely(eff: Eff, arguments: list[str]) -> None:
    _said(eff, *arguments, code=2)


def test_a_dry_run_says_names_safely(eff: Eff, corpus_folder: Path, place: Path) -> None:
    config = place / f"{NAME}.toml"
    config.write_text("steps = 3\n")
    folder = place / f"corpus-{NAME}"
    shutil.copytree(corpus_folder, folder)
    said = _said(eff, "baseline", "--config", config, "--data", folder, *SETS, "--dry-run")
    assert "alert(1)" in said


def test_files_that_are_read_are_named_safely(eff: Eff, place: Path) -> None:
    for suffix, content in (
        (".jsonl", '{"text": 5}\n{broken\n'),
        (".txt", "some text\n" * 300),
        (".parquet", "none"),
        (".zst", "none"),
    ):
        path = place / f"{NAME}{suffix}"
        path.write_text(content)
        _said(eff, "prepare", path, "--tokenizer", "bytes", code=None)
        _said(eff, "prepare", path, "--text-column", EVIL, "--out", f"{NAME}-out", code=None)


def test_a_corpus_of_others_is_named_safely(eff: Eff, corpus_folder: Path, place: Path) -> None:
    folder = place / NAME
    shutil.copytree(corpus_folder, folder)
    manifest = json.loads((folder / "corpus.json").read_text())
    manifest.pop("sha256")
    manifest["tokenizer"]["name"] = EVIL
    manifest["mix"] = {EVIL: EVIL}
    manifest["sources"] = [{"kind": EVIL, "path": EVIL}]
    text = json.dumps({**manifest, "sha256": manifest_hash(manifest)})
    (folder / "corpus.json").write_text(text)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "name": EVIL}))
    _said(eff, "verify", folder)
    code, out, err = eff("baseline", "--data", folder, "--steps", "2", *SETS, "--out", "run")
    assert code == 0, err
    assert _is_clean(out + err)
    _check_page(place / "run" / "report.html")


def test_who_holds_a_lock_is_named_safely(eff: Eff, corpus_folder: Path, place: Path) -> None:
    from filelock import FileLock

    (place / "run").mkdir()
    with FileLock(place / "run" / ".lock"):
        (place / "run" / ".lock").write_text(EVIL)
        flags = ["--data", corpus_folder, "--steps", "2", *SETS, "--out", "run"]
        assert "in use by" in _said(eff, "baseline", *flags, code=3)


def test_what_the_hub_says_is_said_safely(
    eff: Eff, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    import huggingface_hub

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(EVIL)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert "cannot read" in _said(eff, "prepare", "wikitext-2", code=3)


def test_a_bug_is_told_safely(
    eff: Eff, monkeypatch: pytest.MonkeyPatch, corpus_folder: Path
) -> None:
    import effcli.methods.verify as method

    def broken(_: Path) -> Any:
        raise ZeroDivisionError(EVIL)

    monkeypatch.setattr(method, "verify", broken)
    assert "alert" in _said(eff, "verify", corpus_folder, code=1)


@pytest.mark.parametrize("name", [EVIL, "records\udcff"])
def test_a_machine_is_described_safely(
    eff: Eff, monkeypatch: pytest.MonkeyPatch, place: Path, name: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("EFF_RUNS", name.replace("\0", ""))
    monkeypatch.setenv("HF_ENDPOINT", f"http://{NAME}".encode("ascii", "ignore").decode())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", name)
    (place / "data" / NAME).mkdir(parents=True)
    (place / "data" / NAME / "corpus.json").touch()
    _said(eff, "doctor", code=None)


def test_records_that_were_changed_are_damage_and_no_bug(
    eff: Eff, trained: Path, place: Path
) -> None:
    for kind, change in (
        ("step", {"loss": EVIL}),
        ("step", {"tokens": None}),
        ("evaluation", {"loss": EVIL}),
        ("ledger", {"seconds": EVIL}),
        ("ledger", {"flops": {EVIL: EVIL}}),
    ):
        folder = place / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trained, folder)
        rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
        changed = [{**row, **change} if row["kind"] == kind else row for row in rows]
        (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
        assert "is damaged" in _said(eff, "report", folder, code=2)


def test_completion_proposes_no_name_that_controls(place: Path) -> None:
    for name in (NAME, "plain"):
        (place / "data" / name).mkdir(parents=True)
        (place / "data" / name / "corpus.json").touch()
    done = subprocess.run(
        [sys.executable, "-c", "from effcli.app import app; app(prog_name='eff')"],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "_EFF_COMPLETE": "complete_bash",
            "COMP_WORDS": "eff baseline --data ",
            "COMP_CWORD": "3",
        },
    )
    assert done.stdout.split() == ["plain"]


def test_what_libraries_log_and_warn_is_safe() -> None:
    code = (
        "import logging, sys, warnings\n"
        "from effcli.safe import guard_libraries\n"
        "guard_libraries()\n"
        "logging.getLogger('huggingface_hub').warning('from a server: %s', sys.argv[1])\n"
        "warnings.warn(sys.argv[1])\n"
    )
    text = EVIL.replace("\0", "")
    done = subprocess.run(
        [sys.executable, "-c", code, text], capture_output=True, text=True, check=True
    )
    assert done.stderr.count("alert(1)") == 2
    assert _is_clean(done.stderr)


def test_guarding_can_be_undone() -> None:
    before = (logging.getLogRecordFactory(), warnings.formatwarning)
    try:
        guard_libraries()
        assert logging.getLogRecordFactory() is not before[0]
    finally:
        logging.setLogRecordFactory(before[0])
        warnings.formatwarning = before[1]


def test_json_means_the_same_without_control() -> None:
    document = {EVIL: [EVIL, "日本語", "\udcff"]}
    text = safe_json(json.dumps(document, indent=1, ensure_ascii=False))
    assert _is_clean(text)
    assert "日本語" in text
    assert json.loads(text) == document
    text.encode("utf8")


def test_names_at_the_ends_of_curves_keep_apart() -> None:
    assert plots.apart([], 0.1) == []
    assert plots.apart([0.1, 0.9], 0.1) == [0.1, 0.9]
    places = plots.apart([0.5, 0.5, 0.5], 0.1)
    assert sorted(places) == pytest.approx([0.4, 0.5, 0.6])
    wanted = [0.3, 0.31, 0.9, 0.29, 0.305, 0.38]
    places = plots.apart(wanted, 0.05)
    order = sorted(range(6), key=lambda index: wanted[index])
    assert order == sorted(range(6), key=lambda index: places[index])
    ordered = sorted(places)
    assert all(b - a >= 0.05 - 1e-9 for a, b in pairwise(ordered))
    assert places[2] == 0.9


def test_a_report_that_cannot_be_written_is_still_shown(
    eff: Eff, tiny: Settings, trained: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from effcli.engine.runs import report

    def refuse(path: Path, _: Any) -> None:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(report, "write_json", refuse)
    code, out, err = eff("report", trained)
    assert code == 3
    assert "held-out loss" in out
    assert f"the report could not be written to {trained}: Permission denied" in err
    assert "page with plots" not in err
    code, out, _ = eff("report", trained, "--json")
    assert (code, json.loads(out)["status"]) == (3, "complete")
    (place / "file").touch()
    code, out, err = eff("report", trained, trained, "--out", place / "file" / "page.html")
    assert code == 3
    assert "reference" in out
    assert "the page could not be written" in err
    assert ".draft" not in err
