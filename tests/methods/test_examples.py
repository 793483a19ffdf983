"""The examples run."""

import os
import runpy
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY
from reliability.harness import outcome

Eff = Callable[..., tuple[int, str, str]]
EXAMPLES = Path(__file__).parents[2] / "examples"


def _of_less_text(name: str, tokens: str, fewer: str) -> str:
    """A copy of a script, with a smaller budget."""
    text = (EXAMPLES / name).read_text()
    assert tokens in text
    own = Path("own.py").resolve()
    own.write_text(text.replace(tokens, fewer))
    return str(own)


def test_the_loop_can_be_held(corpus_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(_of_less_text("4_hold_the_loop.py", "200k", "50k"))["main"]
    loss = main(str(corpus_folder), *TINY, "batch.sequences=8")
    assert loss < 3
    assert "held out: 5." in capsys.readouterr().out


SCRIPTS = ("1_first_run.sh", "2_equal_budget.sh", "5_phases.sh")


def _script(name: str) -> str:
    """A script as it stands, but for a smaller model and text."""
    script = EXAMPLES / name
    assert script.stat().st_mode & stat.S_IXUSR
    text = script.read_text()
    text = text.replace("eff prepare", "eff prepare grammar:1 --max-tokens 20000")
    few = "--steps 5 --batch-size 2 --set model.layers=1 --set evaluation.tokens=999"
    text = text.replace("--tokens 500k", few)
    few = "--set evaluation.texts=0"
    return text.replace("eff qllm train", f"eff qllm train {few}")


def _shell(name: str, place: Path, **environment: str) -> str:
    """What a script says to a shell that looks for `eff` in this place first."""
    path = f"{place}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", _script(name)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment, "PATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


WRITES_DOWN = """#!/bin/sh
printf '%s\\t' "$@" >> "$ASKED"
echo >> "$ASKED"
"""


def _run(eff: Eff, name: str) -> str:
    """What the commands of a script say in this process: in their own, most would be imports."""
    bin_ = Path("bin")
    bin_.mkdir()
    (bin_ / "eff").write_text(WRITES_DOWN)
    (bin_ / "eff").chmod(0o700)
    _shell(name, bin_.resolve(), ASKED="asked")
    told = ""
    for line in Path("asked").read_text().splitlines():
        code, out, err = eff(*line.split("\t")[:-1])
        assert code == 0, err
        told += out
    return told


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs(name: str, place: Path) -> None:
    assert "held-out loss" in _shell(name, Path(sys.executable).parent)


def test_the_first_run_runs(eff: Eff, place: Path) -> None:
    assert _run(eff, "1_first_run.sh").count("held-out loss") == 2
    assert (place / "runs" / "first" / "report.html").exists()


def test_runs_of_an_equal_budget_are_compared(eff: Eff) -> None:
    told = _run(eff, "2_equal_budget.sh")
    assert told.count("held-out loss") >= 3
    assert "times fewer FLOPs than runs/plain" in told


def test_a_phase_model_is_set_beside_a_gpt(eff: Eff, place: Path) -> None:
    told = _run(eff, "5_phases.sh")
    assert "GPT of this size" in told
    assert (place / "runs" / "phase" / "inspect.html").exists()


def test_a_strategy_of_ones_own_is_followed(corpus_folder: Path, place: Path) -> None:
    own = _of_less_text("3_your_own_strategy.py", "300k", "10k")

    def script() -> int:
        sys.argv = [own, str(corpus_folder), *TINY]
        runpy.run_path(own, run_name="__main__")
        return 0

    end = outcome(script, place)
    assert end.code == 0, end.err
    first, second = end.out.splitlines()
    assert first.startswith("random: ")
    assert second.startswith("middle: ")
    assert first.split()[1] != second.split()[1]
