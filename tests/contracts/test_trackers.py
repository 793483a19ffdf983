"""Every tracker that is installed keeps what it is given, in the run's folder, and goes on."""

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from conftest import Settings

from effcli.catalog import TRACKERS
from effcli.engine.records import Evaluation, Notice, Step
from effcli.engine.runs.tracking import is_installed, tracked


def _step(index: int) -> Step:
    return Step(index, index / 10, 5.0 / index, 0.1, 1.0, index * 100, index * 1e9, index * 0.1)


def _feed(settings: Any, folder: Path, steps: range) -> None:
    told: list[Any] = []
    with tracked(settings, folder, told.append) as see:
        for index in steps:
            see(_step(index))
        see(Evaluation(steps[-1], 2.5, 0.75, 10, 100, 1e9, 1.0, 2.0))
    assert [record for record in told if isinstance(record, Notice)] == []


@pytest.fixture(params=list(TRACKERS))
def tracker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    missing = [module for module in TRACKERS.load(name).needs if not is_installed(module)]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for variable in [v for v in os.environ if v.startswith("TRACKIO_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr("effcli.engine.runs.tracking.CLOSING_SECONDS", 60.0)
    return name


def test_figures_are_kept_in_the_run_and_continued(
    tracker: str, tiny: Settings, place: Path
) -> None:
    folder = place / "run"
    folder.mkdir()
    settings = tiny(track=[tracker], out=folder)
    _feed(settings, folder, range(1, 6))
    before = [path for path in folder.rglob("*") if path.is_file()]
    assert before
    assert {path.name for path in place.iterdir()} == {"run"}
    _feed(settings, folder, range(4, 9))  # steps 4 and 5 are done again after a kill
    CHECKS[tracker](folder)


def _check_tensorboard(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == list(range(1, 9))
    assert losses[0].value == pytest.approx(5.0)
    assert events.Scalars("held_out/loss")[-1].step == 8


def _check_wandb(folder: Path) -> None:
    run = (folder / "wandb" / "run-id").read_text()
    logs = sorted((folder / "wandb").glob(f"offline-run-*-{run}/run-{run}.wandb"))
    assert len(logs) >= 1
    assert all(log.stat().st_size > 0 for log in logs)
    assert any(b"held_out/loss" in log.read_bytes() for log in logs)


def _check_trackio(folder: Path) -> None:
    (database,) = (folder / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics").fetchall()
    connection.close()
    assert {name for name, _, _ in rows} == {"run"}
    assert {step for _, step, _ in rows} == set(range(1, 9))
    assert any("held_out/loss" in json.loads(metrics) for _, _, metrics in rows)


CHECKS = {
    "tensorboard": _check_tensorboard,
    "trackio": _check_trackio,
    "wandb": _check_wandb,
}


def test_every_tracker_of_the_house_is_checked() -> None:
    assert set(CHECKS) <= set(TRACKERS)
    assert {"tensorboard", "trackio", "wandb"} == set(CHECKS)
