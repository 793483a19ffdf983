"""The examples run."""

import os
import runpy
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_loop_can_be_held(corpus_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(EXAMPLES / "4_hold_the_loop.py"))["main"]
    loss = main(str(corpus_folder), *TINY, "batch.sequences=32")
    assert loss < 3
    assert "held out: 5." in capsys.readouterr().out


def _run(name: str) -> str:
    """What a script says, as it stands but for a smaller model and text."""
    script = EXAMPLES / name
    assert script.stat().st_mode & stat.S_IXUSR
    text = script.read_text()
    text = text.replace("eff prepare", "eff prepare grammar:1 --max-tokens 20000")
    text = text.replace(
        "--tokens 500k", "--steps 5 --set model.layers=1 --set evaluation.tokens=999"
    )
    few = "--set evaluation.texts=0"
    text = text.replace("eff qllm train", f"eff qllm train {few}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", text],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_run_runs(place: Path) -> None:
    assert _run("1_first_run.sh").count("held-out loss") == 2
    assert (place / "runs" / "first" / "report.html").exists()


def test_runs_of_an_equal_budget_are_compared(place: Path) -> None:
    told = _run("2_equal_budget.sh")
    assert told.count("held-out loss") >= 3
    assert "times fewer FLOPs than runs/plain" in told


def test_a_phase_model_is_set_beside_a_gpt(place: Path) -> None:
    told = _run("5_phases.sh")
    assert "GPT of this size" in told
    assert (place / "runs" / "phase" / "inspect.html").exists()


def test_a_strategy_of_ones_own_is_followed(corpus_folder: Path, place: Path) -> None:
    text = (EXAMPLES / "3_your_own_strategy.py").read_text()
    own = place / "own.py"
    own.write_text(text.replace('"tokens": "300k"', '"tokens": "30k"'))
    script = [sys.executable, str(own), str(corpus_folder)]
    done = subprocess.run([*script, *TINY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("random: ")
    assert second.startswith("middle: ")
    assert first.split()[1] != second.split()[1]
