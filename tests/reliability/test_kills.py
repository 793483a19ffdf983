"""Whatever ends a process, a run goes on to the very same weights."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Settings

from effcli.engine.interrupt import Interrupt
from effcli.engine.runs import checkpoint
from effcli.errors import EffError, Stopped
from effcli.methods import baseline
from reliability.harness import SETS, fork, kill, same, wait, weights

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def _train(settings: Any) -> Callable[[], int]:
    def work() -> int:
        try:
            with Interrupt() as stop:
                baseline.run(settings, lambda _: None, stop)
        except Stopped as error:
            return error.code
        except EffError as error:
            return error.exit_code
        return 0

    return work


def _settings(tiny: Settings, out: Path) -> Any:
    flags = {"steps": 60, "save_every": 3, "eval_every": 20, "out": out, "resume": True}
    return tiny("model.dropout=0.1", "batch.micro=2", "evaluation.floors=false", **flags)


def test_a_run_killed_again_and_again_still_ends(tiny: Settings, place: Path) -> None:
    settings = _settings(tiny, place / "run")
    dice = random.Random(1)
    for _ in range(12):
        child = fork(_train(settings))
        time.sleep(dice.uniform(0.1, 0.5))
        kill(child)
    assert wait(fork(_train(settings))) == 0
    assert wait(fork(_train(_settings(tiny, place / "reference")))) == 0
    assert same(weights(place / "run"), weights(place / "reference"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_save_and_say_how_to_go_on(tiny: Settings, place: Path, number: int) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("whoever began this lets it be ignored")
    dice = random.Random(number)
    saved = 0
    for attempt in range(8):
        folder = place / f"run-{attempt}"
        child = fork(_train(_settings(tiny, folder)))
        time.sleep(dice.uniform(0.15, 0.9))
        os.kill(child, number)
        code = wait(child)
        assert code in (0, 128 + number, -number)  # done, saved, or before anything had begun
        saved += code == 128 + number
        if code == 128 + number:
            place_, _ = checkpoint.newest(folder / "checkpoints")
            assert place_ is not None
    assert saved > 3


def test_a_second_ctrl_c_leaves_at_once(place: Path) -> None:
    def stubborn() -> int:
        with Interrupt():
            for _ in range(600):
                time.sleep(0.05)  # work that never looks
        return 0

    child = fork(stubborn)
    time.sleep(0.3)
    os.kill(child, signal.SIGINT)
    time.sleep(0.2)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)  # the first one only asks
    os.kill(child, signal.SIGINT)
    assert wait(child) == 130


def test_the_lock_of_a_killed_process_is_free(tiny: Settings, place: Path) -> None:
    settings = _settings(tiny, place / "run")
    child = fork(_train(settings))
    time.sleep(0.4)
    assert wait(fork(_train(settings))) == 3
    kill(child)
    assert wait(fork(_train(settings))) == 0


def test_the_whole_program_stops_on_a_signal(corpus_folder: Path, place: Path) -> None:
    command = [sys.executable, "-m", "effcli", "baseline", "--data", str(corpus_folder)]
    command += ["--steps", "100000", "--out", "run", *SETS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (place / "run" / "env.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert out == ""
    assert "stopped: on request" in err
    assert "continue with: eff baseline --resume --out run" in err
    assert "Traceback" not in err


def test_a_killed_preparation_goes_on_to_the_same_bytes(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from effcli.engine.data import job
    from effcli.engine.data.corpus import Corpus
    from effcli.engine.data.prepare import prepare
    from effcli.settings.prepare import PrepareSettings

    monkeypatch.setattr(job, "COMMIT_SECONDS", 0.02)

    def work(out: str) -> Callable[[], int]:
        def run() -> int:
            prepare(PrepareSettings(sources=("grammar-noisy:1",), out=Path(out)))
            return 0

        return run

    assert wait(fork(work("whole"))) == 0
    dice = random.Random(2)
    for number in range(3):
        for _ in range(3):
            child = fork(work(f"parts-{number}"))
            time.sleep(dice.uniform(0.05, 0.8))
            kill(child)
        assert wait(fork(work(f"parts-{number}"))) == 0
        assert Corpus.open(Path(f"parts-{number}")).hash == Corpus.open(Path("whole")).hash
