"""Trackers get the figures of a run, and nothing that they do reaches it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Settings

from effcli.catalog import TRACKERS
from effcli.engine.records import Notice, Saved, Step
from effcli.engine.runs import tracking
from effcli.engine.runs.compare import compare
from effcli.methods import baseline
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve

Eff = Callable[..., tuple[int, str, str]]
SETS = [part for assignment in TINY for part in ("--set", assignment)]
FAKES = """
import json, os, sys, time

class Fine:
    needs = ()

    def __init__(self, folder, config, first):
        (folder / "fake").mkdir(exist_ok=True)
        self.file = (folder / "fake" / "lines.jsonl").open("a")
        self.say("open", config["steps"], first)

    def say(self, *words):
        print(json.dumps(words), file=self.file, flush=True)

    def write(self, step, values):
        self.say(step, values)

    def close(self):
        self.say("close")

class Loud(Fine):
    def write(self, step, values):
        print("on stdout")
        print("on stderr", file=sys.stderr)
        os.system("echo from a shell")

class BadStart(Fine):
    def __init__(self, folder, config, first):
        raise RuntimeError("no \\x1b]52;c;AAAA\\x07 key\\nsecond line")

class BadWrite(Fine):
    def write(self, step, values):
        raise ValueError("cannot write")

class BadEnd(Fine):
    def close(self):
        raise ValueError("cannot close")

class Leaves(Fine):
    def write(self, step, values):
        sys.exit("left")

class Dies(Fine):
    def write(self, step, values):
        os._exit(3)

class HangsAtStart(Fine):
    def __init__(self, folder, config, first):
        time.sleep(3600)

class HangsAtWrite(Fine):
    def write(self, step, values):
        self.say(os.getpid())
        time.sleep(3600)

class HangsAtEnd(Fine):
    def close(self):
        time.sleep(3600)

class Absent(Fine):
    needs = ("no_such_module_at_all",)
"""


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("fakes")
    (folder / "fake_trackers.py").write_text(FAKES)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "fake_trackers", raising=False)
    for line in FAKES.splitlines():
        if line.startswith("class "):
            name = line.split()[1].partition("(")[0].rstrip(":")
            monkeypatch.setitem(TRACKERS._places, name, f"fake_trackers:{name}")


def _lines(folder: Path) -> list[Any]:
    text = (folder / "fake" / "lines.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def _notices(seen: list[Any]) -> list[str]:
    return [r.text for r in seen if isinstance(r, Notice) and "gets no more" in r.text]


def test_a_tracker_gets_what_the_records_say(tiny: Settings, place: Path) -> None:
    seen: list[Any] = []
    report = baseline.run(tiny(track=["Fine"], eval_every=3, out=place / "run"), seen.append)
    first, *lines, last = _lines(place / "run")
    assert first == ["open", 6, 0]
    assert last == ["close"]
    assert _notices(seen) == []
    losses = {r.index: r.loss for r in seen if isinstance(r, Step)}
    told = {step: values["train/loss"] for step, values in lines if "train/loss" in values}
    assert told == losses
    assert [step for step, values in lines if "held_out/loss" in values] == [0, 3, 6]
    assert lines[-1][1]["flops/train"] == report.flops["train"]
    assert all(isinstance(v, float | int) for _, values in lines for v in values.values())


def test_the_run_is_sealed_and_verifies(eff: Eff, tiny: Settings, place: Path) -> None:
    baseline.run(tiny(track=["Fine"], out=place / "run"))
    assert eff("verify", place / "run")[0] == 0
    (place / "run" / "fake" / "lines.jsonl").write_text("")
    assert eff("verify", place / "run")[0] == 0
    code, out, _ = eff("report", place / "run", "--json")
    assert (code, json.loads(out)["status"]) == (0, "complete")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("BadStart", "no \x1b]52;c;AAAA\x07 key"),
        ("BadWrite", "cannot write"),
        ("BadEnd", "cannot close"),
        ("Leaves", "left"),
        ("Dies", "its process ended with 3"),
    ],
)
def test_a_tracker_that_fails_is_told_once_and_stops_nothing(
    tiny: Settings, place: Path, name: str, why: str
) -> None:
    seen: list[Any] = []
    report = baseline.run(tiny(track=[name], out=place / "run"), seen.append)
    assert report.status == "complete"
    assert _notices(seen) == [f"{name} gets no more of this run, which goes on: {why}"]


def test_what_a_tracker_says_cannot_control_the_terminal(eff: Eff, corpus_folder: Path) -> None:
    flags = ["--data", corpus_folder, "--steps", "3", "--track", "BadStart", *SETS]
    code, out, err = eff("baseline", *flags)
    assert code == 0
    assert "␛]52" in err
    assert not set(out + err) & {"\x1b", "\x07"}


def test_a_tracker_that_talks_is_not_heard(eff: Eff, corpus_folder: Path) -> None:
    flags = ["--data", corpus_folder, "--steps", "3", "--track", "Loud", *SETS, "--json"]
    code, out, err = eff("baseline", *flags)
    assert code == 0
    assert json.loads(out)["steps"] == 3
    assert "on std" not in out + err
    assert "from a shell" not in out + err


@pytest.mark.parametrize("name", ["HangsAtStart", "HangsAtWrite", "HangsAtEnd"])
def test_a_tracker_that_hangs_costs_seconds_at_the_end(
    tiny: Settings, place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(tracking, "CLOSING_SECONDS", 1.0)
    plain: list[Any] = []
    baseline.run(tiny(out=place / "plain"), plain.append)
    seen: list[Any] = []
    started = time.monotonic()
    report = baseline.run(tiny(track=[name], out=place / "run"), seen.append)
    assert time.monotonic() - started < 10
    assert report.status == "complete"
    assert _notices(seen) == [
        f"{name} gets no more of this run, which goes on: no answer within 1 seconds"
    ]
    told = [[r.loss for r in all_ if isinstance(r, Step)] for all_ in (plain, seen)]
    assert told[0] == told[1]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_no_process_is_left_when_a_run_is_killed(
    place: Path, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import json, os, sys\n"
        "sys.path[:] = json.loads(sys.argv[1])\n"
        "from effcli.engine.runs import trackers\n"
        "trackers.GRACE_SECONDS = 0.1\n"
        "trackers.serve()\n"
    )
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys, time\nsubprocess.Popen("
            f"[sys.executable, '-c', {code!r}, sys.argv[1]], stdin=0)\ntime.sleep(100)",
            json.dumps(sys.path),
        ],
        stdin=subprocess.PIPE,
    )
    assert child.stdin is not None
    about = {"place": "fake_trackers:HangsAtWrite", "folder": str(place), "config": {"steps": 1}}
    child.stdin.write(json.dumps(about).encode() + b'\n[1, {"a": 1.0}]\n')
    child.stdin.flush()
    path = place / "fake" / "lines.jsonl"
    _wait(lambda: path.exists() and len(path.read_text().splitlines()) == 2)
    process = Path(f"/proc/{_lines(place)[1][0]}")
    assert process.exists()
    child.kill()
    child.wait()
    child.stdin.close()
    _wait(lambda: not process.exists() or "Z" in (process / "stat").read_text().split()[2])


def _wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not until():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_does_not_fit_is_dropped_at_once(
    tiny: Settings, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "MOST_WAITING", 50)
    monkeypatch.setattr(tracking, "CLOSING_SECONDS", 0.5)
    seen: list[Any] = []
    settings = tiny(track=["HangsAtStart"], out=place / "run")
    with tracking.tracked(settings, place, seen.append) as see:
        started = time.monotonic()
        for index in range(20_000):  # far more than a pipe holds
            see(Step(index, 0.5, 1.0, 0.1, 1.0, 1, 1.0, 1.0))
        assert time.monotonic() - started < 5
    assert len([r for r in seen if isinstance(r, Step)]) == 20_000
    assert _notices(seen) == [
        "HangsAtStart gets no more of this run, which goes on: 50 records wait already"
    ]


def test_nothing_is_started_for_a_run_that_has_ended(tiny: Settings, place: Path) -> None:
    baseline.run(tiny(out=place / "run"))
    baseline.run(tiny(track=["Fine"], out=place / "run", resume=True))
    assert not (place / "run" / "fake").exists()


def test_only_the_first_process_tracks(
    tiny: Settings, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    seen: list[Any] = []
    with tracking.tracked(tiny(track=["Fine"], out=place), place, seen.append) as see:
        see(Step(1, 0.5, 1.0, 0.1, 1.0, 1, 1.0, 1.0))
    assert len(seen) == 1
    assert not (place / "fake").exists()


def test_records_without_figures_are_not_sent() -> None:
    assert tracking.figures(Saved(3)) is None
    assert tracking.figures(Notice("x")) is None


def test_a_resumed_run_goes_on_and_may_change_its_trackers(
    eff: Eff, corpus_folder: Path, place: Path, tiny: Settings
) -> None:
    import signal

    from effcli.errors import Stopped

    seen: list[Any] = []
    settings = tiny(track=["Fine"], steps=8, save_every=2, out=place / "run")
    with pytest.raises(Stopped):
        baseline.run(settings, seen.append, lambda: signal.SIGINT if len(seen) > 9 else None)
    steps = [line[0] for line in _lines(place / "run")]
    assert steps[-1] == "close"
    assert eff("baseline", "--out", "run", "--resume")[0] == 0
    lines = _lines(place / "run")
    second = next(i for i, line in enumerate(lines) if i and line[0] == "open")
    assert lines[second][2] > 0
    assert lines[-1] == ["close"]
    done = {line[0] for line in lines if isinstance(line[0], int)}
    assert done == set(range(1, 9))
    assert eff("baseline", "--out", "run", "--resume", "--track", "Loud")[0] == 0


def test_a_tracked_run_is_the_same_method(tiny: Settings, place: Path) -> None:
    baseline.run(tiny(out=place / "a"))
    baseline.run(tiny(track=["Fine"], steps=9, out=place / "b"))
    rows = compare([place / "a", place / "b"])["runs"]
    assert [row["is_reference"] for row in rows] == [True, True]


def test_trials_are_not_tracked(tiny: Settings, place: Path) -> None:
    baseline.run(tiny(track=["Fine"], tune=2, out=place / "run"))
    assert (place / "run" / "fake").exists()
    assert not list((place / "run" / "tuning").rglob("fake"))


def test_a_tracker_that_is_not_installed_is_an_error_before_anything(
    eff: Eff, corpus_folder: Path, place: Path
) -> None:
    for more in ([], ["--dry-run"]):
        flags = ["--data", corpus_folder, "--track", "Absent", *SETS, *more]
        code, out, err = eff("baseline", *flags)
        assert (code, out) == (2, "")
        assert "track: Absent is not installed" in err
        assert "pip install 'effcli[Absent]'" in err
    assert list(place.iterdir()) == []


def test_names_of_trackers_are_checked(eff: Eff) -> None:
    code, _, err = eff("baseline", "--track", "wandbb")
    assert code == 2
    assert "there is no tracker called 'wandbb'" in err
    assert "did you mean 'wandb'?" in err


@pytest.mark.parametrize("given", ["track=Fine,Loud", "track=['Fine','Loud','Fine']"])
def test_several_trackers_can_be_set(given: str) -> None:
    assert resolve(BaselineSettings, {}, [given]).settings.track == ("Fine", "Loud")


def test_a_folder_of_the_same_name_is_no_installation(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(place)
    (place / "left_by_a_tracker").mkdir()
    assert not tracking.is_installed("left_by_a_tracker")
    assert tracking.is_installed("json")


def test_offline_reaches_trackers_and_leaves_files_to_talk_through(place: Path) -> None:
    code = (
        "import os, socket\n"
        "from effcli.offline import go_offline, is_offline\n"
        "assert not is_offline()\n"
        "go_offline()\n"
        "assert is_offline() and os.environ['WANDB_MODE'] == 'offline'\n"
        "assert 'TRACKIO_SPACE_ID' not in os.environ\n"
        "a, b = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)\n"
        "a.bind('s'); a.listen(); b.connect('s')\n"
        "try:\n    socket.create_connection(('127.0.0.1', 9))\n"
        "except OSError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "TRACKIO_SPACE_ID": "me/space", "WANDB_MODE": "online"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "--offline refuses connections\n"
