"""Make a student of a teacher: smaller, of fewer bits, or both."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from effcli.engine import advice
from effcli.engine.closing import floors_of
from effcli.engine.control.assemble import drawn, steer, stratify, told_of, with_bits
from effcli.engine.control.guided import GuidedParts, guided
from effcli.engine.loop import Parts, train
from effcli.engine.measure.meter import Budget
from effcli.engine.objectives.signals import Terms
from effcli.engine.quant.bitlinear import bit_layers
from effcli.engine.quant.diagnosed import Diagnosed
from effcli.engine.quant.finish import finished
from effcli.engine.quant.student import Phase, complete, warm_start
from effcli.engine.records import (
    Diverged,
    HybridFound,
    Notice,
    Record,
    Stop,
    Watch,
    never,
    unwatched,
)
from effcli.engine.runs.metrics import write_metrics
from effcli.engine.runs.report import Report
from effcli.engine.runs.rundir import ENV, status
from effcli.engine.runs.trained import best_run, open_trained
from effcli.engine.session import Session
from effcli.engine.teaching.cache import Form, Request, TeacherCache
from effcli.engine.teaching.making import prepared, reached
from effcli.engine.teaching.taught import teach
from effcli.engine.teaching.teachers import Teachers, read_elsewhere, require_worth
from effcli.errors import InputError, Stopped
from effcli.settings.distill import ControlSettings, DistillSettings

FIT_WINDOWS = 64  # that gains are fitted to


def run(settings: DistillSettings, watch: Watch = unwatched, stop: Stop = never) -> Report:
    """One run, with its student in a file of its own, whose size and loss are in the report."""
    settings, spent = with_bits(settings, watch, stop)
    with Session("distill", settings, watch, stop) as session:
        if status(session.run.folder) == "complete":  # its teacher may be gone
            return session.train()
        asked = session.settings
        assert isinstance(asked, DistillSettings)
        session.log.bill("select", spent.flops, spent.seconds)
        try:
            told = _taught(session, asked, watch, stop)
        except Stopped as error:
            raise advice.not_begun(error, "distill", session.run.folder) from None
        hashes = told.pop("teacher_hashes", ())
        parts, text = session.parts, _text(session)
        if asked.share and bit_layers(parts.model):
            parts.batches = Diagnosed(parts.batches, parts.model, asked.share, parts.meter)
        parts.schedule = Phase(parts.schedule, parts.model, parts.optimizer, asked.share, text)
        controller = steer(session, asked)
        has_parts = controller is not None or session.parts.optimizer.guard is not None

        def drive(parts: Parts, *, stop: Stop) -> Iterator[Record]:
            steps: Iterator[Record] = train(parts, stop=stop)
            if isinstance(parts, GuidedParts):
                steps = guided(parts, stop=stop)
            for record in steps:
                yield record
                if isinstance(record, Diverged):
                    return
            if complete(parts.model, text):
                session.changed()
            session.look()  # no file is made of a model that has diverged
            if has_parts or asked.control != ControlSettings():
                yield HybridFound(told_of(session, controller))
            how = {"bits": asked.model.bits, "is_trained_in_low_bits": asked.share > 0}
            yield finished(session, {**how, **told})

        session.drive = drive
        report = session.train(distill={**told, "teacher_hashes": hashes})
        if asked.save_metrics and parts.device.processes.is_first:
            write_metrics(session.run.folder)
        return report


def _taught(session: Session, asked: DistillSettings, watch: Watch, stop: Stop) -> dict[str, Any]:
    """Let the student begin where its teacher is, and hear what that says; facts for the report."""
    parts, device, teaching = session.parts, session.parts.device, asked.teaching
    if not asked.teacher:
        _require_teacher(session, asked)
        stratify(session, asked)
        return {}
    tokenizer = session.corpus.tokenizer
    teachers = Teachers.open(asked.teacher, tokenizer, device, lambda text: watch(Notice(text)))
    teachers.require_context(parts.model.context)
    _require_same(session, teachers)
    for folder in asked.teacher:
        if elsewhere := read_elsewhere(folder, session.corpus):
            watch(Notice(elsewhere))
    if asked.student == "same":
        warm_start(parts.model, open_trained(asked.teacher[0], device)[0].state_dict())
    with parts.meter.timing("eval"):
        loss = teachers.held_out_loss(session.held_out, device, parts.micro, stop)
    require_worth(loss, floors_of(session.corpus, session.held_out)["unigram"])
    names = [one.resolve().name for one in asked.teacher]
    told: dict[str, Any] = {"teacher_loss": loss, "teachers": names}
    told["teacher_hashes"] = teachers.hashes
    form = Form.parse(teaching.cache, tokenizer.vocab_size)
    if teaching.kd == "none" or form.mode == "online":
        stratify(session, asked)
    if teaching.kd == "none":
        return told
    if warning := teachers.advice(parts.model):
        watch(Notice(warning))
    terms = Terms(teaching.kd, teaching.alpha, teaching.temperature, hidden=teaching.hidden)
    terms.require(form.mode)
    teacher: Teachers | TeacherCache = teachers
    if form.mode != "online":
        teacher = _cached(
            session,
            asked,
            Request.of(session.corpus, teachers, form, parts.model.context),
            teachers,
            watch,
            stop,
        )
    teach(parts, terms, teacher, loss, asked)
    return told


def _cached(
    session: Session,
    asked: DistillSettings,
    request: Request,
    teachers: Teachers,
    watch: Watch,
    stop: Stop,
) -> TeacherCache:
    """What the teachers say about all windows that the run will read, at the run's expense.

    Clusters of a text that is read whole are those of the teachers' states; else of its tokens.
    """
    parts, processes = session.parts, session.parts.device.processes
    sequences = asked.batch.sequences
    step: dict[str, float] = {"steps": 1, "tokens": sequences * parts.model.context}
    limits = Budget(asked).limits
    step["flops"] = parts.step_flops(sequences)
    known = [math.ceil(limit / step[name]) for name, limit in limits.items() if name in step]
    steps = min(known, default=request.windows)
    if is_part := steps * sequences < request.windows:
        stratify(session, asked)
    windows = reached(request, sequences, steps, asked.seed)
    if is_part and asked.control.data_clusters:
        windows = drawn(parts.batches, steps)
    with session.log.aside():
        if not processes.is_first:
            processes.wait()
        cache = prepared(request, teachers, windows, parts.device, watch, stop)
        if processes.is_first:
            processes.wait()
    cost = cache.cost(windows)
    session.log.bill("teacher", cost.flops, cost.seconds)
    if Budget(asked).progress(parts.meter) >= 1:
        message = f"the budget is spent before the first step: the teacher took {cost}"
        raise InputError(message, "a larger budget, or --cache online")
    if not is_part:
        stratify(session, asked, cache)
    return cache


def _require_same(session: Session, teachers: Teachers) -> None:
    """Refuse to go on with others than a run began with, wherever they are now."""
    folder = session.run.folder
    begun = session.run.env().get("distill") if (folder / ENV).exists() else None
    known = begun.get("teacher_hashes") if isinstance(begun, dict) else None
    if known not in (None, list(teachers.hashes)):
        hint = "name the unchanged one with --teacher, or start a new run in another --out"
        raise InputError(f"the teacher is not the one that the run in {folder} began with", hint)


def _require_teacher(session: Session, asked: DistillSettings) -> None:
    """Refuse what cannot be done without a teacher, and name the best one there is."""
    if asked.student != "same" and asked.teaching.kd == "none":
        return
    found = best_run(session.corpus.hash)
    hint = "train one with eff baseline" if found is None else f"--teacher {found}"
    raise InputError("there is no teacher", hint)


def _text(session: Session) -> list[torch.Tensor]:
    """A few windows of training text, evenly spread, where the model is."""
    context, text = session.parts.model.context, session.corpus.train
    starts = text.spread(context, FIT_WINDOWS)
    rows = torch.from_numpy(text.read(starts, context)).to(session.parts.device.torch)
    return list(torch.split(rows, max(1, session.parts.micro)))
