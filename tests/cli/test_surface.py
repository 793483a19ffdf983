"""The surface behaves: help, streams, exit codes, one-line errors, completion, start-up."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY

from effcli.app import app

GOLDEN = Path(__file__).parent / "golden"
COMMANDS = [command.name for command in app.registered_commands]
GROUPS = [
    " ".join(filter(None, (group.typer_instance.info.name, command)))
    for group in app.registered_groups
    if group.typer_instance
    for command in (None, *(one.name for one in group.typer_instance.registered_commands))
]
Eff = Callable[..., tuple[int, str, str]]
SETS = [part for assignment in TINY for part in ("--set", assignment)]


@pytest.mark.parametrize("command", ["", *COMMANDS, *GROUPS])
def test_help_changes_only_on_purpose(
    eff: Eff, command: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")
    code, out, err = eff(*command.split(), "--help")
    text = "\n".join(line.rstrip() for line in out.splitlines()) + "\n"
    path = GOLDEN / f"help-{command.replace(' ', '-') or 'eff'}.txt"
    if request.config.getoption("--golden"):
        path.write_text(text, "utf8")
    assert code == 0
    assert err == ""
    assert text == path.read_text("utf8")


def test_every_command_has_about_a_dozen_flags_of_its_own() -> None:
    from effcli.settings.baseline import BaselineSettings
    from effcli.settings.flags import marked
    from effcli.settings.generate import GenerateSettings
    from effcli.settings.prepare import PrepareSettings

    for cls in (BaselineSettings, PrepareSettings, GenerateSettings):
        assert len(list(marked(cls))) <= 17


def test_without_arguments_there_is_help(eff: Eff) -> None:
    code, out, _ = eff()
    assert code == 0
    assert "prepare" in out


def test_the_version_is_said(eff: Eff) -> None:
    from effcli import __version__

    assert eff("--version") == (0, f"eff {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["prepaer"], "no such command 'prepaer'", ""),
        (["baseline", "--stepz", "5"], "no such option: --stepz", "did you mean --steps?"),
        (["baseline", "--steps"], "'--steps' requires an argument", "see eff baseline --help"),
        (["baseline", "extra"], "unexpected extra argument", "see eff baseline --help"),
        (["generate"], "RUN is missing", "--help shows"),
        (["report"], "RUNS is missing", "--help shows"),
        (["baseline", "--preset", "huge"], "no preset called 'huge'", "known:"),
        (["baseline", "--steps", "many"], "steps: should be a valid integer", ""),
        (
            ["baseline", "--set", "modle.layers=3"],
            "no setting called 'modle'",
            "did you mean 'model'?",
        ),
        (["baseline", "--config", "none.toml"], "there is no settings file none.toml", ""),
        (["baseline"], "no corpus was prepared in data/", "run `eff prepare` first"),
        (
            ["baseline", "--data", "nowhere"],
            "there is no corpus 'nowhere'",
            "run `eff prepare` first",
        ),
        (["baseline", "--resume"], "there is no unfinished run of baseline", "--out"),
        (["generate", "nowhere", "x"], "there is no run in nowhere", ""),
        (["report", "nowhere"], "there is no run in nowhere", ""),
        (["verify", "nowhere"], "nowhere is neither a run nor a corpus", ""),
        (["prepare", "wikitext-3"], "there is no corpus, file or folder 'wikitext-3'", "wikitext-"),
        (["prepare", "--tokenizer", "bpx:9"], "there is no tokenizer called 'bpx'", "bpe"),
        (["prepare", "grammar:x"], "the seed must be a whole number", ""),
        (["prepare", "python:doc"], "there is no such view", "python:docs"),
        (["prepare", "--mix", "python:0.5"], "the shares add up to 0.5", ""),
        (["prepare", "--mix", "python"], "not of the form name:share", ""),
        (["prepare", "python", "--mix", "python:1"], "give sources or --mix, not both", ""),
        (["prepare", "python", "python"], "a source is named twice", ""),
        (["prepare", "python", "--separator", "x"], "separator: has no effect", ""),
        (["prepare", "python", "--seed", "3"], "seed: has no effect", ""),
        (["prepare", "python", "--held-out-share", "0.1"], "held_out_share: has no effect", ""),
        (
            ["prepare", "python", "--val", "x.txt"],
            "--val, --test and --holdout go with one local source",
            "",
        ),
        (
            ["prepare", "grammar:1", "--set", "bpe_sample=5000"],
            "bpe_sample: has no effect",
            "",
        ),
        (["prepare", "python", "--set", "repeat=true"], "repeat: has no effect", ""),
    ],
)
def test_bad_input_gets_one_line_and_code_2(
    eff: Eff, arguments: list[str], message: str, hint: str
) -> None:
    code, out, err = eff(*arguments)
    lines = err.strip().splitlines()
    assert code == 2
    assert out == ""
    assert lines[0].lower().startswith("error: ")
    assert message.lower() in lines[0].lower()
    assert len(lines) <= 2
    assert "Traceback" not in err
    assert hint in err


def test_a_mistyped_command_is_guessed(eff: Eff) -> None:
    _, _, err = eff("prepaer")
    assert "did you mean" in err.lower()
    assert "prepare" in err


def test_debug_shows_the_traceback(eff: Eff) -> None:
    _, _, err = eff("verify", "nowhere", "--debug")
    assert "Traceback" in err
    assert "InputError" in err


def test_a_bug_is_called_one(
    eff: Eff, monkeypatch: pytest.MonkeyPatch, corpus_folder: Path
) -> None:
    import effcli.methods.verify as method

    def broken(_: Path) -> Any:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(method, "verify", broken)
    code, _, err = eff("verify", corpus_folder)
    assert code == 1
    assert "ZeroDivisionError: surprise" in err
    assert "bug" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [28, 13, 30])
def test_a_full_or_forbidden_disk_is_code_3(
    eff: Eff, monkeypatch: pytest.MonkeyPatch, corpus_folder: Path, number: int
) -> None:
    import effcli.methods.verify as method

    def fail(path: Path) -> Any:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(method, "verify", fail)
    code, _, err = eff("verify", corpus_folder)
    assert code == 3
    assert os.strerror(number).lower() in err


def test_json_is_the_only_thing_on_stdout(eff: Eff, corpus_folder: Path) -> None:
    code, out, err = eff("verify", corpus_folder, "--json")
    assert code == 0
    assert json.loads(out)["kind"] == "corpus"
    code, out, err = eff(
        "baseline", "--data", corpus_folder, "--steps", "3", *SETS, "--json", "--out", "run"
    )
    report = json.loads(out)
    assert code == 0
    assert report["steps"] == 3
    assert "held-out loss" in err


def test_quiet_leaves_only_the_result(eff: Eff, corpus_folder: Path) -> None:
    code, out, err = eff("baseline", "--data", corpus_folder, "--steps", "3", *SETS, "--quiet")
    assert code == 0
    assert err == ""
    assert "held-out loss" in out


def test_a_dry_run_touches_nothing(eff: Eff, corpus_folder: Path, place: Path) -> None:
    before = sorted(corpus_folder.parent.rglob("*"))
    code, out, _ = eff(
        "baseline", "--data", corpus_folder, "--tokens", "1M", *SETS, "--dry-run", "--json"
    )
    plan = json.loads(out)
    assert code == 0
    assert plan["forecast"]["steps"] == -(-(10**6) // 128)
    assert plan["forecast"]["parameters"] > 10_000
    assert plan["forecast"]["flops"] > 0
    assert plan["forecast"]["seconds"] > 0
    assert plan["forecast"]["memory_bytes"] > 0
    assert plan["settings"]["tokens"] == {"value": 10**6, "from": "the command line"}
    assert plan["settings"]["model.layers"] == {"value": 2, "from": "--set"}
    assert list(place.iterdir()) == []
    assert sorted(corpus_folder.parent.rglob("*")) == before


def test_every_training_command_takes_the_size_of_a_batch(eff: Eff, corpus_folder: Path) -> None:
    from effcli.settings.aql import AqlSettings, PolicySettings
    from effcli.settings.baseline import BaselineSettings
    from effcli.settings.distill import DistillSettings
    from effcli.settings.flags import collect

    for cls in (BaselineSettings, AqlSettings, PolicySettings, DistillSettings):
        assert collect(cls, {"batch_size": "9", "sequences": "5"}) == {"batch.sequences": "9"}
    flags = ["--data", corpus_folder, "--steps", "3", "--batch-size"]
    plan = json.loads(eff("baseline", *flags, "9", "--dry-run", "--json")[1])
    assert plan["settings"]["batch.sequences"] == {"value": 9, "from": "the command line"}
    code, _, err = eff("baseline", *flags, "0", "--dry-run")
    assert code == 2
    assert "batch.sequences: should be greater than or equal to 1" in err


def test_a_dry_run_foretells_the_run(eff: Eff, corpus_folder: Path) -> None:
    arguments = ["baseline", "--data", corpus_folder, "--steps", "4", *SETS, "--json"]
    plan = json.loads(eff(*arguments, "--dry-run")[1])["forecast"]
    report = json.loads(eff(*arguments)[1])
    assert plan["flops"] == report["flops"]["train"]
    assert (plan["steps"], plan["tokens"]) == (report["steps"], report["tokens"])
    assert plan["parameters"] == report["parameters"]


def test_a_dry_run_refuses_what_the_run_would(eff: Eff, corpus_folder: Path) -> None:
    for assignment, expected in (("model.context=100000", 2), ("model.width=65536", 3)):
        flags = ["--data", corpus_folder, "--set", assignment]
        dry, real = eff("baseline", *flags, "--dry-run")[0], eff("baseline", *flags)[0]
        assert (dry, real) == (expected, expected)


def test_a_dry_run_says_what_tuning_costs(eff: Eff, corpus_folder: Path) -> None:
    code, out, _ = eff("baseline", "--data", corpus_folder, "--tune", "4", "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0
    assert plan["tuning_flops"] == pytest.approx(plan["forecast"]["flops"])


def test_a_dry_preparation_touches_nothing(eff: Eff, place: Path) -> None:
    code, out, _ = eff("prepare", "--mix", "grammar:1:0.5,python:0.5", "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["settings"]["out"]["value"] == "data/mix-grammar-1-python-bpe4096"
    assert list(place.iterdir()) == []


def test_no_color_and_no_bar_outside_a_terminal(eff: Eff, corpus_folder: Path) -> None:
    _, out, err = eff("baseline", "--data", corpus_folder, "--steps", "3", *SETS)
    assert "\x1b" not in out + err
    assert "\r" not in out + err


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "effcli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["baseline", "--help"], ["baseline", "--stepz", "3"], ["--version"]]
)
def test_the_surface_never_imports_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom effcli.app import run\n"
        f"run({arguments!r})\n"
        "heavy = {'torch', 'datasets', 'sklearn', 'scipy', 'numpy', 'matplotlib', 'tiktoken'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _cost(*arguments: str) -> float:
    """Seconds of CPU that Python takes, at best."""
    costs = []
    for _ in range(4):
        before = os.times()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        after = os.times()
        user = after.children_user - before.children_user
        costs.append(user + after.children_system - before.children_system)
    return min(costs)


@pytest.mark.slow
def test_help_costs_less_than_half_a_second_of_cpu() -> None:
    """Of a machine that does nothing else."""
    assert _cost("-m", "effcli", "--help") < 0.5


def test_help_costs_little_more_than_what_it_is_made_of() -> None:
    """By the speed of the machine at the moment."""
    libraries = "import pydantic.main, typer.rich_utils, rich.markdown"
    assert _cost("-m", "effcli", "--help") < 3.6 * _cost("-c", libraries)


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m effcli baseline --help | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("eff bas", "baseline"),
        ("eff doc", "doctor"),
        ("eff baseline --track t", "tensorboard"),
        ("eff baseline --pre", "--preset"),
        ("eff baseline --preset ti", "tiny"),
        ("eff baseline --data my-", "my-corpus"),
        ("eff prepare wikit", "wikitext-103"),
        ("eff prepare --tokenizer b", "bpe:4096"),
    ],
)
def test_the_shell_completes(words: str, expected: str, place: Path) -> None:
    (place / "data" / "my-corpus").mkdir(parents=True)
    (place / "data" / "my-corpus" / "corpus.json").touch()
    program = Path(sys.executable).parent / "eff"
    done = subprocess.run(
        [str(program)],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "_EFF_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        },
    )
    assert expected in done.stdout.split()


def test_offline_refuses_every_connection() -> None:
    done = _run("prepare", "wikitext-2", "--offline", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 3
    assert done.stderr.startswith("error: cannot read Salesforce/wikitext")
    assert len(done.stderr.strip().splitlines()) == 2


def test_ctrl_c_during_start_up_is_quiet(place: Path) -> None:
    import signal

    process = subprocess.Popen(
        [sys.executable, "-m", "effcli", "prepare", "grammar:1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(0.35)
    process.send_signal(signal.SIGINT)
    _, _err = process.communicate(timeout=60)
    if process.returncode != 0:
        assert process.returncode in (130, -signal.SIGINT)
