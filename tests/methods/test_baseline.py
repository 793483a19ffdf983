"""`eff baseline`, whole: the run folder, the report, failures, tuning, resuming by command line."""

import json
import math
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Settings

from effcli.engine.interrupt import Interrupt
from effcli.engine.records import Evaluation, Notice, Record, Step
from effcli.engine.runs import checkpoint
from effcli.engine.runs.report import report_of
from effcli.engine.session import Session
from effcli.errors import DivergedError, InputError, ResourceError, Stopped
from effcli.methods import baseline

Eff = Callable[..., tuple[int, str, str]]
SETS = [part for assignment in TINY for part in ("--set", assignment)]
ACCOUNTS = {"train", "select", "teacher", "grow", "meta", "eval"}


def test_a_run_leaves_a_whole_folder(tiny: Settings, place: Path) -> None:
    settings = tiny("evaluation.samples=2", steps=10, eval_every=5, save_every=4, out=place / "r")
    report = baseline.run(settings)
    folder = place / "r"
    names = {path.name for path in folder.iterdir()}
    files = {"config.toml", "env.json", "records.jsonl", "report.json", "report.html"}
    assert names == files | {"checkpoints", "tokenizer.json", "files.json", ".lock"}
    steps = [path.name for path in checkpoint.steps(folder / "checkpoints")]
    assert steps == ["step-000000008", "step-000000010"]
    env = json.loads((folder / "env.json").read_text())
    assert env["packages"]["torch"] == torch.__version__
    assert env["optimizer"] == (
        "12 tensors to Muon, 6 tensors to AdamW, 3 tensors to AdaGrad by rows"
    )
    kinds = [
        json.loads(line)["kind"] for line in (folder / "records.jsonl").read_text().splitlines()
    ]
    assert kinds.count("step") == 10
    assert kinds.count("evaluation") == 3
    assert kinds.count("sample") == 2
    assert kinds[-1] == "ledger"
    assert json.loads((folder / "report.json").read_text()) == report.as_json()


def test_the_report_has_the_documented_shape(tiny: Settings, place: Path) -> None:
    report = baseline.run(tiny(steps=4), lambda _: None).as_json()
    assert report["schema"] == 1
    assert report["command"] == "baseline"
    assert report["status"] == "complete"
    assert Path(report["run"]) == Path("runs/baseline-nano-1")
    assert set(report["held_out"]) == {
        *("loss", "perplexity", "bits_per_byte", "windows", "entropy_bits_per_byte")
    }
    assert set(report["floors"]) == {"unigram", "bigram", "trigram"}
    assert set(report["flops"]) == ACCOUNTS
    assert set(report["seconds"]) == ACCOUNTS | {"compile", "total"}
    assert set(report["energy"]) == {"joules", "source"}
    assert report["energy"]["source"].startswith(("measured:", "estimated:"))
    for name in ("parameters", "steps", "tokens", "unique_tokens", "peak_memory_bytes"):
        assert isinstance(report[name], int)
        assert report[name] > 0
    for name in ("tokens_per_second", "mfu", "peak_flops_per_second"):
        assert report[name] > 0
    assert report["cost"] is None
    assert report["tuning"] is None


def test_a_price_makes_a_cost(tiny: Settings) -> None:
    report = baseline.run(tiny(price_per_hour=3.6))
    assert report.cost == pytest.approx(report.seconds["total"] * 0.001)


@pytest.mark.usefixtures("draws")
def test_the_page_needs_no_network_and_escapes_what_it_shows(tiny: Settings, place: Path) -> None:
    settings = tiny("evaluation.samples=1", steps=4, eval_every=2, out=place / "<b>r")
    baseline.run(settings)
    page = (place / "<b>r" / "report.html").read_text()
    assert "<b>r" not in page
    assert "&lt;b&gt;r" in page
    assert page.count("<svg") == 8
    for word in ("http://", "https://", "src=", "<script", "@import", "url("):
        found = page.replace("http://www.w3.org/", "").replace("https://matplotlib.org/", "")
        found = found.replace("http://purl.org/", "").replace("http://creativecommons.org/", "")
        assert word not in found.replace("url(#", ""), word
    assert "Content-Security-Policy" in page


def test_runs_are_numbered_and_never_overwritten(tiny: Settings, place: Path) -> None:
    baseline.run(tiny())
    baseline.run(tiny())
    assert sorted(path.name for path in (place / "runs").iterdir()) == [
        "baseline-nano-1",
        "baseline-nano-2",
    ]
    with pytest.raises(InputError, match="holds a run already"):
        baseline.run(tiny(out=Path("runs/baseline-nano-1")))
    (place / "other").mkdir()
    (place / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds something else"):
        baseline.run(tiny(out=place / "other"))
    assert [path.name for path in (place / "other").iterdir() if path.name[0] != "."] == [
        "thesis.tex"
    ]


def test_a_finished_run_is_repeated_from_its_own_file(
    eff: Eff, tiny: Settings, place: Path
) -> None:
    first = baseline.run(tiny("model.dropout=0.1", steps=8, seed=3, out=place / "first"))
    code, out, _ = eff("baseline", "--config", place / "first" / "config.toml", "--json")
    again = json.loads(out)
    assert code == 0
    assert again["held_out"] == first.as_json()["held_out"]
    one, other = (
        checkpoint.load_model(checkpoint.steps(folder / "checkpoints")[-1], torch.device("cpu"))
        for folder in (place / "first", Path(again["run"]))
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_does_harm(
    tiny: Settings, place: Path, bad: float
) -> None:
    settings = tiny(steps=20, save_every=5, eval_every=5, out=place / "r")
    with Session("baseline", settings, lambda _: None, lambda: None) as session:
        objective = session.parts.objective

        class Poisoned:
            def __call__(self, model: Any, batch: Any) -> Any:
                loss = objective(model, batch)
                if session.parts.meter.steps == 12:
                    return type(loss)(loss.mean * bad, loss.per_sequence, loss.features)
                return loss

            flops = objective.flops

        session.parts.objective = Poisoned()
        with pytest.raises(DivergedError) as raised:
            session.train()
        weights = session.parts.model.state_dict()
    assert raised.value.exit_code == 5
    for fact in ("step 13", str(bad), "learning rate 0.016", "step-000000010"):
        assert fact in raised.value.message
    assert "--lr 0.0067" in (raised.value.hint or "")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    rows = [json.loads(line) for line in (place / "r" / "records.jsonl").read_text().splitlines()]
    assert {"kind": "diverged", "step": 13, "loss": str(bad)}.items() <= next(
        row for row in rows if row["kind"] == "diverged"
    ).items()
    assert report_of(place / "r").status == "diverged"


def test_a_run_that_explodes_ends_with_code_5(eff: Eff, corpus_folder: Path) -> None:
    code, _, err = eff(
        *("baseline", "--data", corpus_folder, "--steps", "40", *SETS),
        *("--recipe", "textbook", "--lr", "1e30", "--set", "optim.clip=0", "--quiet"),
    )
    assert code == 5
    assert "Traceback" not in err
    assert "try a lower rate" in err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_names_the_smallest_change_that_fits(
    tiny: Settings, place: Path, error: BaseException
) -> None:
    for micro, advice in ((4, "batch.micro=2"), (1, "device.recompute=true")):
        settings = tiny(f"batch.micro={micro}", out=place / f"r{micro}")
        with Session("baseline", settings, lambda _: None, lambda: None) as session:

            class Greedy:
                def __call__(self, *_: Any) -> Any:
                    raise error

                flops = session.parts.objective.flops

            session.parts.objective = Greedy()
            with pytest.raises(ResourceError, match="out of memory") as raised:
                session.train()
        assert raised.value.exit_code == 3
        assert advice in (raised.value.hint or "")


def test_a_real_allocation_that_cannot_be_is_code_3(eff: Eff, corpus_folder: Path) -> None:
    code, _, err = eff(
        *("baseline", "--data", corpus_folder, "--steps", "3", *SETS, "--quiet"),
        *("--set", "model.width=65536", "--set", "model.heads=2", "--set", "model.layers=1024"),
    )
    assert code == 3
    assert "out of memory" in err
    assert "Traceback" not in err


def test_a_bug_leaves_its_traceback_in_the_run(tiny: Settings, place: Path) -> None:
    settings = tiny(out=place / "r")

    def broken() -> None:
        with Session("baseline", settings) as session:
            session.parts.schedule = lambda progress: 1 / 0
            session.train()

    with pytest.raises(ZeroDivisionError):
        broken()
    assert "ZeroDivisionError" in (place / "r" / "error.log").read_text()


def test_resuming_by_command_line_needs_nothing_but_the_folder(
    eff: Eff, tiny: Settings, place: Path
) -> None:
    settings = tiny(steps=12, out=place / "r")
    seen = []

    def watch(record: Record) -> None:
        seen.append(record)

    with pytest.raises(Stopped):
        baseline.run(settings, watch, lambda: signal.SIGINT if len(seen) > 5 else None)
    assert report_of(place / "r").status == "stopped"
    code, out, err = eff("baseline", "--resume", "--out", place / "r", "--json")
    assert code == 0, err
    assert json.loads(out)["steps"] == 12
    assert "continuing at step" in err
    code, out, err = eff("baseline", "--resume", "--out", place / "r", "--json")
    assert code == 0
    assert "complete already" in err


def test_the_last_unfinished_run_is_resumed_without_a_name(eff: Eff, tiny: Settings) -> None:
    with pytest.raises(Stopped):
        baseline.run(tiny(steps=8), stop=lambda: signal.SIGINT)
    baseline.run(tiny(steps=3))
    code, out, _ = eff("baseline", "--resume", "--json")
    assert code == 0
    assert json.loads(out)["run"] == "runs/baseline-nano-1"
    assert json.loads(out)["steps"] == 8


def test_a_run_goes_on_from_any_folder_whatever_was_prepared_since(
    eff: Eff, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert eff("prepare", "grammar:1", "--max-tokens", "5000", "--quiet")[0] == 0
    first = eff("baseline", "--steps", "5", *SETS, "--out", "mine", "--json")
    (place / "mine" / "report.json").unlink()  # as if it had been killed at the very end
    assert eff("prepare", "grammar:2", "--max-tokens", "5000", "--quiet")[0] == 0
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    code, out, err = eff("baseline", "--resume", "--out", place / "mine", "--json")
    assert code == 0, err
    assert json.loads(out)["held_out"] == json.loads(first[1])["held_out"]


def test_a_run_that_never_began_is_begun(eff: Eff, corpus_folder: Path) -> None:
    code, out, _ = eff(
        *("baseline", "--data", corpus_folder, "--steps", "3", *SETS),
        *("--out", "new", "--resume", "--json"),
    )
    assert code == 0
    assert json.loads(out)["steps"] == 3


@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        (["--steps", "9"], False),
        (["--seed", "9"], False),
        (["--set", "optim.beta1=0.5"], False),
        (["--preset", "tiny"], False),
        (["--steps", "8"], True),
        (["--save-every", "2"], True),
        (["--price-per-hour", "2"], True),
    ],
)
def test_a_resumed_run_keeps_its_settings(
    eff: Eff, tiny: Settings, place: Path, change: list[str], accepted: bool
) -> None:
    with pytest.raises(Stopped):
        baseline.run(tiny(steps=8, out=place / "r"), stop=lambda: signal.SIGINT)
    code, _, err = eff("baseline", "--resume", "--out", place / "r", *change)
    assert code == (0 if accepted else 2), err


def test_two_processes_cannot_share_a_run(tiny: Settings, place: Path) -> None:
    settings = tiny(steps=4, out=place / "r")
    with (
        Session("baseline", settings, lambda _: None, lambda: None),
        pytest.raises(ResourceError, match="is in use by process"),
    ):
        baseline.run(settings.model_copy(update={"resume": True}))
    assert baseline.run(settings.model_copy(update={"resume": True})).steps == 4


def test_tuning_finds_the_better_rate_and_is_billed_apart(tiny: Settings, place: Path) -> None:
    settings = tiny("optim.lr=0.0005", steps=40, tune=4, out=place / "r")
    notices: list[str] = []
    report = baseline.run(
        settings, lambda r: notices.append(r.text) if isinstance(r, Notice) else None
    )
    plain = baseline.run(settings.model_copy(update={"tune": 0, "out": place / "plain"}))
    assert report.tuning is not None
    assert report.tuning.trials == len(report.tuning.losses) == 4
    assert report.tuning.flops > 0
    assert report.tuning.chosen["lr"] > 0.0005  # the given one is far too low
    assert report.flops == plain.flops
    assert report.held_out is not None
    assert plain.held_out is not None
    assert report.held_out.loss < plain.held_out.loss
    assert any(notice.startswith("trial 4 of 4") for notice in notices)
    trial = report_of(place / "r" / "tuning" / "trial-001")
    assert trial.steps == 10
    assert trial.held_out is not None


def test_interrupted_tuning_goes_on(tiny: Settings, place: Path) -> None:
    settings = tiny(steps=12, tune=3, out=place / "r")
    whole = baseline.run(settings.model_copy(update={"out": place / "whole"}))
    count = {"steps": 0}

    def watch(record: Record) -> None:
        count["steps"] += isinstance(record, Step)

    with pytest.raises(Stopped) as stopped:
        baseline.run(settings, watch, lambda: signal.SIGINT if count["steps"] >= 5 else None)
    assert str(place / "r") in (stopped.value.hint or "")
    assert "/tuning/" not in (stopped.value.hint or "")
    report = baseline.run(settings.model_copy(update={"resume": True}))
    assert report.tuning is not None
    assert whole.tuning is not None
    assert report.tuning.losses == whole.tuning.losses
    assert report.held_out == whole.held_out


def test_a_trial_that_diverges_is_not_chosen(tiny: Settings, place: Path) -> None:
    settings = tiny("optim.lr=1e30", "optim.clip=0", steps=80, tune=2, recipe="textbook")
    with pytest.raises(DivergedError):
        baseline.run(settings.model_copy(update={"out": place / "r"}))


def test_evaluations_come_when_asked(tiny: Settings) -> None:
    looks: list[int] = []
    baseline.run(
        tiny(steps=7, eval_every=3),
        lambda r: looks.append(r.step) if isinstance(r, Evaluation) else None,
    )
    assert looks == [0, 3, 6, 7]


def test_too_little_text_for_a_context_is_said(tiny: Settings) -> None:
    with pytest.raises(InputError, match="less than one context"):
        baseline.run(tiny("model.context=100000"))


@pytest.mark.slow
def test_a_compiled_run_learns_the_same_and_resumes_exactly(
    corpus_folder: Path, place: Path
) -> None:
    """In processes of their own: checking types at run time and compiling do not go together."""

    def run(out: str, flag: str, *more: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "effcli", "baseline", "--data", str(corpus_folder)]
        command += ["--steps", "8", "--save-every", "4", "--eval-every", "4", "--out", out, *SETS]
        command += ["--set", f"device.compile={flag}", "--json", "--quiet", *more]
        report: dict[str, Any] = json.loads(subprocess.check_output(command))
        return report

    plain, compiled = run("off", "off"), run("on", "on")
    assert plain["seconds"]["compile"] == 0
    assert compiled["seconds"]["compile"] > 1
    loss = plain["held_out"]["loss"]
    assert compiled["held_out"]["loss"] == pytest.approx(loss, abs=5e-3)
    last = checkpoint.steps(Path("on/checkpoints"))[-1]
    whole = checkpoint.load_model(last, torch.device("cpu"))
    shutil.rmtree(last)
    (place / "on" / "report.json").unlink()
    assert run("on", "on", "--resume")["held_out"] == compiled["held_out"]
    again = checkpoint.load_model(last, torch.device("cpu"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_run_whose_checkpoints_were_damaged_is_never_begun_again(
    tiny: Settings, place: Path
) -> None:
    with pytest.raises(Stopped):
        baseline.run(tiny(steps=20, out=place / "r"), stop=_after(8))
    for path in (place / "r" / "checkpoints").rglob("model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    for _ in range(2):
        with pytest.raises(InputError, match=r"no checkpoint|nothing to continue"):
            baseline.run(tiny(steps=20, out=place / "r", resume=True))


def test_a_smaller_micro_batch_may_be_used_to_go_on(eff: Eff, tiny: Settings, place: Path) -> None:
    with pytest.raises(Stopped):
        baseline.run(tiny(steps=20, out=place / "r"), stop=_after(8))
    code, _, err = eff("baseline", "--resume", "--out", "r", "--set", "batch.micro=2")
    assert code == 0, err
    assert json.loads((place / "r" / "env.json").read_text())["micro"] == 2


def test_what_was_not_evaluated_at_the_end_has_no_result(tiny: Settings, place: Path) -> None:
    with pytest.raises(Stopped) as raised:
        baseline.run(tiny(steps=20, eval_every=50, out=place / "r"), stop=_after(8))
    report = raised.value.report
    assert report is not None
    assert report["status"] == "stopped"
    assert report["held_out"] is None
    assert report["unique_tokens"] <= report["tokens"]


def test_json_tells_how_a_run_failed(eff: Eff, corpus_folder: Path) -> None:
    flags = ["--data", corpus_folder, "--steps", "40", "--lr", "1e30", "--out", "r", *SETS]
    code, out, _ = eff("baseline", *flags, "--json")
    assert code == 5
    document = json.loads(out)
    assert document["status"] == "diverged"
    assert document["unique_tokens"] <= document["tokens"]


def test_the_total_leaves_tuning_out(tiny: Settings, place: Path) -> None:
    report = baseline.run(tiny(steps=40, tune=4, out=place / "r"))
    assert report.tuning is not None
    parts = sum(value for name, value in report.seconds.items() if name != "total")
    assert parts <= report.seconds["total"] < parts + report.tuning.seconds


def test_adamw_suits_a_model_of_matrices_alone(tiny: Settings) -> None:
    report = baseline.run(tiny("optim.name=adamw"))
    assert report.status == "complete"


def test_no_run_is_faster_than_its_device(
    tiny: Settings, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where others computed while the device was measured, it is measured again."""
    monkeypatch.setattr("effcli.engine.session.peak_flops", lambda _: 1e3)
    report = baseline.run(tiny(steps=3, out=place / "r"))
    assert 0 < report.mfu < 1
    assert report.peak_flops_per_second > 1e6
    assert report_of(place / "r") == report


def test_a_reader_that_leaves_does_not_stop_the_work(corpus_folder: Path, place: Path) -> None:
    command = [sys.executable, "-m", "effcli", "baseline", "--data", str(corpus_folder), *SETS]
    words = " ".join(map(shlex.quote, [*command, "--steps", "30", "--out"]))
    ends = ("2>&1 | head -1", "2>&- | head -1", ">&- 2> >(head -1)")
    for name, end in zip("abc", ends, strict=True):
        subprocess.run(["bash", "-c", f"{words} {name} {end}"], check=True, capture_output=True)
        assert report_of(place / name).status == "complete"


def _after(calls: int) -> Callable[[], int | None]:
    """Asks to stop at a later question."""
    left = iter([None] * calls)
    return lambda: next(left, signal.SIGINT)


def test_a_step_that_diverged_is_billed(tiny: Settings, place: Path) -> None:
    with Session("baseline", tiny(out=place / "r"), lambda _: None, lambda: None) as session:
        parts, objective = session.parts, session.parts.objective

        class Slow:
            def __call__(self, model: Any, batch: Any) -> Any:
                loss = objective(model, batch)
                if parts.meter.steps == 1:
                    time.sleep(0.5)
                    return type(loss)(loss.mean * math.nan, loss.per_sequence, loss.features)
                return loss

            flops = objective.flops

        parts.objective = Slow()
        with pytest.raises(DivergedError):
            session.train()
        step = 3 * parts.model.forward_flops(4, 32)
        expected = 2 * step + parts.optimizer.flops
    report = report_of(place / "r")
    assert report.flops["train"] == expected
    assert report.seconds["train"] > 0.5


def test_a_trial_that_diverges_is_billed(tiny: Settings, place: Path) -> None:
    settings = tiny("optim.lr=1e30", "optim.clip=0", steps=80, tune=2, recipe="textbook")
    with pytest.raises(DivergedError):
        baseline.run(settings.model_copy(update={"out": place / "r"}))
    tuning = json.loads((place / "r" / "env.json").read_text())["tuning"]
    trials = [report_of(place / "r" / "tuning" / f"trial-{n:03d}") for n in (1, 2)]
    assert "diverged" in {trial.status for trial in trials}
    assert tuning["flops"] == sum(sum(trial.flops.values()) for trial in trials)
    assert tuning["seconds"] == sum(trial.seconds["total"] for trial in trials)


def test_a_checkpoint_is_one_that_could_be_looked_at(
    tiny: Settings, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 1.0, math.nan])
    monkeypatch.setattr("effcli.engine.session.held_out_loss", lambda *_: next(losses))
    with pytest.raises(DivergedError, match="held-out") as raised:
        baseline.run(tiny(steps=9, eval_every=2, save_every=2, out=place / "r"))
    assert "step-000000002" in raised.value.message
    assert "learning rate 0.02" in raised.value.message


def test_what_a_kill_leaves_before_the_run_began_is_no_obstacle(
    tiny: Settings, place: Path
) -> None:
    settings = tiny(out=place / "r")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("effcli.engine.runs.rundir.RunDir.begin", _raise)
        with pytest.raises(RuntimeError):
            baseline.run(settings)
    assert baseline.run(settings).status == "complete"


def _raise(*_: Any) -> None:
    raise RuntimeError("killed")


def test_rows_of_logits_are_as_asked_in_evaluation_too(
    tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from effcli.engine.objectives import cross_entropy

    asked: set[int | None] = set()
    original = cross_entropy.head_loss

    def spy(*arguments: Any) -> Any:
        asked.add(arguments[3])
        return original(*arguments)

    for module in ("measure.evaluate", "objectives.next_token"):
        monkeypatch.setattr(f"effcli.engine.{module}.head_loss", spy)
    baseline.run(tiny("device.loss_rows=16"))
    assert asked == {16}


def test_an_ignored_signal_stays_ignored() -> None:
    """As under nohup, or in the background of a script."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop() is None
            signal.raise_signal(signal.SIGTERM)
            assert stop() == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, before)
