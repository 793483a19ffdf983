"""`eff bench`, whole: pairs, trunks, kills, several processes, what is refused."""

import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_baseline import Eff

from effcli.app import run
from effcli.engine.bench.matrix import Cell, Matrix
from effcli.engine.bench.store import Store
from effcli.engine.bench.work import DATABASE, Work, home
from effcli.engine.data.corpus import Corpus
from effcli.engine.records import CellDone, Record
from effcli.engine.runs.report import report_of
from effcli.engine.session import Session
from effcli.errors import InputError, Stopped
from effcli.methods import baseline, bench
from effcli.settings.bench import BenchSettings
from effcli.settings.suite import Suite, parse_suite, read_suite, shipped

SUITE = """
title = "for tests"
references = ["plain"]

[settings]
"model.layers" = 1
"model.width" = 32
"model.heads" = 2
"model.context" = 32
"model.pair_rows" = 64
"batch.sequences" = 4
"evaluation.tokens" = 640
"evaluation.floors" = false
"device.threads" = 1
"device.precision" = "float32"
steps = 20
eval_every = 5

[tiers.smoke]
seeds = 2
trials = 2
shares = [0.5, 1.0]

[arms.plain]
about = "as it is"

[arms.adamw]
settings = { optim.name = "adamw", optim.lr = 3e-3 }
"""


@pytest.fixture
def suite(place: Path) -> Path:
    """A suite that takes a second or two."""
    path = place / "mine.toml"
    path.write_text(SUITE)
    return path


def _settings(suite: Path, corpus_folder: Path, **flags: Any) -> BenchSettings:
    given = {"words": (str(suite),), "tier": "smoke", "data": str(corpus_folder), **flags}
    return BenchSettings(**given)


def _figures(document: dict[str, Any]) -> Any:
    """Everything that a clock has no part in."""
    timed = ("seconds", "joules", "accounts", "curve", "peak_memory_bytes", "energy_source")
    cells = [{k: v for k, v in cell.items() if k not in timed} for cell in document["cells"]]
    looks = [[[p[0], p[1], p[4]] for p in cell["curve"]] for cell in document["cells"]]
    counted = ("tokens", "unique_tokens", "flops")
    gains = [row for row in document["multipliers"] if row["cost"] in counted]
    tunings = [arm["tuning"] and arm["tuning"]["losses"] for arm in document["arms"]]
    return cells, looks, gains, tunings, document["laws"]


def test_a_suite_runs_to_its_end_and_never_runs_a_cell_twice(
    suite: Path, corpus_folder: Path
) -> None:
    seen: list[Record] = []
    document = bench.run(_settings(suite, corpus_folder), seen.append)
    done = [record for record in seen if isinstance(record, CellDone)]
    assert document["status"] == "complete"
    assert len(done) == 2 * 2 + 2 * 2 * 2  # trials of two arms; two seeds, two budgets
    assert [record.done for record in done] == list(range(1, len(done) + 1))
    assert done[-1].seconds_left == 0
    assert {row["arm"] for row in document["multipliers"]} == {"adamw"}
    assert all(row["verdict"] in ("inconclusive", "beyond") for row in document["multipliers"])
    again: list[Record] = []
    assert _figures(bench.run(_settings(suite, corpus_folder), again.append)) == _figures(document)
    assert not again


def test_the_best_trials_are_tried_again_and_the_best_of_those_is_chosen(
    suite: Path, corpus_folder: Path
) -> None:
    text = SUITE.replace("trials = 2", "trials = 4\nfinals = 2").replace("seeds = 2", "seeds = 1")
    suite.write_text(text)
    seen: list[Record] = []
    document = bench.run(_settings(suite, corpus_folder), seen.append)
    done = [record for record in seen if isinstance(record, CellDone)]
    assert len(done) == 2 * (4 + 2 + 2)
    assert [record.done for record in done] == list(range(1, len(done) + 1))
    matrix = Matrix(read_suite(str(suite)), "smoke", str(corpus_folder), "hash")
    for arm in document["arms"]:
        tuning = arm["tuning"]
        trials, finals = tuning["losses"][:4], tuning["losses"][4:]
        assert max(finals) < min(trials)  # which have read a quarter as much
        best = sorted(range(4), key=trials.__getitem__)[:2]
        chosen = best[finals.index(min(finals))]
        assert tuning["chosen"] == matrix.tried(arm["name"])[chosen]
        assert tuning["trials"] == 6


def test_figures_are_those_of_the_same_command_by_hand(
    suite: Path, corpus_folder: Path, place: Path
) -> None:
    document = bench.run(_settings(suite, corpus_folder))
    for cell in document["cells"]:
        config = home() / cell["id"] / "config.toml"
        by_hand = place / f"by-hand-{cell['id']}"
        arguments = ["--config", str(config), "--out", str(by_hand), "--quiet"]
        assert run(["baseline", *arguments, "--data", str(corpus_folder)]) == 0
        report = report_of(by_hand)
        assert report.held_out is not None
        assert report.held_out.loss == cell["loss"]
        assert (report.steps, report.tokens, report.cost_flops) == (
            cell["steps"],
            cell["tokens"],
            cell["flops"],
        )
        told = [json.loads(line) for line in (by_hand / "records.jsonl").read_text().splitlines()]
        kept = (home() / cell["id"] / "records.jsonl").read_text().splitlines()
        assert _steps(told) == _steps([json.loads(line) for line in kept])


def _steps(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    timed = ("seconds", "joules")
    return [
        {k: v for k, v in row.items() if k not in timed}
        for row in rows
        if row["kind"] in ("step", "evaluation")
    ]


def test_a_longer_budget_goes_on_where_the_shorter_one_decayed(
    suite: Path, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def counted(settings: Any, watch: Any, stop: Any) -> Any:
        before = len(steps)

        def look(record: Record) -> None:
            if record.kind == "step":
                steps.append(1)
            watch(record)

        report = ORIGINAL(settings, look, stop)
        taken.append((settings.steps, len(steps) - before))
        return report

    ORIGINAL, taken = baseline.run, []
    monkeypatch.setattr(baseline, "run", counted)
    bench.run(_settings(suite, corpus_folder, arms=("plain",), seeds=1))
    # The sixth step of ten begins at the very edge of the plain, so six are shared.
    assert [pair for pair in taken if pair[0] in (10, 20)] == [(10, 10), (20, 14)]


def test_arms_of_one_seed_read_the_same_text_from_the_same_start(
    suite: Path, corpus_folder: Path
) -> None:
    store = Store(home() / DATABASE)
    work = Work(_settings(suite, corpus_folder), store)
    first = {}
    for arm in work.matrix.ordered():
        settings = work.matrix.runs(arm, 1)[0].settings
        with Session("baseline", settings) as session:
            batch = session.parts.batches.draw(0.0)
            weights = session.parts.model.state_dict()
        first[arm] = (batch.inputs.tolist(), session.held_out.tokens.tolist(), weights)
    store.close()
    plain, adamw = first["plain"], first["adamw"]
    assert plain[:2] == adamw[:2]
    common = plain[2].keys() & adamw[2].keys()
    assert common
    assert all(plain[2][name].equal(adamw[2][name]) for name in common)


def _start(suite: Path, corpus_folder: Path, *more: str) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "effcli", "bench", str(suite), "--tier", "smoke", "--quiet"]
    line += ["--data", str(corpus_folder), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL)


def _finished(place: Path) -> int:
    path = place / "runs" / "bench" / DATABASE
    if not path.exists():
        return 0
    try:
        with sqlite3.connect(path) as database:
            return int(database.execute("select count(result) from cells").fetchone()[0])
    except sqlite3.Error:
        return 0


def test_killed_and_shared_between_processes_it_gives_the_identical_table(
    suite: Path, corpus_folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench.run(_settings(suite, corpus_folder))
    other = place / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    process = _start(suite, corpus_folder)
    deadline = time.monotonic() + 120
    while _finished(other) < 5 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _finished(other) < 12
    for process in [_start(suite, corpus_folder), _start(suite, corpus_folder)]:
        assert process.wait(timeout=300) == 0
    monkeypatch.setattr(baseline, "run", _must_not_run)
    assert _figures(bench.run(_settings(suite, corpus_folder))) == _figures(whole)


def _must_not_run(*_: Any) -> None:
    raise AssertionError("everything was done already")


def test_a_signal_keeps_what_is_done(suite: Path, corpus_folder: Path) -> None:
    done: list[Record] = []

    def stop() -> int | None:
        return signal.SIGTERM if len(done) >= 3 else None

    def watch(record: Record) -> None:
        if isinstance(record, CellDone):
            done.append(record)

    with pytest.raises(Stopped) as caught:
        bench.run(_settings(suite, corpus_folder), watch, stop)
    assert caught.value.code == 143
    shown = bench.run(_settings(suite, corpus_folder, words=("show", str(suite))))
    assert shown["status"] == "partial"
    assert bench.run(_settings(suite, corpus_folder))["status"] == "complete"


def test_a_failed_cell_is_tried_once_more_and_then_reported(
    suite: Path, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = baseline.run, []

    def failing(settings: Any, watch: Any, stop: Any) -> Any:
        if settings.seed == 1 and settings.optim.name == "adamw":
            calls.append(settings.steps)
            raise RuntimeError("no such luck")
        return original(settings, watch, stop)

    monkeypatch.setattr(baseline, "run", failing)
    document = bench.run(_settings(suite, corpus_folder))
    failed = [cell for cell in document["cells"] if cell["status"] == "failed"]
    assert [(cell["arm"], cell["seed"], cell["share"]) for cell in failed] == [
        ("adamw", 1, 0.5),
        ("adamw", 1, 1.0),
    ]
    assert len(calls) == 4
    assert "no such luck" in failed[0]["error"]
    assert all(len(row["values"]) == 1 for row in document["multipliers"])


def test_what_the_machine_lacks_is_no_fault_of_a_cell(
    suite: Path, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = baseline.run

    def full(settings: Any, watch: Any, stop: Any) -> Any:
        raise OSError(errno.ENOSPC, "no space left", "somewhere")

    monkeypatch.setattr(baseline, "run", full)
    with pytest.raises(OSError, match="no space"):
        bench.run(_settings(suite, corpus_folder))
    monkeypatch.setattr(baseline, "run", original)
    assert bench.run(_settings(suite, corpus_folder))["status"] == "complete"


def test_what_is_known_can_be_shown_while_it_runs(suite: Path, corpus_folder: Path) -> None:
    shown: list[dict[str, Any]] = []

    def watch(record: Record) -> None:
        if isinstance(record, CellDone) and record.done == 6:
            for words in (("show", str(suite)), ("show", f"./{suite.name}")):
                shown.append(bench.run(_settings(suite, corpus_folder, words=words)))

    bench.run(_settings(suite, corpus_folder), watch)
    assert [document["status"] for document in shown] == ["partial", "partial"]
    assert any(cell["status"] == "complete" for cell in shown[0]["cells"])


def test_a_diverged_cell_has_costs_and_no_loss(suite: Path, corpus_folder: Path) -> None:
    wild = "\n[arms.wild]\nis_tuned = false\nsettings = { optim.lr = 1e30, optim.clip = 0.0 }\n"
    suite.write_text(SUITE + wild)
    document = bench.run(_settings(suite, corpus_folder, arms=("plain", "wild"), seeds=1))
    cells = [cell for cell in document["cells"] if cell["arm"] == "wild"]
    assert {cell["status"] for cell in cells} == {"diverged"}
    assert all(cell["loss"] is None and cell["flops"] > 0 for cell in cells)


def test_no_cell_begins_that_would_end_too_late(suite: Path, corpus_folder: Path) -> None:
    document = bench.run(_settings(suite, corpus_folder, max_minutes=0.002))
    assert document["status"] == "partial"
    with pytest.raises(InputError, match=r"takes about .* more than max_minutes"):
        bench.run(_settings(suite, corpus_folder, max_minutes=1e-9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('references = ["plain"]', 'references = ["plan"]'), "line 3: .*no arm called 'plan'"),
        (("[arms.adamw]", "[arms.adamw]\nsettngs = {}"), "line 28: .*settngs: there is no such"),
        (("optim.lr = 3e-3", "optim.rl = 3e-3"), "arm adamw: there is no setting.*optim.rl"),
        (("optim.lr = 3e-3", "optim.lr = -1"), "arm adamw: optim.lr: should be greater"),
        (("seeds = 2", "seeds = 0"), "line 20: tiers.smoke.seeds: .*greater"),
        (("steps = 20", "minutes = 1"), "minutes are no budget"),
        (("[tiers.smoke]", "[tiers.large]"), "no tier called 'large'"),
        (("[arms.plain]", '[arms.plain]\ncommand = "bake"'), "unknown command 'bake'"),
        (('title = "for tests"', 'title = "x"\ntuning_seed = 1'), "seed 1 is for tuning and"),
        (("optim.lr = 3e-3", "optim.lr = 3e-3, model.context = 64"), "no pairs"),
        (('title = "for tests"', "title = for"), "not valid TOML"),
        (
            ("[arms.plain]", '[arms.plain]\nis_tuned = false\nknob = {name="a",low=0,high=1}'),
            "knob of arm 'plain' has no effect",
        ),
        (("steps = 20", 'steps = 20\ndata = "other"'), "suite: data is decided by the suite"),
        (("optim.lr = 3e-3", "optim.lr = 3e-3, tune = 4"), "arm adamw: tune is decided by"),
        (("shares = [0.5, 1.0]", "shares = [0.5, 0.5]"), "line 22: .*stands there twice"),
        (("shares = [0.5, 1.0]", "shares = []"), "line 22: tiers.smoke.shares"),
        (("seeds = 2", "seeds = 41"), "less than or equal to 40"),
        (("trials = 2", "trials = 2\nfinals = 1"), "finals: some of the trials"),
        (("references", "include = 5\nreferences"), "line 3: include: .*valid"),
        (("references", 'include = ["none"]\nreferences'), "no shipped suite 'none'"),
        (("[arms.plain]", '[arms.plain]\nknob = {name="steps",low=1,high=9}'), "steps is no knob"),
        (
            ("[arms.plain]", '[arms.plain]\nknob = {name="model.context",low=16,high=64}'),
            "a trial of plain.*no pairs",
        ),
    ],
)
def test_a_bad_suite_is_refused_before_anything_runs(
    change: tuple[str, str], message: str, suite: Path, corpus_folder: Path, eff: Eff
) -> None:
    suite.write_text(SUITE.replace(*change))
    line = ("bench", str(suite), "--tier", "smoke", "--data", str(corpus_folder))
    code, out, err = eff(*line)
    assert code == 2
    assert out == ""
    assert re.search(message, " ".join(err.split())), err
    assert not list(home().glob("*/config.toml"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bench", "bselines"), "did you mean 'baselines'"),
        (("bench", "draw", "baselines"), "show|export"),
        (("bench", "show", "baselines"), "nothing is known of baselines"),
        (("bench", "show", "baselines", "--seeds", "3"), "seeds has no effect"),
        (("bench", "show", "baselines", "--arms", "modern"), "arms has no effect"),
        (("bench", "baselines", "--csv", "x.csv"), "csv has an effect with `export` only"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(
    arguments: tuple[str, ...], message: str, corpus_folder: Path, eff: Eff
) -> None:
    code, _, err = eff(*arguments, "--data", str(corpus_folder))
    assert code == 2
    assert message in " ".join(err.split())


def test_arms_are_chosen_by_name(suite: Path, corpus_folder: Path, eff: Eff) -> None:
    line = ("bench", str(suite), "--tier", "smoke", "--data", str(corpus_folder), "--dry-run")
    code, out, _ = eff(*line, "--arms", "plain", "--json")
    assert code == 0
    plan = json.loads(out)
    assert {cell["arm"] for cell in plan["cells"]} == {"plain"}
    assert plan["flops"] == pytest.approx(sum(cell["flops"] for cell in plan["cells"]))
    assert eff(*line, "--arms", "plan")[0] == 2
    assert eff(*line, "--arms", "adamw")[0] == 2  # no reference is left
    assert not list(home().glob("*/config.toml"))


def test_the_plan_foresees_the_flops_of_every_cell(suite: Path, corpus_folder: Path) -> None:
    settings = _settings(suite, corpus_folder)
    plan = {cell["id"]: cell for cell in bench.plan_bench(settings)["cells"]}
    document = bench.run(settings)
    store = Store(home() / DATABASE)
    step = Work(settings, store).costs.step
    for cell in document["cells"]:
        if cell["id"] in plan:  # others have settings that only the trials could tell
            whole = plan[cell["id"]]["flops"]
            taken_over = plan[cell["id"]]["shared_steps"] * step(_cell(settings, store, cell)).flops
            assert whole + taken_over == pytest.approx(cell["flops"])
    store.close()


def _cell(settings: BenchSettings, store: Store, row: dict[str, Any]) -> Any:
    found: list[Cell] = [cell for cell, _ in Work(settings, store).cells()]
    return next(cell.settings for cell in found if cell.id == row["id"])


def test_a_damaged_database_is_one_line(suite: Path, corpus_folder: Path, eff: Eff) -> None:
    home().mkdir(parents=True)
    (home() / DATABASE).write_bytes(b"no database" * 100)
    code, _, err = eff("bench", str(suite), "--tier", "smoke", "--data", str(corpus_folder))
    assert code == 2
    assert "is damaged" in err


@pytest.mark.parametrize(
    "name", [name for name in shipped() if isinstance(read_suite(name), Suite)]
)
def test_every_shipped_suite_is_sound(name: str, corpus: Corpus) -> None:
    suite = read_suite(name)
    for tier in suite.tiers:
        matrix = Matrix(suite, tier, str(corpus.folder), corpus.hash)
        for arm in matrix.ordered():
            for cell in (*matrix.trials(arm), *matrix.runs(arm, 0)):
                assert cell.settings.seed in (0, suite.tuning_seed)


METHODS = [name for name in shipped() if name.startswith(("aql", "distill", "qllm"))]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("tier", ["smoke", "cpu"])
def test_every_suite_of_methods_can_be_planned(
    corpus_folder: Path, eff: Eff, name: str, tier: str
) -> None:
    line = ("bench", name, "--tier", tier, "--data", str(corpus_folder), "--dry-run", "--json")
    code, out, err = eff(*line)
    assert code == 0, err
    assert {cell["arm"] for cell in json.loads(out)["cells"]} == set(read_suite(name).arms)


def test_an_arm_that_chooses_is_compared_like_any_other(corpus_folder: Path, eff: Eff) -> None:
    line = ("bench", "aql-clean", "--tier", "smoke", "--data", str(corpus_folder))
    code, out, err = eff(*line, "--arms", "random,auto,both", "--json", "--quiet")
    assert code == 0, err
    document = json.loads(out)
    assert {cell["status"] for cell in document["cells"]} == {"complete"}
    assert all(cell["accounts"]["flops"]["select"] > 0 for cell in document["cells"])


def test_a_phase_model_is_compared_with_its_gpt(corpus_folder: Path, eff: Eff) -> None:
    line = ("bench", "qllm", "--tier", "smoke", "--data", str(corpus_folder))
    code, out, err = eff(*line, "--arms", "gpt,hybrid", "--json", "--quiet")
    assert code == 0, err
    sizes = {cell["arm"]: cell["parameters"] for cell in json.loads(out)["cells"]}
    assert sizes["hybrid"] == pytest.approx(sizes["gpt"], rel=0.01)


def test_what_a_run_spent_before_it_grew_is_less(corpus_folder: Path, eff: Eff) -> None:
    line = ("bench", "qllm-growth", "--tier", "smoke", "--data", str(corpus_folder))
    code, out, err = eff(*line, "--arms", "scratch,both", "--json", "--quiet")
    assert code == 0, err
    cells = {(cell["arm"], cell["share"]): cell for cell in json.loads(out)["cells"]}
    whole, grown = cells["scratch", 1.0], cells["both", 1.0]
    assert (grown["status"], grown["tokens"]) == ("complete", whole["tokens"])
    assert grown["parameters"] == whole["parameters"]
    assert 0 < grown["accounts"]["flops"]["grow"] < grown["flops"] < whole["flops"]


def test_every_shipped_arm_runs(corpus_folder: Path, eff: Eff) -> None:
    line = ("bench", "smoke", "--tier", "smoke", "--data", str(corpus_folder))
    code, out, err = eff(*line, "--json", "--quiet")
    assert code == 0, err
    document = json.loads(out)
    assert {cell["status"] for cell in document["cells"]} == {"complete"}
    others = ("ladder", "speed", *METHODS)
    shipped_arms = {
        arm for name in shipped() if name not in others for arm in read_suite(name).arms
    }
    assert {arm["name"] for arm in document["arms"]} == shipped_arms
    code, out, _ = eff("bench", "export", *line[1:])
    assert code == 0
    assert len(out.splitlines()) == 1 + len(document["cells"])
    csv = Path("cells.csv")
    assert eff("bench", "export", *line[1:], "--csv", str(csv))[0] == 0
    assert csv.read_text() == out


def test_cells_are_named_by_all_that_matters(corpus: Corpus) -> None:
    def names(text: str, corpus_hash: str = "a") -> set[str]:
        suite: Suite = parse_suite(text, "x")
        matrix = Matrix(suite, "smoke", str(corpus.folder), corpus_hash)
        return {cell.id for cell in matrix.runs("plain", 0)}

    same = names(SUITE)
    assert names(SUITE.replace("seeds = 2", "seeds = 3")) == same
    assert names(SUITE.replace("eval_every = 5", "eval_every = 5\nsave_every = 7")) == same
    assert not names(SUITE, "b") & same
    assert not names(SUITE.replace('width" = 32', 'width" = 48')) & same


TAUGHT = (
    SUITE.replace("trials = 2", "trials = 0").replace("steps = 20", "steps = 60")
    + """
[arms.student]
command = "distill"
teacher = "plain"
shares = [0.5]
settings = { ternary = true, qat = true }

[arms.smaller]
command = "distill"
teacher = "plain"
shares = [0.5]
settings = { student = "new", model.width = 16, teaching.alpha = 0.9 }
"""
)


def test_an_arm_may_be_taught_by_another(place: Path, corpus_folder: Path) -> None:
    suite = place / "taught.toml"
    suite.write_text(TAUGHT)
    seen: list[Record] = []
    document = bench.run(_settings(suite, corpus_folder), seen.append)
    assert [cell["error"] for cell in document["cells"] if cell["status"] != "complete"] == []
    order = [record.title.partition(",")[0] for record in seen if isinstance(record, CellDone)]
    assert order[:4] == ["plain", "plain", "adamw", "adamw"]
    ends = {(c["arm"], c["seed"]): c for c in document["cells"] if c["share"] == 1}
    for cell in document["cells"]:
        if cell["arm"] in ("student", "smaller"):
            teacher = ends["plain", cell["seed"]]
            (told,) = cell["student"]["teachers"]
            assert Path(told).name == teacher["id"]
            assert cell["student"]["teacher_loss"] == pytest.approx(teacher["loss"], abs=1e-5)
            assert cell["student"]["bits"] == {"student": 1.58, "smaller": 16}[cell["arm"]]
            assert cell["accounts"]["flops"]["teacher"] > 0
    (note,) = [note for note in document["notes"] if "teacher" in note]
    assert note.startswith("What student, smaller cost leaves out the training of their teacher")


def test_a_teacher_that_is_gone_is_trained_again(place: Path, corpus_folder: Path) -> None:
    suite = place / "taught.toml"
    suite.write_text(TAUGHT)
    settings = _settings(suite, corpus_folder, seeds=1, arms=("plain", "student"))
    first = bench.run(settings)
    for folder in home().iterdir():
        if folder.name != "locks" and folder.is_dir():
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    (student,) = [cell["id"] for cell in first["cells"] if cell["arm"] == "student"]
    with sqlite3.connect(home() / DATABASE) as database:
        database.execute("delete from cells where id = ?", (student,))
    shutil.rmtree(home() / student)
    assert _figures(bench.run(settings)) == _figures(first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('teacher = "plain"', 'teacher = "nobody"'), "no arm called 'nobody' to teach 'student'"),
        (('command = "distill"', 'command = "baseline"'), "'student' takes no teacher"),
        (("[arms.adamw]", '[arms.adamw]\nteacher = "plain"'), "'adamw' takes no teacher"),
        (('"new", model', '"new" }\n[arms.third]\ncommand="distill"\nteacher="student"\n'
          'settings = { student = "new", model'), "has a teacher of its own"),
    ],
)  # fmt: skip
def test_who_cannot_teach_is_said_in_one_line(change: tuple[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_suite(TAUGHT.replace(*change, 1), "mine.toml")
