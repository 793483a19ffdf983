"""`eff distill`, from its command line: who teaches, what the student is, what its file holds."""

import json
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from exactness import differences, final_state, stopping_after

from effcli.engine.data.corpus import Corpus
from effcli.engine.device import Device
from effcli.engine.measure.evaluate import HeldOut, held_out_loss
from effcli.engine.quant.packed import read
from effcli.engine.records import Reading, Record, never
from effcli.engine.runs import checkpoint
from effcli.engine.runs.rundir import RunDir
from effcli.engine.runs.trained import open_trained
from effcli.engine.teaching import cache as caching
from effcli.engine.teaching import making
from effcli.engine.teaching.teachers import Teachers
from effcli.errors import Stopped
from effcli.methods import baseline, distill
from effcli.settings.baseline import BaselineSettings
from effcli.settings.distill import DistillSettings
from effcli.settings.layers import resolve
from effcli.settings.train import DeviceSettings

Eff = Callable[..., tuple[int, str, str]]
SETS = [part for assignment in TINY for part in ("--set", assignment)]
FEW = {"eval_every": 0, "save_every": 0, "page": False}


def _document(told: tuple[int, str, str]) -> Any:
    code, out, err = told
    assert code == 0, err
    return json.loads(out)


def _one_line(told: tuple[int, str, str], message: str, code: int = 2) -> None:
    assert told[0] == code
    assert message in told[2]
    assert told[2].count("error: ") == 1
    assert "Traceback" not in told[2]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, corpus_folder: Path) -> Path:
    """A tiny run."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    flags = {"data": str(corpus_folder), "steps": 40, "out": folder, **FEW}
    baseline.run(resolve(BaselineSettings, flags, [*TINY, "evaluation.floors=false"]).settings)
    return folder


@pytest.fixture
def asked(corpus_folder: Path, teacher: Path) -> Callable[..., DistillSettings]:
    """Makes settings of a tiny student."""

    def make(*assignments: str, **flags: Any) -> DistillSettings:
        usual = {"data": str(corpus_folder), "teacher": [str(teacher)], "steps": 12, **FEW}
        small = [*TINY, "evaluation.floors=false", "evaluation.samples=0"]
        return resolve(DistillSettings, {**usual, **flags}, [*small, *assignments]).settings

    return make


@pytest.mark.usefixtures("draws")
def test_a_student_is_a_file_that_was_measured(
    eff: Eff, teacher: Path, corpus_folder: Path, place: Path
) -> None:
    flags = ["--data", corpus_folder, "--teacher", teacher, "--steps", 12, "--eval-every", 4]
    command = ["distill", *flags, *SETS, "--ternary", "--qat", "--out", "s", "--json"]
    command.append("--save-metrics")
    report = _document(eff(*map(str, command)))
    made, path = report["student"], place / "s" / "student.eff"
    assert made["file_bytes"] == path.stat().st_size == sum(made["bytes"].values())
    assert (made["bits"], made["is_trained_in_low_bits"]) == (1.58, True)
    assert made["logit_gap"] <= 1e-4
    assert made["linear_bits_per_weight"] < 3
    looks = made["codes"]
    assert [look["step"] for look in looks] == [0, 4, 8, 12]
    assert looks[0]["flips"] is None
    assert all(0 < look["flips"] < 1 for look in looks[1:])
    assert all(0 < look[name] < 1 for look in looks for name in ("zeros", "dead_zone"))
    assert "<!-- dead zone -->" in (place / "s" / "report.html").read_text("utf8")
    assert report["flops"]["teacher"] > 0
    assert report["seconds"]["teacher"] > 0
    checked = _document(eff("distill", "verify", str(path), "--data", str(corpus_folder), "--json"))
    assert checked["holds"]
    header, *rows = (place / "s" / "metrics.csv").read_text().splitlines()
    assert header.startswith("index,progress,loss,lr,")
    assert [row.split(",")[0] for row in rows] == [str(number) for number in range(1, 13)]
    assert float(rows[-1].split(",")[-1]) == report["held_out"]["loss"]
    code, out, err = eff("generate", str(path), "a", "--max-new-tokens", "5")
    assert code == 0, err
    assert out.startswith("a")
    code, out, err = eff("report", "s")
    assert code == 0, err
    assert "student.eff" in out
    assert "changed since step 8" in out


def test_a_student_that_is_not_trained_in_low_bits_is_labeled_so(asked: Any, place: Path) -> None:
    report = distill.run(asked("model.bits=2", out=place / "s"))
    assert report.student is not None
    assert not report.student.is_trained_in_low_bits
    assert not report.student.codes
    kept = read(place / "s" / "student.eff")
    assert {codes.codes.unique().numel() for codes in kept.layers.values()} <= {2, 3, 4}


def test_what_is_reported_and_kept_is_the_rounded_student(asked: Any, place: Path) -> None:
    """Wherever the last look and the last save in floats were."""
    found = []
    for every in (5, 6, 0):
        out = place / str(every)
        names, how = ("model.bits=2", "teaching.kd=none"), {"eval_every": every, "out": out}
        report = distill.run(asked(*names, save_every=every, **how))
        assert report.held_out is not None
        (last,) = checkpoint.steps(out / "checkpoints")[-1:]
        weights = checkpoint.load_model(last, torch.device("cpu"))
        gains = [tensor for name, tensor in weights.items() if name.endswith(".gain")]
        assert gains
        assert not any(bool((gain == 1).all()) for gain in gains)
        found.append(report.held_out.loss)
    assert found[0] == found[1] == found[2]


def test_a_warm_start_is_the_teacher(asked: Any, place: Path) -> None:
    report = distill.run(asked("teaching.kd=none", "optim.lr=1e-9", out=place / "s"))
    assert report.held_out is not None
    assert report.student is not None
    assert report.held_out.loss == pytest.approx(report.student.teacher_loss, abs=1e-3)


@pytest.mark.parametrize("how", ["sampled:4", "topk:8", "online"])
@pytest.mark.parametrize("cut", [1, 7])
def test_a_student_that_was_stopped_is_the_one_that_was_not(
    asked: Any, place: Path, how: str, cut: int
) -> None:
    names = ("model.bits=1.58", "qat=true", f"teaching.cache={how}")
    looks = {"eval_every": 7}  # so that the later signal comes inside a look
    distill.run(asked(*names, out=place / "whole", **looks))
    with pytest.raises(Stopped):
        distill.run(asked(*names, out=place / "cut", **looks), *stopping_after(cut))
    distill.run(asked(*names, out=place / "cut", resume=True, **looks))
    whole, other = (final_state(place / name) for name in ("whole", "cut"))
    for state in (whole, other):  # seconds, and the names of the folders
        state["records"] = [row for row in state["records"] if row["kind"] in ("step", "codes")]
    assert [row["step"] for row in whole["records"] if row["kind"] == "codes"] == [0, 7, 12]
    assert not differences(whole, other)
    files = [(place / name / "student.eff").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]


def test_low_bits_begin_with_the_cool_down(asked: Any, place: Path) -> None:
    """Until then the weights are those of a run in floats."""
    names = ("teaching.kd=none", "student=nano", "model.subnorm=off")
    plain = asked(*names, "schedule.cooldown=0.5", out=place / "plain", save_at=[6])
    low = asked(*names, "model.bits=1.58", "qat=true", "low_bit_share=0.5", out=place / "low")
    for settings in (plain, low.model_copy(update={"save_at": (6,)})):
        distill.run(settings)
    states = []
    for name in ("plain", "low"):
        (early, *_, last) = checkpoint.steps(place / name / "checkpoints")
        states.append([checkpoint.load_model(one, "cpu") for one in (early, last)])
    apart = differences(states[0][0], states[1][0])
    assert all(path.endswith(".blend") for path in apart)
    assert {float(states[1][0][path[1:]]) for path in apart} == {0.0}
    assert any(path.endswith(".weight") for path in differences(states[0][1], states[1][1]))


@pytest.mark.parametrize(
    ("names", "cut"),
    [
        (["ternary=true", "low_bit_share=0.5"], 3),  # floats: gains are ones
        (["model.bits=8", "low_bit_share=0.5"], 3),
        (["ternary=true"], 2),  # of four steps in which rounding is blended in
    ],
)
def test_a_student_that_is_not_there_yet_is_used_as_it_was_trained(
    eff: Eff, asked: Any, corpus: Corpus, place: Path, names: list[str], cut: int
) -> None:
    steps = 12 if cut == 3 else 80
    names = [*names, "qat=true", "teaching.kd=none"]
    how = {"steps": steps, "eval_every": cut}
    distill.run(asked(*names, out=place / "whole", **how))
    with pytest.raises(Stopped):  # inside the look at step `cut`, which comes when it goes on
        distill.run(asked(*names, out=place / "cut", **how), *stopping_after(cut))

    def seen(folder: Path) -> float:
        looks = [row for row in RunDir(folder).records() if row["kind"] == "evaluation"]
        return next(row["loss"] for row in looks if row["step"] == cut)

    device = Device(DeviceSettings(name="cpu", precision="float32", threads=1))
    model, tokenizer = open_trained(place / "cut", device)
    held_out = HeldOut.of(corpus.val, tokenizer.token_bytes, model.context, 640)
    assert held_out_loss(model, held_out, device, 4, never) == seen(place / "whole")
    teachers = Teachers.open([place / "cut"], tokenizer, device)
    said = teachers.held_out_loss(held_out, device, 4, never)
    assert said == pytest.approx(seen(place / "whole"), abs=1e-5)
    assert eff("generate", "cut", "a", "--max-new-tokens", "3")[0] == 0
    _one_line(eff("distill", "pack", "cut"), "before it computed in its few bits alone")
    distill.run(asked(*names, out=place / "cut", resume=True, **how))
    assert seen(place / "cut") == seen(place / "whole")


def test_a_cache_that_was_stopped_says_how_to_go_on_and_does(
    eff: Eff, asked: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "TOKENS_AT_ONCE", 128)  # four of 48 windows
    heard: list[Record] = []
    with pytest.raises(Stopped, match="8 windows of the teacher's cache are there, 40") as caught:
        distill.run(
            asked("teaching.cache=sampled:5", out=place / "a run"),
            lambda record: heard.append(record) if isinstance(record, Reading) else None,
            lambda: signal.SIGTERM if len(heard) == 2 else None,
        )
    begin, _, command = (caught.value.hint or "").partition(": eff ")
    assert begin == "continue with"
    counts: list[int] = []
    speak = making.speak

    def counting(request: Any, teachers: Any, windows: Any, device: Any) -> Any:
        counts.append(len(windows))
        return speak(request, teachers, windows, device)

    monkeypatch.setattr(making, "speak", counting)
    told = eff(*shlex.split(command))
    assert told[0] == 0, told[2]
    assert sum(counts) == 40
    assert (place / "a run" / "student.eff").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--bits", "3"], "bits: should be one of 16, 8, 4, 2, 1.58, 1"),
        (["--qat"], "qat has no effect at 16 bits"),
        (["--ternary", "--bits", "2"], "--ternary is --bits 1.58"),
        (["--cache", "most"], "should be online, sampled:N or topk:K"),
        (["--alpha", "2"], "alpha"),
        (["--kd", "none", "--alpha", "0.2"], "alpha has no effect while kd is none"),
        (["--set", "teaching.temperature=2"], "needs --cache online"),
        (["--hidden", "0.1"], "needs --cache online"),
        (["--kd", "reverse"], "needs probabilities"),
        (["--cache", "topk:100000"], "topk takes a number"),
        (["--student", "huge"], "there is no preset called 'huge'"),
        (["--group", "7", "--ternary"], "does not divide"),
        (["--epochs", "1", "--steps", "3"], "exclude each other"),
        (["--teacher", "nowhere"], "there is no run in nowhere"),
        (["--set", "model.layers=1"], "has another shape"),
        (["--controller", "guarded"], "3 steps are too few for a controller"),
        (["--param-clusters", "4"], "param_clusters has no effect at 16 bits"),
        (["--lr", "1e38"], "makes steps of"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    eff: Eff, teacher: Path, corpus_folder: Path, place: Path, flags: list[str], message: str
) -> None:
    given = [] if "--teacher" in flags else ["--teacher", str(teacher)]
    steps = [] if "--epochs" in flags else ["--steps", "3"]
    usual = ["--data", str(corpus_folder), *given, *steps, *SETS]
    _one_line(eff("distill", *usual, *flags), message)


def test_a_hybrid_goes_on_as_if_it_had_not_been_stopped(asked: Any, place: Path) -> None:
    names = ["hybrid=true", "ternary=true", "qat=true", "control.widest=3"]
    how = {"steps": 200, "eval_every": 50}
    report = distill.run(asked(*names, out=place / "whole", **how))
    assert report.hybrid is not None
    assert report.hybrid.decisions == 4
    assert report.hybrid.overhead > 0
    assert report.flops["meta"] > 0
    assert report.steps < 200  # the comparisons are paid for by the budget
    decided = [
        row["step"] for row in RunDir(place / "whole").records() if row["kind"] == "decision"
    ]
    for cut in (decided[0] - 1, decided[2] + 1):
        settings = asked(*names, out=place / "cut", resume=cut != decided[0] - 1, **how)
        with pytest.raises(Stopped):
            distill.run(settings, *stopping_after(cut))
    distill.run(asked(*names, out=place / "cut", resume=True, **how))
    files = [(place / name / "student.eff").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
    whole, cut = (list(RunDir(place / name).records()) for name in ("whole", "cut"))
    losses = [[row["loss"] for row in rows if row["kind"] == "step"] for rows in (whole, cut)]
    assert losses[0] == losses[1]


def test_without_a_teacher_the_best_run_is_named(
    eff: Eff, corpus_folder: Path, place: Path
) -> None:
    flags = ["--data", str(corpus_folder), *SETS, "--steps", "3", "--eval-every", "0"]
    _one_line(eff("distill", *flags), "there is no teacher")
    assert eff("baseline", *flags, "--out", "runs/good")[0] == 0
    told = eff("distill", *flags)
    _one_line(told, "there is no teacher")
    assert "--teacher runs/good" in told[2]


def test_a_teacher_of_other_tokens_is_refused(eff: Eff, teacher: Path, place: Path) -> None:
    made = eff("prepare", "grammar:3", "--max-tokens", "9000", "--tokenizer", "bpe:300")
    assert made[0] == 0, made[2]
    flags = ["--teacher", str(teacher), *SETS, "--steps", "3"]
    _one_line(eff("distill", *flags), "other tokens")


def test_a_file_that_is_not_the_model_of_its_run_is_found_out(
    eff: Eff, teacher: Path, corpus_folder: Path, place: Path
) -> None:
    flags = ["--bits", "1.58", "--out", "t.eff", "--json"]
    packed = _document(eff("distill", "pack", str(teacher), *flags))
    assert packed["ratio_linear"] > 8
    where = ["--data", str(corpus_folder)]
    told = eff("distill", "verify", "t.eff", "--run", str(teacher), *where)
    _one_line(told, "is not what its model has")
    (place / "t.eff").write_bytes(b"not a file")
    _one_line(eff("distill", "verify", "t.eff", "--run", str(teacher), *where), "is damaged")
    _one_line(eff("generate", "t.eff", "a"), "is damaged")


def test_a_file_of_another_run_is_found_out(
    eff: Eff, asked: Any, corpus_folder: Path, place: Path
) -> None:
    names = ("ternary=true", "qat=true", "teaching.kd=none")
    for seed in (1, 2):
        distill.run(asked(*names, seed=seed, out=place / str(seed)))
    flags = ["--run", "2", "--data", str(corpus_folder)]
    _one_line(eff("distill", "verify", "1/student.eff", *flags), "is not the model of 2", 4)


def test_a_cache_is_made_once(eff: Eff, teacher: Path, corpus_folder: Path, place: Path) -> None:
    command = ["distill", "cache", "--teacher", str(teacher), "--data", str(corpus_folder)]
    first = _document(eff(*command, "--cache", "topk:4", "--json"))
    assert first["flops"] > 0
    assert _document(eff(*command, "--cache", "topk:4", "--json")) == first


@pytest.mark.parametrize(
    ("flags", "message", "code"),
    [
        (["--teacher", "TEACHER"], "name every teacher once", 2),
        (["--student", "new", "--set", "model.context=64"], "longer than the teacher's", 2),
        (["--lr", "1e15", "--ternary", "--qat"], "on held-out text", 5),
        (["--minutes", "1e-6"], "spent before the first step", 2),
    ],
)
def test_what_would_fail_later_is_said_and_leaves_no_student(
    eff: Eff,
    teacher: Path,
    corpus_folder: Path,
    place: Path,
    flags: list[str],
    message: str,
    code: int,
) -> None:
    given = [str(teacher) if flag == "TEACHER" else flag for flag in flags]
    budget = [] if "--minutes" in flags else ["--steps", "1"]
    usual = ["--data", str(corpus_folder), "--teacher", str(teacher), "--eval-every", "0", *SETS]
    _one_line(eff("distill", *usual, *budget, *given, "--out", "s"), message, code)
    assert not (place / "s" / "student.eff").exists()


def test_a_student_resumes_wherever_its_teacher_is_and_only_with_that_one(
    eff: Eff, asked: Any, teacher: Path, corpus_folder: Path, place: Path
) -> None:
    shutil.copytree(teacher, place / "a")
    budget = {"steps": None, "epochs": 1, "teacher": ["a"]}
    with pytest.raises(Stopped):
        distill.run(asked(**budget, out=place / "s"), *stopping_after(3))
    (place / "a").rename(place / "b")
    again = ["distill", "--resume", "--out", "s"]
    _one_line(eff(*again), "there is no run in")
    flags = {"data": str(corpus_folder), "steps": 3, "seed": 1, "out": place / "c", **FEW}
    baseline.run(resolve(BaselineSettings, flags, [*TINY, "evaluation.floors=false"]).settings)
    _one_line(eff(*again, "--teacher", "c"), "is not the one that the run in s began with")
    assert eff(*again, "--teacher", "b")[0] == 0
    (place / "b").rename(place / "d")
    told = eff(*again)
    assert (told[0], "complete already" in told[2]) == (0, True)


def test_packing_says_what_a_run_is_and_overwrites_nothing(
    eff: Eff, asked: Any, place: Path
) -> None:
    distill.run(asked("model.bits=2", out=place / "s"))
    before = (place / "s" / "student.eff").read_bytes()
    _one_line(eff("distill", "pack", "s", "--bits", "4"), "exists")
    assert (place / "s" / "student.eff").read_bytes() == before
    told = _document(eff("distill", "pack", "s", "--out", "p.eff", "--json"))
    assert (told["is_trained_in_low_bits"], told["status"]) == (False, "complete")
    names = ("student=nano", "ternary=true", "qat=true", "teaching.kd=none")
    with pytest.raises(Stopped):
        distill.run(asked(*names, out=place / "cut"), *stopping_after(2))
    _one_line(eff("distill", "pack", "cut"), "before it computed in its few bits alone")
