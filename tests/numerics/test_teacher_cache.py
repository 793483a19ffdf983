"""What a teacher said is kept whole, is said again the same, and is refused to anybody else."""

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from exactness import differences, final_state, stopping_after

from effcli.engine.data.corpus import Corpus, manifest_hash
from effcli.engine.data.order import training_order
from effcli.engine.data.tokenizers import Tokenizer, byte_tokenizer
from effcli.engine.device import Device
from effcli.engine.measure.evaluate import HeldOut, held_out_loss
from effcli.engine.objectives.signals import TaughtBatch, Terms
from effcli.engine.records import Notice, Reading, Record, Watch, never, unwatched
from effcli.engine.runs.lock import locked
from effcli.engine.runs.rundir import CONFIG, TOKENIZER
from effcli.engine.session import Session
from effcli.engine.teaching import cache as caching
from effcli.engine.teaching import making
from effcli.engine.teaching.cache import MANIFEST, Form, Request, TeacherCache
from effcli.engine.teaching.making import prepared, reached, require_same
from effcli.engine.teaching.taught import Taught, teach
from effcli.engine.teaching.teachers import Teachers, require_worth
from effcli.errors import InputError, ResourceError, Stopped
from effcli.methods import baseline
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve
from effcli.settings.train import DeviceSettings

Settings = Callable[..., BaselineSettings]
CONTEXT, WINDOWS = 32, np.array([7, 3, 50, 4, 900])
NO_FLOORS = "evaluation.floors=false"  # which take longer than so small a run
FORMS = [Form("sampled", 12), Form("topk", 4)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, corpus_folder: Path) -> tuple[Path, Path]:
    """Two trained runs, the second a wider model."""
    from conftest import TINY

    folders = []
    for number, wish in enumerate(([], ["model.width=48"])):
        folders.append(tmp_path_factory.mktemp("teachers") / str(number))
        flags = {"data": str(corpus_folder), "eval_every": 0, "steps": 30, "page": False}
        flags["out"] = folders[-1]
        wishes = [*TINY, "optim.lr=0.01", NO_FLOORS, *wish]
        baseline.run(resolve(BaselineSettings, flags, wishes).settings)
    return folders[0], folders[1]


@pytest.fixture
def device() -> Device:
    return Device(DeviceSettings(name="cpu", precision="float32", threads=1))


@pytest.fixture
def teachers(runs: tuple[Path, Path], corpus: Corpus, device: Device) -> Teachers:
    return Teachers.open(runs[:1], corpus.tokenizer, device)


@pytest.fixture
def clean(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test finds what another one made; 32 windows are asked about at one time."""
    monkeypatch.setattr(caching, "TOKENS_AT_ONCE", 1024)
    yield
    for path in sorted((corpus.folder / caching.FOLDER).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


pytestmark = pytest.mark.usefixtures("clean")


@pytest.fixture(params=FORMS, ids=lambda form: form.mode)
def request_(request: pytest.FixtureRequest, corpus: Corpus, teachers: Teachers) -> Request:
    return Request.of(corpus, teachers, request.param, CONTEXT)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.bin")}


def _make(
    request: Request,
    teachers: Teachers,
    device: Device,
    windows: Any = WINDOWS,
    watch: Watch = unwatched,
    stop: Any = never,
) -> TeacherCache:
    return prepared(request, teachers, np.asarray(windows), device, watch, stop)


# What is kept


def test_what_is_kept_is_what_the_teacher_says(
    request_: Request, teachers: Teachers, device: Device, corpus: Corpus
) -> None:
    cache = _make(request_, teachers, device)
    assert cache.count == len(WINDOWS)
    assert cache.windows.tolist() == sorted(WINDOWS)
    tokens = torch.from_numpy(corpus.train.read(WINDOWS * CONTEXT, CONTEXT))
    features = teachers.features(tokens)
    said, log_p = cache.said(WINDOWS), teachers.log_probabilities([features[0].flatten(0, 1)])
    log_p = log_p.view(5, CONTEXT, -1)
    assert said.ids.shape == (5, CONTEXT, request_.form.count)
    if said.logs is None:
        counts = torch.nn.functional.one_hot(said.ids.long(), log_p.shape[-1]).sum(2)
        assert ((counts - 12 * log_p.exp()).abs() <= 1 + 1e-4).all()
    else:
        known, ids = log_p.topk(4)
        assert torch.equal(said.ids.long(), ids)
        rest = torch.log1p(-known.exp().sum(-1, keepdim=True))
        assert (said.logs - torch.cat((known, rest), -1)).abs().max() < 0.01
    pooled = torch.from_numpy(cache.pooled(WINDOWS)).float()
    assert torch.allclose(pooled, features[0].mean(1), atol=2e-3)
    size = sum(path.stat().st_size for path in request_.folder.glob("*.bin"))
    assert size == 5 * request_.window_bytes


def test_the_same_is_said_in_whatever_order_it_is_asked(
    request_: Request, teachers: Teachers, device: Device
) -> None:
    everything = np.arange(80)
    whole = _make(request_, teachers, device, everything).said(everything)
    (request_.folder / MANIFEST).unlink()
    _make(request_, teachers, device, everything[50:])
    _make(request_, teachers, device, [3, 3, 51])
    parts = _make(request_, teachers, device, everything)
    assert sorted(parts.windows.tolist()) == everything.tolist()
    said = parts.said(everything)
    assert torch.equal(said.ids, whole.ids)
    assert whole.logs is None or torch.equal(said.logs, whole.logs)
    other = replace(request_, seed=1)
    again = _make(other, teachers, device, everything).said(everything)
    assert torch.equal(again.ids, whole.ids) == (request_.form.mode == "topk")


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_making_that_was_stopped_goes_on_to_the_same_bytes(
    request_: Request, teachers: Teachers, device: Device, cut: int
) -> None:
    everything, read = np.arange(110), []
    _make(request_, teachers, device, everything, read.append)
    assert isinstance(read[-1], Reading)
    assert (read[-1].share, read[-1].tokens) == (1.0, 110 * CONTEXT)
    whole = _contents(request_.folder)
    for path in request_.folder.iterdir():
        path.unlink()

    asked: list[Record] = []

    def stop() -> int | None:
        return signal.SIGTERM if len(asked) >= cut else None

    with pytest.raises(Stopped, match="are not") as caught:
        _make(request_, teachers, device, everything, asked.append, stop)
    assert caught.value.hint == "the same command goes on from there"
    assert TeacherCache.open(request_).count == cut * request_.at_once
    _make(request_, teachers, device, everything)
    assert _contents(request_.folder) == whole


def test_what_was_written_after_the_last_manifest_is_cut_off(
    request_: Request, teachers: Teachers, device: Device
) -> None:
    """As after a kill: files are longer than the manifest says, by any number of bytes."""
    _make(request_, teachers, device, np.arange(64))
    manifest = (request_.folder / MANIFEST).read_bytes()
    _make(request_, teachers, device, np.arange(90))
    whole = _contents(request_.folder)
    (request_.folder / MANIFEST).write_bytes(manifest)
    for path in request_.folder.glob("*.bin"):
        path.write_bytes(path.read_bytes()[:-5] + b"half a row")
    assert TeacherCache.open(request_).count == 64  # what is safe can be read all the time
    _make(request_, teachers, device, np.arange(90))
    assert _contents(request_.folder) == whole


def test_work_is_safe_from_time_to_time(
    request_: Request, teachers: Teachers, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "COMMIT_EVERY", 0.0)
    counts: list[int] = []

    def watch(_: Record) -> None:
        counts.append(TeacherCache.open(request_).count)

    _make(request_, teachers, device, np.arange(80), watch)
    assert counts == [32, 64, 80]


def test_nothing_is_asked_again(
    request_: Request, teachers: Teachers, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _make(request_, teachers, device).made
    monkeypatch.setattr(making, "speak", None)
    again = _make(request_, teachers, device, WINDOWS[:3])
    assert again.made == made


def test_a_run_pays_for_the_windows_that_it_reads_whoever_made_them(
    request_: Request, teachers: Teachers, device: Device
) -> None:
    cache = _make(request_, teachers, device, np.arange(80))
    cost = cache.cost(np.array([5, 6, 7, 5]))
    assert cost.flops == pytest.approx(teachers.forward_flops(3, CONTEXT))
    assert cost.seconds == pytest.approx(cache.made.seconds * 3 / 80)
    assert cache.made.flops == pytest.approx(teachers.forward_flops(80, CONTEXT))


def test_several_teachers_are_one_voice(
    runs: tuple[Path, Path], corpus: Corpus, device: Device
) -> None:
    both = Teachers.open(runs, corpus.tokenizer, device)
    turned = Teachers.open(runs[::-1], corpus.tokenizer, device)
    request = Request.of(corpus, both, Form("topk", 4), CONTEXT)
    assert request.folder == Request.of(corpus, turned, Form("topk", 4), CONTEXT).folder
    cache = _make(request, both, device)
    require_same(cache, turned, device)
    tokens = torch.from_numpy(corpus.train.read(WINDOWS * CONTEXT, CONTEXT))
    every = [model(tokens).softmax(-1) for model in both.models]
    known = torch.stack(every).mean(0).gather(-1, cache.said(WINDOWS).ids.long()).log()
    assert (known - cache.said(WINDOWS).logs[..., :-1]).abs().max() < 0.01
    assert cache.pooled(WINDOWS).shape == (5, 32 + 48)


def test_the_windows_of_a_plain_run_are_the_beginning_of_its_order(
    corpus: Corpus, teachers: Teachers
) -> None:
    request = Request.of(corpus, teachers, FORMS[0], CONTEXT)
    order = training_order(0, 40, request.windows, 5)
    assert reached(request, 4, 10, 5).tolist() == sorted(order.tolist())
    everything = list(range(request.windows))
    assert reached(request, 4, None, 5).tolist() == everything
    assert reached(request, 4, 10**6, 5).tolist() == everything


# What is refused


def _change(where: Request, **changes: Any) -> None:
    """A manifest that is wrong, and has the right hash."""
    path = where.folder / MANIFEST
    content = {**json.loads(path.read_bytes()), **changes}
    content.pop("sha256")
    path.write_text(json.dumps({**content, "sha256": manifest_hash(content)}))


@pytest.mark.parametrize(
    "field", ["teachers", "width", "tokenizer", "corpus", "context", "mode", "count", "seed"]
)
def test_what_was_said_to_somebody_else_is_refused(
    request_: Request, teachers: Teachers, device: Device, field: str
) -> None:
    _make(request_, teachers, device)
    _change(request_, request={**request_.facts(), field: "another"})
    with pytest.raises(InputError, match=f"another {field}"):
        _make(request_, teachers, device)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": 99}, "version"),
        ({"count": 10**9}, "more windows"),
        ({"count": -1}, "more windows"),
        ({"count": 4}, "not what was written"),
        ({"count": 6}, "cut short"),
        ({"count": 5.0}, "more windows"),
        ({"count": None}, "more windows"),
        ({"files": {}}, "cannot be used"),
        ({"files": []}, "cannot be used"),
        ({"flops": -1.0}, "makes no sense"),
        ({"seconds": float("nan")}, "makes no sense"),
        ({"precision": "float16"}, "precision"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(
    request_: Request, teachers: Teachers, device: Device, changes: dict[str, Any], reason: str
) -> None:
    _make(request_, teachers, device)
    _change(request_, **changes)
    with pytest.raises(InputError, match=reason) as caught:
        _make(request_, teachers, device)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b'{"schema": 1}', b"{"])
def test_a_manifest_that_is_none_is_refused(
    request_: Request, teachers: Teachers, device: Device, content: bytes
) -> None:
    _make(request_, teachers, device)
    (request_.folder / MANIFEST).write_bytes(content)
    with pytest.raises(InputError):
        _make(request_, teachers, device)


@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_damaged_file_is_refused(
    request_: Request, teachers: Teachers, device: Device, damage: str
) -> None:
    for name in request_.arrays:
        _make(request_, teachers, device)
        path = request_.folder / name
        content = path.read_bytes()
        if damage == "missing":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(content[:-1])
        else:
            path.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
        with pytest.raises(InputError, match="cannot be used"):
            _make(request_, teachers, device)
        (request_.folder / MANIFEST).unlink()


def _forge(request: Request, name: str, content: bytes) -> None:
    """A file that is wrong, in a cache whose hashes are right."""
    (request.folder / name).write_bytes(content)
    files = json.loads((request.folder / MANIFEST).read_bytes())["files"]
    size = len(WINDOWS) * request.arrays[name].bytes
    digest = caching._prefix(request.folder / name, size).hexdigest()
    _change(request, files={**files, name: digest})


@pytest.mark.parametrize("windows", [[1, 1, 2, 3, 4], [-1, 1, 2, 3, 4], [0, 1, 2, 3, 10**6]])
def test_windows_that_the_text_does_not_have_are_refused(
    request_: Request, teachers: Teachers, device: Device, windows: list[int]
) -> None:
    _make(request_, teachers, device)
    _forge(request_, "windows.bin", np.array(windows, dtype="<i8").tobytes())
    with pytest.raises(InputError, match="not the text's"):
        TeacherCache.open(request_)


def test_ids_that_the_tokenizer_does_not_have_are_refused(
    request_: Request, teachers: Teachers, device: Device
) -> None:
    _make(request_, teachers, device)
    path = request_.folder / "ids.bin"
    _forge(request_, "ids.bin", b"\xff" * path.stat().st_size)
    with pytest.raises(InputError, match="ids"):
        TeacherCache.open(request_).said(WINDOWS)


def test_shifted_windows_are_not_what_the_teacher_says(
    request_: Request, teachers: Teachers, device: Device
) -> None:
    """A grid that is one window off, with every hash in order."""
    _make(request_, teachers, device)
    _forge(request_, "windows.bin", (np.sort(WINDOWS) + 1).astype("<i8").tobytes())
    with pytest.raises(InputError, match="is not what the teacher says"):
        _make(request_, teachers, device, np.sort(WINDOWS) + 1)


def test_another_teacher_says_something_else(
    runs: tuple[Path, Path], request_: Request, teachers: Teachers, device: Device, corpus: Corpus
) -> None:
    cache = _make(request_, teachers, device)
    other = Teachers.open(runs[1:], corpus.tokenizer, device)
    assert Request.of(corpus, other, request_.form, CONTEXT).folder != request_.folder
    with pytest.raises(InputError, match="is not what the teacher says"):
        require_same(cache, other, device)


def test_a_window_about_which_nothing_was_said_is_an_error(
    request_: Request, teachers: Teachers, device: Device
) -> None:
    cache = _make(request_, teachers, device)
    assert cache.missing(np.array([7, 8, 8, 2])).tolist() == [2, 8]
    with pytest.raises(InputError, match="lacks window 8"):
        cache.said(np.array([7, 8]))


def test_a_disk_that_is_too_small_is_found_out_before_anything_is_asked(
    request_: Request, teachers: Teachers, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 5 * request_.window_bytes + making.SPARE
    for free in (needed - 1, needed):
        disk = SimpleNamespace(free=free)
        monkeypatch.setattr(making.shutil, "disk_usage", lambda _, disk=disk: disk)
        if free < needed:
            with pytest.raises(ResourceError, match="are free"):
                _make(request_, teachers, device)
        else:
            _make(request_, teachers, device)


@pytest.mark.parametrize(
    "text", ["", "sampled", "sampled:0", "sampled:x", "sampled:-3", "topk:12", "online:3", "top:3"]
)
def test_a_form_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        Form.parse(text, 11)


def test_forms_are_read() -> None:
    assert Form.parse("sampled:12", 11) == Form("sampled", 12)
    assert Form.parse("topk:11", 11) == Form("topk", 11)
    assert Form.parse("online", 11) == Form("online", 0)


# Teachers


def test_a_teacher_of_another_map_is_refused_also_of_the_same_size(
    runs: tuple[Path, Path], device: Device
) -> None:
    ranks = dict(byte_tokenizer("").ranks)
    ranks[b"a"], ranks[b"b"] = ranks[b"b"], ranks[b"a"]
    with pytest.raises(InputError, match="other tokens"):
        Teachers.open(runs, Tokenizer("bytes", "", ranks, 256), device)
    assert (runs[0] / TOKENIZER).exists()


def test_a_student_that_sees_more_than_its_teacher_is_refused(
    corpus: Corpus, teachers: Teachers
) -> None:
    Request.of(corpus, teachers, FORMS[0], 16)
    with pytest.raises(InputError, match="longer than the teacher's"):
        Request.of(corpus, teachers, FORMS[0], 33)


def test_a_teacher_is_named_by_its_weights_shape_and_tokens(
    runs: tuple[Path, Path], corpus: Corpus, device: Device
) -> None:
    from effcli.engine.runs.trained import open_trained
    from effcli.engine.teaching.teachers import teacher_hash
    from effcli.settings.layers import read_toml

    model, tokenizer = open_trained(runs[0], device)
    shape = read_toml(runs[0] / CONFIG)["model"]
    name = teacher_hash(model, shape, tokenizer)
    assert Teachers.open(runs[:1], corpus.tokenizer, device).hashes == (name,)
    others = {teacher_hash(model, {**shape, "soft_cap": 1.0}, tokenizer)}
    others.add(teacher_hash(model, shape, Tokenizer("x", "", tokenizer.ranks, 300)))
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    others.add(teacher_hash(model, shape, tokenizer))
    assert len(others | {name}) == 4


def test_the_held_out_loss_of_teachers_is_that_of_their_mean(
    runs: tuple[Path, Path], corpus: Corpus, device: Device, teachers: Teachers
) -> None:
    held_out = HeldOut.of(corpus.val, corpus.tokenizer.token_bytes, CONTEXT, 640)
    one = teachers.held_out_loss(held_out, device, 3, never)
    plain = held_out_loss(teachers.models[0], held_out, device, 4, never)
    assert one == pytest.approx(plain, rel=1e-5)
    both = Teachers.open(runs, corpus.tokenizer, device)
    tokens = torch.from_numpy(held_out.tokens)
    every = [model(tokens[:, :-1]).softmax(-1) for model in both.models]
    p = torch.stack(every).mean(0).gather(-1, tokens[:, 1:, None])
    together = both.held_out_loss(held_out, device, 3, never)
    assert together == pytest.approx(-p.double().log().mean().item(), rel=1e-5)
    with pytest.raises(Stopped):
        both.held_out_loss(held_out, device, 3, lambda: signal.SIGINT)


def test_a_teacher_that_knows_no_more_than_frequencies_is_refused() -> None:
    require_worth(2.9, 3.0)
    for loss in (3.0, 3.1, float("nan")):
        with pytest.raises(InputError, match="nothing to teach"):
            require_worth(loss, 3.0)


# In a run


def _run(
    settings: BaselineSettings,
    folder: Path,
    terms: Terms,
    form: Form,
    teacher_loss: float = 0.0,
    **hooks: Any,
) -> Any:
    with Session("distill", settings, **hooks) as session:
        parts, corpus = session.parts, session.corpus
        teachers = Teachers.open([folder], corpus.tokenizer, parts.device)
        teacher: Teachers | TeacherCache = teachers
        if form.mode != "online":
            request = Request.of(corpus, teachers, form, parts.model.context)
            windows = reached(request, settings.batch.sequences, settings.steps, settings.seed)
            teacher = prepared(request, teachers, windows, parts.device, unwatched, never)
        teach(parts, terms, teacher, teacher_loss, session.settings)
        return session.train()


CASES = [
    (Terms(hidden=0.5), Form("online", 0)),
    (Terms(), Form("sampled", 12)),
    (Terms("jsd"), Form("topk", 4)),
]


@pytest.mark.parametrize(("terms", "form"), CASES, ids=["online", "sampled", "topk"])
def test_a_taught_run_that_is_stopped_ends_as_one_that_is_not(
    runs: tuple[Path, Path], place: Path, tiny: Settings, terms: Terms, form: Form
) -> None:
    """The bridge to a wider teacher and its moments go on, and are not in the model's file."""
    how: dict[str, Any] = {"eval_every": 2, "save_every": 3, "steps": 8, "page": False}
    whole = tiny(NO_FLOORS, out=place / "whole", **how)
    _run(whole, runs[1], terms, form, 4.5)
    watch, stop = stopping_after(5)
    cut = tiny(NO_FLOORS, out=place / "cut", **how)
    with pytest.raises(Stopped):
        _run(cut, runs[1], terms, form, 4.5, watch=watch, stop=stop)
    _run(tiny(NO_FLOORS, out=place / "cut", resume=True, **how), runs[1], terms, form, 4.5)
    states = [final_state(place / name) for name in ("whole", "cut")]
    assert not differences(*states)
    state = states[0]
    assert not any("bridge" in name for name in state["weights"])
    bridge = {name for name in state["optimizer"] if "bridge" in name}
    assert bool(bridge) == bool(terms.hidden)
    assert bool(state["batches"]["distillation"]["bridge"]) == bool(terms.hidden)
    assert (state["ledger"]["flops"]["teacher"] > 0) == (form.mode == "online")
    kinds = [row["kind"] for row in state["records"]]
    assert kinds.count("notice") == 1  # the student was better than 4.5 soon


def test_a_taught_student_learns_the_bridge_and_comes_near_its_teacher(
    runs: tuple[Path, Path], place: Path, tiny: Settings
) -> None:
    start = tiny(NO_FLOORS, steps=30, out=place / "a", page=False)
    with Session("distill", start) as session:
        parts = session.parts
        teachers = Teachers.open(runs[1:], session.corpus.tokenizer, parts.device)
        distillation = teach(parts, Terms("none", hidden=1.0), teachers, 0.0, start)
        batch = parts.batches.draw(0.0)
        distance, before = [], distillation._bridge.maps[0].weight.clone()  # type: ignore[union-attr]
        distance.append((distillation(parts.model, batch).mean).item())
        session.train()
        distance.append((distillation(parts.model, batch).mean).item())
        assert not torch.equal(before, distillation._bridge.maps[0].weight)  # type: ignore[union-attr]
    assert distance[1] < distance[0] - 0.5


def test_a_cache_of_other_windows_does_not_teach(
    teachers: Teachers, device: Device, corpus: Corpus, tiny: Settings, place: Path
) -> None:
    request = Request.of(corpus, teachers, FORMS[0], 16)
    cache = _make(request, teachers, device, np.arange(request.windows))
    with Session("distill", tiny(out=place / "a")) as session:
        teach(session.parts, Terms(), cache, 0.0, session.settings)
        with pytest.raises(InputError, match="of 16 tokens"):
            session.parts.batches.draw(0.0)
    fits = Request.of(corpus, teachers, FORMS[0], CONTEXT)
    cache = _make(fits, teachers, device, np.arange(fits.windows))
    with Session("distill", tiny(out=place / "b")) as session:
        parts, read = session.parts, session.corpus.train.read
        teach(parts, Terms(), cache, 0.0, session.settings)
        plain = parts.batches._batches  # type: ignore[attr-defined]
        kept = plain._split
        moved = SimpleNamespace(read=lambda starts, count: read(starts + 1, count))
        moved.order, moved.begins = kept.order, kept.begins
        plain._split = moved
        with pytest.raises(InputError, match="not the cache's"):
            parts.batches.draw(0.0)
        plain._split = kept
        batch = parts.batches.draw(0.0)
        assert isinstance(batch, TaughtBatch)
        assert torch.equal(batch.said.ids, cache.said(batch.ids.numpy()).ids)


def test_terms_that_a_cache_cannot_tell_are_refused_when_a_run_is_put_together(
    teachers: Teachers, device: Device, corpus: Corpus, tiny: Settings, place: Path
) -> None:
    cache = _make(Request.of(corpus, teachers, FORMS[0], CONTEXT), teachers, device)
    with Session("distill", tiny(out=place / "a")) as session:
        for terms in (Terms(temperature=2.0), Terms("jsd"), Terms(hidden=0.1)):
            with pytest.raises(InputError):
                teach(session.parts, terms, cache, 0.0, session.settings)
        assert not isinstance(session.parts.batches, Taught)


def test_what_is_new_about_the_teacher_is_told(
    teachers: Teachers, tiny: Settings, place: Path
) -> None:
    with Session("distill", tiny(out=place / "a")) as session:
        teach(session.parts, Terms(), teachers, 3.0, session.settings)
        batches = session.parts.batches
        assert batches.hear(3.5) == []
        (told,) = batches.hear(2.5)
        assert isinstance(told, Notice)
        state = batches.state_dict()
        batches.hear(3.5)
        batches.load_state_dict(state)
        assert batches.hear(2.5) == []


def test_a_cache_that_another_run_makes_is_waited_for(
    request_: Request, teachers: Teachers, device: Device
) -> None:
    request_.folder.mkdir(parents=True)
    held = locked(request_.folder / ".lock", "it")
    held.__enter__()
    heard: list[Record] = []

    def watch(record: Record) -> None:
        heard.append(record)
        if isinstance(record, Notice):
            held.__exit__(None, None, None)

    assert _make(request_, teachers, device, WINDOWS, watch).count == len(WINDOWS)
    assert "waiting for it" in heard[0].text  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_is_named_and_harms_nothing(
    request_: Request,
    teachers: Teachers,
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    _make(request_, teachers, device)

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(making._Writer, "append", fail)
        with pytest.raises(ResourceError) as caught:
            _make(request_, teachers, device, np.arange(90))
    assert str(request_.folder) in caught.value.message
    assert "--cache online" in (caught.value.hint or "")
    assert TeacherCache.open(request_).count == len(WINDOWS)
    assert _make(request_, teachers, device, np.arange(90)).count == 91
