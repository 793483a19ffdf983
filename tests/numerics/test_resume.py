"""Resumed equals uninterrupted, bit for bit: weights, moments, order, random numbers, ledger."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Settings
from exactness import differences, final_state, stopping_after

from effcli.engine.data.prepare import prepare
from effcli.engine.records import Evaluation, Record
from effcli.engine.runs import checkpoint
from effcli.engine.runs.report import report_of
from effcli.errors import InputError, Stopped
from effcli.methods import baseline
from effcli.settings.baseline import BaselineSettings
from effcli.settings.prepare import PrepareSettings

STEPS = 60
Asked = Callable[..., BaselineSettings]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, bare: Settings) -> Asked:
    """Dropout, accumulation, evaluations and two epoch ends: all that could go wrong."""
    folder = tmp_path_factory.mktemp("short") / "corpus"  # of 124 windows
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFF_DATA", str(folder.parent))
        prepare(PrepareSettings(sources=("grammar:1",), max_tokens=8_000, out=folder))

    def make(out: Path, **flags: Any) -> BaselineSettings:
        shape = ["model.dropout=0.1", "batch.sequences=6", "batch.micro=4", "model.layers=1"]
        usual = {"steps": STEPS, "eval_every": 25, "save_every": 20, "data": str(folder)}
        look = ["model.context=64", "evaluation.floors=false"]
        return bare(*shape, *look, **{**usual, "out": out, **flags})

    return make


@pytest.fixture(scope="module")
def reference(
    tmp_path_factory: pytest.TempPathFactory, asked: Asked
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("reference") / "run"
    report = baseline.run(asked(folder))
    assert report.tokens > 2 * report.unique_tokens
    return folder, final_state(folder)


SOME = (1, 2, 19, 20, 21, 24, 25, 26, 33, 41, 42, 59)
"""First and last steps, and those around saves, evaluations and the ends of epochs."""
EVERY = [pytest.param(k, marks=[] if k in SOME else pytest.mark.slow) for k in range(1, STEPS)]


@pytest.mark.parametrize("cut", EVERY)
def test_every_cut_resumes_exactly(asked: Asked, reference: Any, place: Path, cut: int) -> None:
    watch, stop = stopping_after(cut)
    with pytest.raises(Stopped) as stopped:
        baseline.run(asked(place / "run"), watch, stop)
    assert stopped.value.code == 143
    assert "--resume" in (stopped.value.hint or "")
    baseline.run(asked(place / "run", resume=True))
    assert not differences(final_state(place / "run"), reference[1])


@pytest.mark.parametrize("cuts", [(3, 7, 41), (20, 21, 22), (25, 26, 50)])
def test_resuming_again_and_again_is_exact(
    asked: Asked, reference: Any, place: Path, cuts: tuple[int, ...]
) -> None:
    for cut in cuts:
        watch, stop = stopping_after(cut)
        with pytest.raises(Stopped):
            baseline.run(asked(place / "run", resume=True), watch, stop)
    baseline.run(asked(place / "run", resume=True))
    assert not differences(final_state(place / "run"), reference[1])


def test_a_signal_inside_an_evaluation_loses_nothing(
    asked: Asked, reference: Any, place: Path
) -> None:
    seen = {"looks": 0, "questions": 0}

    def watch(record: Record) -> None:
        seen["looks"] += isinstance(record, Evaluation)

    def stop() -> int | None:
        seen["questions"] += seen["looks"] >= 1
        return signal.SIGINT if seen["questions"] > 52 else None  # after 25 steps of two parts

    with pytest.raises(Stopped, match="during an evaluation") as stopped:
        baseline.run(asked(place / "run"), watch, stop)
    assert stopped.value.code == 130
    baseline.run(asked(place / "run", resume=True))
    assert not differences(final_state(place / "run"), reference[1])


def test_without_the_random_state_a_resumed_run_would_differ(
    asked: Asked, reference: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests above can fail: this is what they would see."""
    from effcli.engine.device import Device

    watch, stop = stopping_after(30)
    with pytest.raises(Stopped):
        baseline.run(asked(place / "run"), watch, stop)
    monkeypatch.setattr(Device, "set_rng_state", lambda self, state: None)
    baseline.run(asked(place / "run", resume=True))
    with pytest.raises(AssertionError):
        assert not differences(final_state(place / "run"), reference[1])


def test_what_a_kill_after_the_last_save_takes_is_looked_at_again(
    asked: Asked, reference: Any, place: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("effcli.engine.session.close_run", _killed)
        with pytest.raises(RuntimeError):
            baseline.run(asked(place / "run", save_every=0))
    resumed = baseline.run(asked(place / "run", save_every=0, resume=True))
    whole = report_of(reference[0])
    assert resumed.tail == whole.tail
    assert resumed.held_out == whole.held_out
    looks = len([row for row in reference[1]["records"] if row["kind"] == "evaluation"])
    assert resumed.flops["eval"] == pytest.approx(whole.flops["eval"] * (looks + 1) / looks)
    assert resumed.flops["train"] == whole.flops["train"]


def _killed(*_: Any) -> None:
    raise RuntimeError("killed")


def test_a_complete_run_is_not_run_again(asked: Asked, reference: Any) -> None:
    before = (reference[0] / "records.jsonl").read_bytes()
    report = baseline.run(asked(reference[0], resume=True))
    assert report.status == "complete"
    assert (reference[0] / "records.jsonl").read_bytes() == before


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(
    asked: Asked, reference: Any, place: Path
) -> None:
    watch, stop = stopping_after(45)
    with pytest.raises(Stopped):
        baseline.run(asked(place / "run"), watch, stop)
    newest = checkpoint.steps(place / "run" / "checkpoints")[-1]
    weights = newest / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-10] ^= 1  # one bit
    weights.write_bytes(data)
    seen: list[str] = []
    baseline.run(asked(place / "run", resume=True), lambda r: seen.append(getattr(r, "text", "")))
    assert any("damaged and was set aside" in text for text in seen)
    assert not differences(final_state(place / "run"), reference[1])


def test_when_no_checkpoint_is_whole_nothing_is_restarted_silently(
    asked: Asked, place: Path
) -> None:
    watch, stop = stopping_after(30)
    with pytest.raises(Stopped):
        baseline.run(asked(place / "run"), watch, stop)
    for folder in checkpoint.steps(place / "run" / "checkpoints"):
        (folder / "state.json").write_text("{}")
    with pytest.raises(InputError, match=r"no checkpoint .* is whole"):
        baseline.run(asked(place / "run", resume=True))


def test_settings_that_were_edited_are_refused(asked: Asked, place: Path) -> None:
    watch, stop = stopping_after(5)
    with pytest.raises(Stopped):
        baseline.run(asked(place / "run"), watch, stop)
    config = place / "run" / "config.toml"
    config.write_text(config.read_text().replace("dropout = 0.1", "dropout = 0.2"))
    with pytest.raises(InputError, match="not what the run was begun with"):
        baseline.run(asked(place / "run", resume=True))


def test_another_corpus_is_refused(asked: Asked, place: Path, corpus_folder: Path) -> None:
    watch, stop = stopping_after(5)
    with pytest.raises(Stopped):
        baseline.run(asked(place / "run"), watch, stop)
    with pytest.raises(InputError, match="another corpus"):
        baseline.run(asked(place / "run", resume=True, data=str(corpus_folder)))
