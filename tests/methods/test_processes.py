"""Several processes under torchrun: the same stream, the same losses, one that writes."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Settings
from ranks import Ranks, ranks
from torch.distributed import distributed_c10d

from effcli.engine.processes import Processes, ProcessLost, join
from effcli.engine.records import never
from effcli.engine.runs import checkpoint
from effcli.engine.runs.report import report_of
from effcli.engine.runs.rundir import RunDir
from effcli.engine.session import Session
from effcli.errors import InputError, Stopped
from effcli.methods import baseline
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve

SETS = [part for assignment in TINY for part in ("--set", assignment)]


def _torchrun(
    count: int, *arguments: Any, command: str = "baseline", **options: Any
) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    start = [*launcher, "--nproc-per-node", str(count), "-m", "effcli", command]
    return subprocess.Popen(
        [*start, *SETS, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def _losses(folder: Path) -> list[float]:
    return [row["loss"] for row in RunDir(folder).records() if row["kind"] == "step"]


@pytest.fixture(scope="module")
def pair(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes."""
    folder = tmp_path_factory.mktemp("pair") / "two"
    budget = ["--steps", 12, "--eval-every", 6, "--set", "batch.sequences=5"]
    process = _torchrun(2, "--data", corpus_folder, "--out", folder, *budget, "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["run"] == str(folder)  # one document: one process speaks
    return folder


def test_the_result_does_not_depend_on_the_number_of_processes(
    tiny: Settings, pair: Path, place: Path
) -> None:
    settings = tiny("batch.sequences=5", steps=12, eval_every=6, out=place / "one")
    with Session("baseline", settings, lambda _: None, lambda: None) as session:
        one, moving = session.train(), session.parts.optimizer.flops
    two = report_of(pair)
    assert _losses(pair) == pytest.approx(_losses(place / "one"), abs=1e-4)
    assert one.held_out is not None
    assert two.held_out is not None
    assert two.held_out.loss == pytest.approx(one.held_out.loss, abs=1e-4)
    assert two.tail == pytest.approx(one.tail, abs=1e-3)
    assert (two.tokens, two.unique_tokens, two.steps) == (one.tokens, one.unique_tokens, one.steps)
    assert two.flops["eval"] == one.flops["eval"]
    # Each process moves all the weights, and that is billed.
    assert two.flops["train"] - one.flops["train"] == 12 * moving > 0


def test_one_process_writes_the_folder(pair: Path) -> None:
    assert not list(pair.glob("error*"))
    assert [place.name for place in checkpoint.steps(pair / "checkpoints")] == ["step-000000012"]
    rows = [json.loads(line) for line in (pair / "records.jsonl").read_text().splitlines()]
    assert sum(row["kind"] == "step" for row in rows) == 12
    assert "2 × " in json.loads((pair / "env.json").read_text())["device"]


def test_a_run_goes_on_with_another_number_of_processes(
    tiny: Settings, place: Path, corpus_folder: Path
) -> None:
    settings = tiny(steps=150, recipe="textbook", out=place / "r")  # which rounding does not shake
    whole = baseline.run(settings.model_copy(update={"out": place / "whole"}))
    budget = ["--data", corpus_folder, "--steps", 150, "--eval-every", 0, "--save-every", 0]
    recipe = ["--recipe", "textbook"]
    both = ranks(place, "baseline", *SETS, *budget, *recipe, "--out", place / "r")
    _wait_for_steps(both, place / "r", 5)
    for pid in both.pids:  # as torchrun does
        os.kill(pid, signal.SIGTERM)
    err = "".join(end.err for end in both.communicate())
    assert "is saved in" in err, err
    assert err.count("error: ") + err.count("stopped: ") == 1
    before = _losses(place / "r")
    assert 5 <= len(before) < 150
    report = baseline.run(settings.model_copy(update={"resume": True}))
    assert report.status == "complete"
    assert _losses(place / "r")[: len(before)] == before
    assert _losses(place / "r") == pytest.approx(_losses(place / "whole"), abs=5e-3)
    assert report.tokens == whole.tokens


def test_a_process_that_dies_ends_the_run_with_one_line(place: Path, corpus_folder: Path) -> None:
    budget = ["--data", corpus_folder, "--steps", 5000, "--eval-every", 0, "--save-every", 0]
    process = _torchrun(2, *budget, "--out", place / "r")
    _wait_for_steps(process, place / "r", 5)
    os.kill(next(_ranks(process.pid, "1")), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    said = [line for line in err.splitlines() if line.startswith(("error:", "stopped:"))]
    assert len(said) == 1, err
    assert "is saved in" in said[0]
    saved = checkpoint.steps(place / "r" / "checkpoints")
    assert len(saved) == 1
    assert checkpoint.damage(saved[0]) is None
    assert int(saved[0].name.removeprefix("step-")) >= 5


def test_a_process_that_does_not_answer_is_not_waited_for_after_a_signal(
    place: Path, corpus_folder: Path
) -> None:
    budget = ["--data", corpus_folder, "--steps", 5000, "--eval-every", 0, "--save-every", 0]
    both = ranks(place, "baseline", *SETS, *budget, "--out", place / "r")
    _wait_for_steps(both, place / "r", 5)
    first, second = both.pids
    os.kill(second, signal.SIGSTOP)  # its connections stay open
    try:
        os.kill(first, signal.SIGTERM)
        deadline = time.monotonic() + 20  # of which a busy machine needs the most
        while (alive := both.poll() is None) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        os.kill(second, signal.SIGKILL)
    err = "".join(end.err for end in both.communicate())
    assert not alive, err
    said = [line for line in err.splitlines() if line.startswith(("error:", "stopped:"))]
    assert len(said) == 1, err
    assert "another process did not answer; step" in said[0]
    (saved,) = checkpoint.steps(place / "r" / "checkpoints")
    assert checkpoint.damage(saved) is None


def test_waiting_for_the_others_ends_with_them_or_soon_after_a_signal() -> None:
    class Pending:
        """What gloo is at: it ends after some waits, or never, or in an error."""

        def __init__(self, waits: float, error: str = "") -> None:
            self.waits, self.error = waits, error

        def is_completed(self) -> bool:
            return self.waits <= 0

        def wait(self, timeout: timedelta | None = None) -> None:
            self.waits -= 1
            if self.waits > 0 or self.error:
                raise RuntimeError(self.error if self.waits <= 0 else "timed out")

    def together(pending: Pending, asked: int | None) -> None:
        processes = Processes()
        processes._asks = lambda: asked
        processes._together(lambda *_, **__: pending, torch.zeros(1))

    together(Pending(1000), None)  # without a signal, however long it takes
    together(Pending(5), signal.SIGTERM)  # the others are only slower
    with pytest.raises(ProcessLost):
        together(Pending(3, "connection closed"), None)
    with pytest.raises(Stopped, match="did not answer"):
        together(Pending(1000), signal.SIGTERM)
    with pytest.raises(Stopped, match="another process ended"):  # which was told, too
        together(Pending(3, "connection closed"), signal.SIGTERM)


def test_the_others_wait_for_the_first_as_long_as_it_lives(place: Path) -> None:
    met = place / "met"
    met.mkdir()

    def waiting() -> int:
        distributed_c10d.default_pg_timeout = timedelta(seconds=2)
        (met / os.environ["RANK"]).touch()
        while len(list(met.iterdir())) < 2:  # else they would have to meet within that time
            time.sleep(0.01)
        processes = join("cpu")
        processes.enter(never, 0)
        if processes.is_first:
            time.sleep(4)
        processes.wait()
        print("patient", flush=True)
        if processes.is_first:
            os._exit(0)
        try:
            processes.wait()
        except ProcessLost:
            print("lost", flush=True)
        os._exit(0)

    said = [end.out.split() for end in Ranks(place, waiting).communicate()]
    assert said == [["patient"], ["patient", "lost"]]


# Sums of two are the same in every order, so that two processes are to the bit what one is.
PAIRS = ["model.pair_rows=0", "model.value_tables=false", "batch.micro=2"]


@pytest.fixture(scope="module")
def teacher(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    flags = {"data": str(corpus_folder), "steps": 40, "out": folder, "eval_every": 0}
    wishes = [*TINY, *PAIRS, "evaluation.floors=false"]
    baseline.run(resolve(BaselineSettings, flags, wishes).settings)
    return folder


def _hybrid(teacher: Path, corpus_folder: Path, steps: int) -> list[str]:
    asked = ["--teacher", teacher, "--data", corpus_folder, "--steps", steps, "--eval-every", 10]
    asked += ["--save-every", 0, "--hybrid", "--ternary", "--qat", "--set", "batch.micro=2"]
    return [*map(str, asked), "--set", "evaluation.floors=false"]


def _student(folder: Path) -> tuple[list[float], bytes]:
    return _losses(folder), (folder / "student.eff").read_bytes()


@pytest.mark.slow
def test_a_student_does_not_depend_on_the_number_of_processes(
    eff: Any, teacher: Path, corpus_folder: Path, place: Path
) -> None:
    asked = _hybrid(teacher, corpus_folder, 20)
    process = _torchrun(2, *asked, "--out", place / "two", command="distill")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert eff("distill", *SETS, *asked, "--out", place / "one")[0] == 0
    assert _student(place / "two") == _student(place / "one")
    assert report_of(place / "two").hybrid is not None


@pytest.mark.slow
def test_a_hybrid_of_two_processes_goes_on_as_if_it_had_not_been_stopped(
    teacher: Path, corpus_folder: Path, place: Path
) -> None:
    asked = _hybrid(teacher, corpus_folder, 200)
    process = _torchrun(2, *asked, "--out", place / "whole", command="distill")
    process.communicate(timeout=300)
    assert process.returncode == 0
    process = _torchrun(2, *asked, "--out", place / "cut", command="distill")
    _wait_for_steps(process, place / "cut", 14)  # in the midst of comparisons
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert "is saved in" in err, err
    assert err.count("error: ") + err.count("stopped: ") == 1
    assert 14 <= len(_losses(place / "cut")) < len(_losses(place / "whole"))
    process = _torchrun(2, "--resume", "--out", place / "cut", command="distill")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert _student(place / "cut") == _student(place / "whole")
    report = report_of(place / "cut").hybrid
    assert report is not None
    assert report.decisions == 4


def test_bad_input_is_said_once(place: Path, corpus_folder: Path) -> None:
    both = ranks(place, "baseline", "--data", "nowhere", "--steps", 3)
    err = "".join(end.err for end in both.communicate())
    assert err.count("error: there is no corpus") == 1


def test_other_commands_are_the_work_of_one_process(
    eff: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = eff("prepare", "grammar:1")
    assert code == 2
    assert "one process" in err


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_are_whole_and_even(world: int) -> None:
    shares = []
    for rank in range(world):
        processes = Processes()
        processes.rank, processes.world = rank, world
        shares.append(processes.share(11))
    assert shares[0][0] == 0
    assert shares[-1][1] == 11
    assert all(one[1] == other[0] for one, other in itertools.pairwise(shares))
    sizes = [stop - start for start, stop in shares]
    assert max(sizes) - min(sizes) <= 1


def test_more_processes_than_sequences_are_refused() -> None:
    processes = Processes()
    processes.world = 8
    with pytest.raises(InputError, match="8 processes"):
        processes.share(5)


def _wait_for_steps(process: subprocess.Popen[str] | Ranks, folder: Path, steps: int) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "records.jsonl").exists() and len(_losses(folder)) >= steps:
            return
        time.sleep(0.05)
    process.kill()
    pytest.fail(str(process.communicate()))


def _ranks(launcher: int, rank: str) -> Iterator[int]:
    """The launcher's children of one rank."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            yield int(child)
