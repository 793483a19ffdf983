"""Resumed equals uninterrupted, bit for bit: weights, moments, order, random numbers, ledger."""

import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Settings
from exactness import differences, final_state, stopping_after

from effcli.engine.records import Evaluation, Record
from effcli.engine.runs import checkpoint
from effcli.engine.runs.report import report_of
from effcli.errors import InputError, Stopped
from effcli.methods import baseline

STEPS = 60


def _settings(tiny: Settings, out: Path, **flags: Any) -> Any:
    """Dropout, accumulation, evaluations and two epoch ends: all that could go wrong."""
    shape = ["model.dropout=0.1", "batch.sequences=6", "batch.micro=4", "model.layers=1"]
    flags = {"steps": STEPS, "eval_every": 25, "save_every": 20, "out": out, **flags}
    return tiny(*shape, "model.context=64", "evaluation.floors=false", **flags)


@pytest.fixture(scope="module")
def reference(
    tmp_path_factory: pytest.TempPathFactory, bare: Settings
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("reference") / "run"
    baseline.run(_settings(bare, folder))
    return folder, final_state(folder)


@pytest.mark.parametrize("cut", range(1, STEPS))
def test_every_cut_resumes_exactly(tiny: Settings, reference: Any, place: Path, cut: int) -> None:
    watch, stop = stopping_after(cut)
    with pytest.raises(Stopped) as stopped:
        baseline.run(_settings(tiny, place / "run"), watch, stop)
    assert stopped.value.code == 143
    assert "--resume" in (stopped.value.hint or "")
    baseline.run(_settings(tiny, place / "run", resume=True))
    assert not differences(final_state(place / "run"), reference[1])


@pytest.mark.parametrize("cuts", [(3, 7, 41), (20, 21, 22), (25, 26, 50)])
def test_resuming_again_and_again_is_exact(
    tiny: Settings, reference: Any, place: Path, cuts: tuple[int, ...]
) -> None:
    for cut in cuts:
        watch, stop = stopping_after(cut)
        with pytest.raises(Stopped):
            baseline.run(_settings(tiny, place / "run", resume=True), watch, stop)
    baseline.run(_settings(tiny, place / "run", resume=True))
    assert not differences(final_state(place / "run"), reference[1])


def test_a_signal_inside_an_evaluation_loses_nothing(
    tiny: Settings, reference: Any, place: Path
) -> None:
    asked = {"times": 0}
    looks = {"seen": 0}

    def watch(record: Record) -> None:
        looks["seen"] += isinstance(record, Evaluation)

    def stop() -> int | None:
        asked["times"] += looks["seen"] >= 1
        return signal.SIGINT if asked["times"] > 52 else None  # after 25 steps of two parts

    with pytest.raises(Stopped, match="during an evaluation") as stopped:
        baseline.run(_settings(tiny, place / "run"), watch, stop)
    assert stopped.value.code == 130
    baseline.run(_settings(tiny, place / "run", resume=True))
    assert not differences(final_state(place / "run"), reference[1])


def test_without_the_random_state_a_resumed_run_would_differ(
    tiny: Settings, reference: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests above can fail: this is what they would see."""
    from effcli.engine.device import Device

    watch, stop = stopping_after(30)
    with pytest.raises(Stopped):
        baseline.run(_settings(tiny, place / "run"), watch, stop)
    monkeypatch.setattr(Device, "set_rng_state", lambda self, state: None)
    baseline.run(_settings(tiny, place / "run", resume=True))
    with pytest.raises(AssertionError):
        assert not differences(final_state(place / "run"), reference[1])


def test_what_a_kill_after_the_last_save_takes_is_looked_at_again(
    tiny: Settings, reference: Any, place: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("effcli.engine.session.close_run", _killed)
        with pytest.raises(RuntimeError):
            baseline.run(_settings(tiny, place / "run", save_every=0))
    resumed = baseline.run(_settings(tiny, place / "run", save_every=0, resume=True))
    whole = report_of(reference[0])
    assert resumed.tail == whole.tail
    assert resumed.held_out == whole.held_out
    looks = len([row for row in reference[1]["records"] if row["kind"] == "evaluation"])
    assert resumed.flops["eval"] == pytest.approx(whole.flops["eval"] * (looks + 1) / looks)
    assert resumed.flops["train"] == whole.flops["train"]


def _killed(*_: Any) -> None:
    raise RuntimeError("killed")


def test_a_complete_run_is_not_run_again(tiny: Settings, reference: Any) -> None:
    before = (reference[0] / "records.jsonl").read_bytes()
    report = baseline.run(_settings(tiny, reference[0], resume=True))
    assert report.status == "complete"
    assert (reference[0] / "records.jsonl").read_bytes() == before


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(
    tiny: Settings, reference: Any, place: Path
) -> None:
    watch, stop = stopping_after(45)
    with pytest.raises(Stopped):
        baseline.run(_settings(tiny, place / "run"), watch, stop)
    newest = checkpoint.steps(place / "run" / "checkpoints")[-1]
    weights = newest / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-10] ^= 1  # one bit
    weights.write_bytes(data)
    seen: list[str] = []
    baseline.run(
        _settings(tiny, place / "run", resume=True), lambda r: seen.append(getattr(r, "text", ""))
    )
    assert any("damaged and was set aside" in text for text in seen)
    assert not differences(final_state(place / "run"), reference[1])


def test_when_no_checkpoint_is_whole_nothing_is_restarted_silently(
    tiny: Settings, place: Path
) -> None:
    watch, stop = stopping_after(30)
    with pytest.raises(Stopped):
        baseline.run(_settings(tiny, place / "run"), watch, stop)
    for folder in checkpoint.steps(place / "run" / "checkpoints"):
        (folder / "state.json").write_text("{}")
    with pytest.raises(InputError, match=r"no checkpoint .* is whole"):
        baseline.run(_settings(tiny, place / "run", resume=True))


def test_settings_that_were_edited_are_refused(tiny: Settings, place: Path) -> None:
    watch, stop = stopping_after(5)
    with pytest.raises(Stopped):
        baseline.run(_settings(tiny, place / "run"), watch, stop)
    config = place / "run" / "config.toml"
    config.write_text(config.read_text().replace("dropout = 0.1", "dropout = 0.2"))
    with pytest.raises(InputError, match="not what the run was begun with"):
        baseline.run(_settings(tiny, place / "run", resume=True))


def test_another_corpus_is_refused(tiny: Settings, place: Path, corpus_folder: Path) -> None:
    from effcli.engine.data.prepare import prepare
    from effcli.settings.prepare import PrepareSettings

    watch, stop = stopping_after(5)
    with pytest.raises(Stopped):
        baseline.run(_settings(tiny, place / "run"), watch, stop)
    prepare(PrepareSettings(sources=("grammar:2",), max_tokens=60_000, out=place / "other"))
    settings = _settings(tiny, place / "run", resume=True)
    with pytest.raises(InputError, match="another corpus"):
        baseline.run(settings.model_copy(update={"data": str(place / "other")}))
