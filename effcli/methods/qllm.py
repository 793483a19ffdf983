"""Train a phase model, and find one."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from effcli.engine.closing import floors_of
from effcli.engine.growing import Growing
from effcli.engine.loop import Parts, train
from effcli.engine.models.phase import Phase
from effcli.engine.objectives.next_token import NextToken
from effcli.engine.phase.aligning import Aligning
from effcli.engine.phase.beside import equal_gpt
from effcli.engine.phase.curriculum import ALL, AUTO, SEED, Curriculum
from effcli.engine.phase.initial import (
    TOKENS,
    embedding,
    initial_phases,
    shared_tokens,
    spectral_coordinates,
)
from effcli.engine.phase.looking import measured
from effcli.engine.phase.objective import WithEnergies
from effcli.engine.phase.pairs import Pairs
from effcli.engine.phase.speaking import aligned
from effcli.engine.phase.widths import Counting
from effcli.engine.records import Diverged, Notice, Record, Stop, Watch, never, unwatched
from effcli.engine.runs import checkpoint
from effcli.engine.runs.report import Report
from effcli.engine.runs.rundir import CHECKPOINTS, root, status
from effcli.engine.session import Session
from effcli.errors import InputError
from effcli.settings.layers import CONFIG, read_toml
from effcli.settings.qllm import QllmSettings

PASSAGE = 4096  # tokens that are read in a row, of those that are counted
STAGES = {"auto": AUTO, "seed": SEED, "off": ALL}


def run(settings: QllmSettings, watch: Watch = unwatched, stop: Stop = never) -> Report:
    """One run of a phase model, or of the GPT that it is compared with."""
    with Session("qllm", settings, watch, stop) as session:
        asked, parts = session.settings, session.parts
        assert isinstance(asked, QllmSettings)
        if status(session.run.folder) == "complete":
            return session.train()
        steps: Callable[..., Iterator[Record]] = train
        facts: dict[str, Any] = {}
        if asked.grows:
            facts = {"parameters": parts.model.parameter_count()}  # in the end
            session.drive = steps = Growing(session, asked.stages).train
        pairs = None if asked.align is None else Pairs.read(asked.align, session.corpus.tokenizer)
        if isinstance(parts.model, Phase):
            if not checkpoint.steps(session.run.checkpoints):
                _begin(session, asked)
            _attune(session, asked, pairs)
            if asked.device.compile != "on" and (why := parts.model.unfused):
                watch(Notice(why))

        def drive(parts: Parts, *, stop: Stop) -> Iterator[Record]:
            for record in steps(parts, stop=stop):
                yield record
                if isinstance(record, Diverged):
                    return
            session.look()  # nothing is measured of a model that has diverged
            with parts.meter.timing("eval"):
                yield from _found(session, asked, pairs)
            if not isinstance(parts.model, Phase):
                return
            if (beside := equal_gpt(asked, session.corpus.hash)) is not None:
                yield beside
            else:
                watch(Notice("a GPT to compare with: the same command with --arch gpt"))

        session.drive = drive
        return session.train(**facts)


def _found(session: Session, asked: QllmSettings, pairs: Pairs | None) -> Iterator[Record]:
    """What phases do, and whether all languages mean the same."""
    model, windows = session.parts.model, session.held_out.tokens
    if isinstance(model, Phase) and asked.energies != "off":
        yield measured(model, torch.from_numpy(windows[:, :-1]))
    if isinstance(model, Phase) and asked.languages:
        yield aligned(model, session.corpus.tokenizer, pairs)


@torch.no_grad()
def _begin(session: Session, asked: QllmSettings) -> None:
    """Give tokens the phases and the concepts that they begin with."""
    model, corpus = session.parts.model, session.corpus
    assert isinstance(model, Phase)
    priors = [one for one in model.concepts if one.has_prior]
    if asked.phase_init == "random" and not priors:
        return
    weight = model.trunk.embedding.weight
    with session.parts.meter.timing("meta"):
        length = min(PASSAGE, corpus.train.in_row - 1)
        windows = corpus.train.read(corpus.train.spread(length, TOKENS // length), length)
        among = shared_tokens(windows, corpus.tokenizer) if asked.languages else None
        text = windows.flatten()
        for one in priors:
            one.set_prior(spectral_coordinates(text, model.vocab_size, among=among), asked.seed)
        shape = (model.vocab_size, weight.shape[1] // 2)
        angles = initial_phases(text, *shape, asked.phase_init, asked.seed, among)
    if asked.phase_init != "random":
        weight[: model.vocab_size] = torch.from_numpy(embedding(angles)).to(weight)


def _attune(session: Session, asked: QllmSettings, pairs: Pairs | None) -> None:
    """Let energies and pairs count, and let what widths go by be counted."""
    parts = session.parts
    assert isinstance(parts.model, Phase)
    if parts.model.widths is not None:
        parts.batches = Counting(parts.batches, parts.model.widths)
    _hear_energies(session, asked)
    if pairs is not None and asked.align_weight:
        parts.objective = Aligning(parts.objective, pairs, asked.align_weight, asked.seed)


def _hear_energies(session: Session, asked: QllmSettings) -> None:
    parts = session.parts
    assert isinstance(parts.model, Phase)
    if asked.energies != "on":
        return
    floor = None
    if asked.curriculum == "auto":
        floor = floors_of(session.corpus, session.held_out)["trigram"]
    factors = asked.factors.model_dump()
    stages = tuple(
        (name, begin, {one: weight * factors[one] for one, weight in weights.items()})
        for name, begin, weights in STAGES[asked.curriculum]
    )
    curriculum = Curriculum(parts.batches, stages, floor)
    parts.batches = curriculum
    inner = NextToken(asked.device.loss_rows)
    parts.objective = WithEnergies(inner, curriculum)


def found(folder: Path | None) -> Path:
    """The run of a phase model: the one that is named, else the newest."""
    if folder is not None:
        if (kind := _kind(folder)) not in (None, "phase"):
            hint = f"eff generate {folder} writes with any run"
            raise InputError(f"the run in {folder} has a model of another kind: {kind}", hint)
        return folder
    begun = [path.parent for path in root().glob(f"*/{CONFIG}") if _kind(path.parent) == "phase"]
    saved = [run for run in begun if any((run / CHECKPOINTS).glob("*"))]
    if not saved:
        hint = "eff prepare, then eff qllm train: about two minutes on two cores"
        raise InputError(f"there is no phase model in {root()}/ yet", hint)
    return max(saved, key=lambda run: (run / CHECKPOINTS).stat().st_mtime_ns)


def _kind(folder: Path) -> str | None:
    """Which model a run has; none where that cannot be told."""
    with suppress(InputError, KeyError, TypeError):
        return str(read_toml(folder / CONFIG)["model"]["name"])
    return None
