"""`eff bench speed`: parts that are kept, ratios that fit, what is refused, no child left."""

import json
import multiprocessing as mp
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reliability.harness import command, fork, kill
from test_baseline import Eff
from test_bench import _finished

from effcli.engine.bench import preparing, throughput, workers
from effcli.engine.bench.speed import Speed
from effcli.engine.bench.throughput import Race
from effcli.engine.bench.work import home
from effcli.engine.bench.workers import Worker
from effcli.engine.device import Device
from effcli.engine.records import CellDone, Record, never
from effcli.errors import InputError, Stopped
from effcli.methods import bench
from effcli.settings.bench import BenchSettings
from effcli.settings.speed import SpeedSuite
from effcli.settings.suite import parse_suite, read_suite
from effcli.settings.train import DeviceSettings

SUITE = """
kind = "speed"
title = "for tests"

[settings]
"model.layers" = 1
"device.threads" = 1
"device.compile" = "off"

[tiers.smoke]
shapes = ["grain", "stone"]
rounds = 30
seconds = 0
prepare = { bytes = 1_000_000, rounds = 1 }

[shapes.grain]
preset = "nano"
vocabulary = 256
sequences = 4
settings = { "model.width" = 32, "model.context" = 32 }

[shapes.stone]
preset = "nano"
vocabulary = 4096
sequences = 128

[arms.plain]
settings = { recipe = "textbook", "device.precision" = "float32" }

[arms.other]
settings = { "model.width" = 64 }
"""


@pytest.fixture
def suite(place: Path) -> Path:
    """Three parts; the second one takes a minute."""
    path = place / "mine.toml"
    path.write_text(SUITE)
    return path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts whose turn it was; nothing is really measured."""
    parts: list[str] = []

    def steps(race: Race, *_: Any) -> dict[str, Any]:
        parts.append(race.name)
        row = {"tokens_per_second": 1.0, "times_reference": 1.0, "spread": [1.0, 1.0]}
        row |= {"utilization": 0.1, "first_step_seconds": 1.0, "memory_bytes": 1}
        rows = {"reference": row, **dict.fromkeys(race.arms, row)}
        return {"tokens_per_step": 1, "precision": "float32", "peak": 1e12, "rows": rows}

    def text(*_: Any) -> dict[str, Any]:
        parts.append("prepare")
        return {"bytes": 1, "documents": 1, "seconds": {"copy": 1.0}}

    monkeypatch.setattr(throughput, "measure", steps)
    monkeypatch.setattr(preparing, "measure", text)
    return parts


def _settings(suite: Path | str, **flags: Any) -> BenchSettings:
    return BenchSettings(**{"words": (str(suite),), "tier": "smoke", **flags})


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that have everything imported already; a new one takes seconds for that."""
    fork = mp.get_context("fork")
    monkeypatch.setattr(workers.mp, "get_context", lambda _: fork)


@pytest.mark.usefixtures("draws", "forked")
def test_the_smoke_tier_runs_whole_and_measures_nothing_twice(
    place: Path, eff: Eff, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = eff("bench", "speed", "--tier", "smoke", "--json")
    assert code == 0, err
    document = json.loads(out)
    kind = {"schema": 1, "command": "bench", "suite": "speed", "kind": "speed"}
    assert document.items() >= (kind | {"status": "complete", "failed": []}).items()
    (shape,) = document["shapes"].values()
    assert list(shape["rows"]) == ["reference", "modern", "textbook-float32"]
    plain = shape["rows"]["reference"]
    assert (plain["times_reference"], plain["spread"]) == (1.0, [1.0, 1.0])
    for row in shape["rows"].values():
        ratio = row["tokens_per_second"] / plain["tokens_per_second"]
        assert row["times_reference"] == pytest.approx(ratio)  # there is one round
        assert 0 < row["utilization"] < 2
        assert row["memory_bytes"] > 2**26
    seconds = document["prepare"]["seconds"]
    assert [way.split()[0] for way in seconds] == ["copy", "eff", "tiktoken", "eff"]
    assert min(seconds.values()) > 0
    kept = {path.name for path in (home() / "speed-smoke").iterdir()}
    assert kept == {"bench.json", "bench.md", "bench.html"}
    assert not [path for path in home().iterdir() if path.name.startswith(".") and path.is_dir()]
    assert not Path("data").exists()  # no corpus of the user's is touched

    monkeypatch.setattr(throughput, "measure", _must_not_run)
    monkeypatch.setattr(preparing, "measure", _must_not_run)
    for words in (("speed",), ("show", "speed")):
        again = json.loads(eff("bench", *words, "--tier", "smoke", "--json")[1])
        assert (again["shapes"], again["prepare"]) == (document["shapes"], document["prepare"])
    _, shown, _ = eff("bench", "show", "speed", "--tier", "smoke")
    assert "textbook-float32" in shown
    assert "× tiktoken" in shown


def _must_not_run(*_: Any) -> None:
    raise AssertionError("everything was done already")


def test_a_part_is_named_by_all_that_its_ratios_depend_on(suite: Path, measured: list[str]) -> None:
    bench.run(_settings(suite))
    assert measured == ["grain", "stone", "prepare"]
    bench.run(_settings(suite))
    bench.run(_settings(suite, arms=("prepare",)))
    assert len(measured) == 3
    bench.run(_settings(suite, arms=("plain",)))  # other arms, other turns
    assert measured[3:] == ["grain", "stone"]
    suite.write_text(SUITE.replace("sequences = 128", "sequences = 64"))
    bench.run(_settings(suite))
    assert measured[5:] == ["stone"]


def test_a_signal_keeps_what_is_done(suite: Path, measured: list[str]) -> None:
    done: list[Record] = []
    with pytest.raises(Stopped) as caught:
        bench.run(
            _settings(suite),
            lambda record: done.append(record) if isinstance(record, CellDone) else None,
            lambda: signal.SIGTERM if done else None,
        )
    assert caught.value.code == 143
    shown = bench.run(_settings(suite, words=("show", str(suite))))
    assert (shown["status"], list(shown["shapes"])) == ("partial", ["grain"])
    assert shown["notes"] == ["stone, prepare: not measured yet."]
    assert bench.run(_settings(suite))["status"] == "complete"
    assert measured == ["grain", "stone", "prepare"]


def test_a_part_that_fails_is_tried_once_more_and_then_reported(
    suite: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = throughput.measure, []

    def failing(race: Race, *rest: Any) -> dict[str, Any]:
        if race.name == "grain":
            calls.append(race.name)
            raise RuntimeError("no such luck")
        return original(race, *rest)

    monkeypatch.setattr(throughput, "measure", failing)
    document = bench.run(_settings(suite))
    assert document["failed"] == [{"part": "grain", "error": "RuntimeError: no such luck"}]
    assert (len(calls), measured) == (2, ["stone", "prepare"])


def test_no_part_begins_that_would_end_too_late(suite: Path, measured: list[str]) -> None:
    with pytest.raises(InputError, match=r"takes about .* more than max_minutes"):
        bench.run(_settings(suite, max_minutes=1e-9))
    assert not measured


def test_the_plan_names_every_part(suite: Path, measured: list[str], eff: Eff) -> None:
    line = ("bench", str(suite), "--tier", "smoke")
    bench.run(_settings(suite, arms=("prepare",)))
    plan = json.loads(eff(*line, "--dry-run", "--json")[1])
    rows = [(row["part"], row["is_done"], row["seconds"] > 0) for row in plan["parts"]]
    assert rows == [("grain", False, True), ("stone", False, True), ("prepare", True, False)]
    assert "stone" in eff(*line, "--dry-run")[1]
    assert measured == ["prepare"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("speed", "--seeds", "3"), "seeds has no effect on speed"),
        (("speed", "--data", "corpus"), "data has no effect on speed"),
        (("speed", "--csv", "x.csv"), "csv has an effect with `export` only"),
        (("speed", "--arms", "modrn"), "there is no arm 'modrn': textbook, modern"),
        (("speed", "--arms", "textbook"), "no shape of this tier has these arms"),
        (("show", "speed"), "nothing is known of speed"),
        (("show", "speed", "--max-minutes", "3"), "max_minutes has no effect"),
    ],
)
def test_a_flag_without_effect_is_refused(
    arguments: tuple[str, ...], message: str, eff: Eff
) -> None:
    code, out, err = eff("bench", *arguments, "--tier", "smoke")
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


def test_there_is_nothing_to_export(suite: Path, measured: list[str], eff: Eff) -> None:
    bench.run(_settings(suite))
    code, _, err = eff("bench", "export", str(suite), "--tier", "smoke")
    assert code == 2
    assert "export has no effect" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("rounds = 30", "rounds = 0"), "line 12: tiers.smoke.rounds: .*greater"),
        (("rounds = 30", "seeds = 5"), "line 12: tiers.smoke.seeds: there is no such field"),
        (('"stone"]', '"ston"]'), "line 11: .*no shape called 'ston' for tier 'smoke'"),
        (("[tiers.smoke]", "[tiers.large]"), "line 10: .*no tier called 'large'"),
        (("[arms.other]", "[arms.prepare]"), "no arm can be called 'prepare'"),
        (("[arms.other]", "[arms.other]\nis_tuned = true"), "line 31: .*no such field"),
        (('preset = "nano"', 'preset = "nan"'), "shape 'grain' has no preset"),
        (("sequences = 4\n", 'sequences = 4\narms = ["plan"]\n'), "no arm called 'plan'"),
        (('kind = "speed"', 'kind = "sped"'), "line 2: kind: .*should be 'loss'"),
        (('"model.width" = 64', '"model.wdth" = 64'), "arm other, shape grain: .*model.wdth"),
        (('"model.width" = 64', '"model.width" = 63'), "arm other, .*multiple of 2 heads"),
        (('title = "for tests"', "title = for"), "not valid TOML"),
    ],
)
def test_a_bad_suite_is_refused_before_anything_runs(
    change: tuple[str, str], message: str, suite: Path, measured: list[str], eff: Eff
) -> None:
    suite.write_text(SUITE.replace(*change))
    code, out, err = eff("bench", str(suite), "--tier", "smoke")
    assert (code, out) == (2, "")
    assert re.search(message, " ".join(err.split())), err
    assert not measured


@pytest.mark.parametrize("tier", ["smoke", "cpu", "cpu-long"])
def test_every_tier_of_the_shipped_suite_is_sound(tier: str) -> None:
    suite = read_suite("speed")
    assert isinstance(suite, SpeedSuite)
    speed = Speed(suite, BenchSettings(words=("speed",), tier=tier))
    assert speed.parts[-1].title == "prepare"
    assert len({part.id for part in speed.parts}) == len(speed.parts)


def test_a_suite_of_losses_may_say_so() -> None:
    text = 'kind = "loss"\ntitle = "x"\nreferences = ["a"]\n[tiers.cpu]\n[arms.a]\n'
    assert parse_suite(text, "x").kind == "loss"


def _broken() -> tuple[Device, Iterator[None]]:
    raise ValueError("not today")


def _gone() -> tuple[Device, Iterator[None]]:
    os._exit(7)


def _sleeping() -> tuple[Device, Iterator[None]]:
    def steps() -> Iterator[None]:
        while True:
            yield
            time.sleep(600)

    return Device(DeviceSettings(name="cpu", threads=1)), steps()


@pytest.mark.usefixtures("forked")
def test_a_process_that_fails_says_why_and_one_that_is_gone_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="ValueError: not today"):
        Worker(never, _broken)
    with pytest.raises(RuntimeError, match="ended with 7"):
        Worker(never, _gone)


@pytest.mark.usefixtures("forked")
def test_a_signal_ends_a_turn_at_once() -> None:
    asked: list[int] = []
    worker = Worker(lambda: signal.SIGINT if asked else None, _sleeping)
    asked.append(1)
    started = time.monotonic()
    with pytest.raises(Stopped):
        worker.turn()
    worker.kill()
    assert time.monotonic() - started < 30


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="tells processes by /proc")
def test_killed_it_loses_the_running_shape_at_most_and_leaves_no_process(
    suite: Path, place: Path, request: pytest.FixtureRequest
) -> None:
    line = ["bench", suite, "--tier", "smoke", "--arms", "plain,prepare", "--quiet"]
    child = fork(command(*line))  # whose workers are new processes, as they always are
    deadline = time.monotonic() + 120
    children: set[int] = set()
    while _finished(place) < 1 or len(children) < 3:
        assert _is_alive(child)
        assert time.monotonic() < deadline
        time.sleep(0.05)
        children = _children(child)
    assert kill(child)
    while left := {child for child in children if _is_alive(child)}:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    measured = request.getfixturevalue("measured")
    document = bench.run(_settings(suite, arms=("plain", "prepare")))
    assert measured == ["stone", "prepare"]
    assert document["status"] == "complete"
    assert "preset" in document["shapes"]["grain"]  # which the fixture's figures do not have


def _children(parent: int) -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.add(int(path.parent.name))
    return found


def _is_alive(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
