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


def test_the_first_run_runs(place: Path) -> None:
    """As it stands, but for a smaller model and text."""
    script = EXAMPLES / "1_first_run.sh"
    assert script.stat().st_mode & stat.S_IXUSR
    text = script.read_text()
    text = text.replace("eff prepare ", "eff prepare grammar:1 --max-tokens 20000 ")
    text = text.replace(
        "--tokens 500k", "--steps 5 --set model.layers=1 --set evaluation.tokens=999"
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", text],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (place / "runs" / "first" / "report.html").exists()
    assert done.stdout.count("held-out loss") == 2
