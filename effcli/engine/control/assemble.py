"""What `--hybrid` adds to a distillation, put into the parts of a run one by one."""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effcli.engine.control.controller import Controller, decision_points
from effcli.engine.control.controller import Terms as Steering
from effcli.engine.control.guided import GuidedParts
from effcli.engine.control.probes import Probe, aside
from effcli.engine.control.strata import Stratified, by_ngrams, by_states, strata
from effcli.engine.control.trust import TrustRegion
from effcli.engine.data.corpus import Corpus
from effcli.engine.data.mixed import opened
from effcli.engine.device import Device
from effcli.engine.loop import Parts
from effcli.engine.measure.evaluate import HeldOut
from effcli.engine.protocols import BatchSource
from effcli.engine.quant.bitlinear import bit_layers
from effcli.engine.quant.mixed import mixed
from effcli.engine.records import Notice, Reading, Stop, Watch
from effcli.engine.runs.rundir import RunDir
from effcli.engine.runs.trained import open_trained
from effcli.engine.session import Session
from effcli.engine.teaching.cache import TeacherCache
from effcli.engine.teaching.teachers import require_tokens
from effcli.errors import InputError
from effcli.settings.distill import DistillSettings

ASIDE = 64  # windows of held-out text that steer a run and do not judge it
DAMAGED = 16  # of these, to find out what rounding a layer does
LEAST_STEPS = 200  # of a run with a controller
LEAST_TRAINED = 3  # steps of an arm, however short the run
LOOKS = 40  # at the text, roughly, to find the bits of all layers


@dataclass(frozen=True)
class Spent:
    """On finding bits."""

    flops: float = 0.0
    seconds: float = 0.0


def _aside(corpus: Corpus, context: int, judged: int, count: int = ASIDE) -> HeldOut:
    return aside(corpus.val, corpus.tokenizer.token_bytes, context, judged, count)


def with_bits(settings: DistillSettings, watch: Watch, stop: Stop) -> tuple[DistillSettings, Spent]:
    """The settings with bits for every layer, where these are to be found and are not known."""
    clusters = settings.control.param_clusters
    if not clusters or settings.model.bits_of or not settings.teacher or _has_begun(settings):
        return settings, Spent()
    if settings.student != "same":
        message = "bits by damage need a student that begins as its teacher: all layers have"
        watch(Notice(f"{message} {settings.model.bits:g}"))
        return settings, Spent()
    begun, looks = time.perf_counter(), 0
    corpus = opened(settings.data).first(settings.text_share)
    device = Device(settings.device)
    model, tokenizer = open_trained(settings.teacher[0], device)
    require_tokens(settings.teacher[0], tokenizer, corpus.tokenizer)
    if bit_layers(model):  # what its floats do is not what it does
        message = "bits by damage need a teacher in floats: all layers have"
        watch(Notice(f"{message} {settings.model.bits:g}"))
        return settings, Spent()
    judged = len(
        HeldOut.of(
            corpus.val, corpus.tokenizer.token_bytes, model.context, settings.evaluation.tokens
        ).tokens
    )
    windows = _aside(corpus, model.context, judged, DAMAGED)

    def told(number: int) -> None:
        nonlocal looks
        looks = number
        seconds = time.perf_counter() - begun
        watch(Reading("bits", min(1.0, number / LOOKS), windows.tokens.size * number, 0, seconds))

    s = settings.model
    found = mixed(model, s.bits, s.group, clusters, windows, device, told, stop)
    flops = looks * model.forward_flops(len(windows.tokens), model.context)
    said = f"gain {found.gain:.4f} ± {found.gain_error:.4f} nats"
    how = "layers have their own" if found.is_mixed else f"all layers have {found.uniform:g}"
    watch(Notice(f"bits by damage: {how}; mixed ones {said} over uniform ones in as many bytes"))
    kept = {name: bits for name, bits in found.bits.items() if bits != s.bits}
    changed = settings.model_copy(update={"model": s.model_copy(update={"bits_of": kept})})
    return changed, Spent(flops, time.perf_counter() - begun)


def _has_begun(settings: DistillSettings) -> bool:
    """Whether a run goes on, whose layers have what bits they were given."""
    return settings.resume and settings.out is not None and RunDir(settings.out).has_begun


def stratify(session: Session, asked: DistillSettings, cache: TeacherCache | None = None) -> None:
    """Let every batch hold clusters of the text in proportion, if asked for and there are any.

    They are those of teachers' states in a `cache` of all windows; else of the tokens.
    """
    if not asked.control.data_clusters:
        return
    parts, corpus = session.parts, session.corpus
    context, sequences = parts.model.context, asked.batch.sequences
    every = np.arange(corpus.train.windows(context))

    def make(count: int) -> Any:
        if cache is not None:
            return by_states(cache.pooled(every).astype(np.float32), asked.seed, count)
        vocab_size = corpus.tokenizer.vocab_size
        return by_ngrams(corpus.train, context, vocab_size, asked.seed, count)

    with parts.meter.timing("meta"):
        numbers, told = strata(make, asked.control.data_clusters, sequences)
    if told:
        session.log.tell(Notice(told))
    if numbers is not None:
        how = (corpus.train, context, sequences, asked.seed, numbers, parts.device.processes)
        parts.batches = Stratified(*how)


def drawn(batches: BatchSource, steps: int) -> NDArray[np.int64]:
    """The windows that a source will draw in so many steps; it is left as it was."""
    before = batches.state_dict()
    found = [batches.draw(0.0).ids.numpy() for _ in range(steps)]
    batches.load_state_dict(before)
    return np.unique(np.concatenate(found))


def steer(session: Session, asked: DistillSettings) -> Controller | None:
    """Bound the steps, and let a controller change their length, as far as that is asked for."""
    parts, control = session.parts, asked.control
    if control.trust == "off" and control.controller == "off":
        return None
    judged = len(session.held_out.tokens)
    windows = None
    if control.trust == "adaptive" or control.controller == "guarded":
        windows = _aside(session.corpus, parts.model.context, judged)
    if control.trust != "off":
        probe = None
        if control.trust == "adaptive":
            assert windows is not None
            probe = Probe.of(parts, windows)
        parts.optimizer.guard = TrustRegion(control.trust, probe=probe)
    if control.controller == "off":
        return None
    steps = _steps(parts, asked)
    if steps < LEAST_STEPS:
        message = f"{steps:.0f} steps are too few for a controller, which needs {LEAST_STEPS}"
        if not asked.hybrid:
            raise InputError(message, "a larger budget, or --controller off")
        return None
    assert windows is not None
    points = decision_points(asked.schedule)
    terms = Steering(span=control.widest, share=max(Steering.share, LEAST_TRAINED / steps))
    controller = Controller(windows, points, terms, asked.seed)
    session.parts = GuidedParts.of(parts, controller, asked.batch.sequences)
    return controller


def _steps(parts: Parts, asked: DistillSettings) -> float:
    """How many steps the budget allows, where it is one of steps or tokens."""
    step = {"steps": 1, "tokens": asked.batch.sequences * parts.model.context}
    limits = parts.budget.limits
    return min((limits[name] / step[name] for name in step if name in limits), default=math.inf)


def told_of(session: Session, controller: Controller | None) -> dict[str, Any]:
    """What the parts did, for the report."""
    parts, guard = session.parts, session.parts.optimizer.guard
    spent, trained = parts.meter.flops["meta"], parts.meter.flops["train"] or 1.0
    facts: dict[str, Any] = {"overhead": spent / trained}
    if controller is not None:
        facts |= {"multiplier_mean": controller.multiplier_mean}
        facts |= {"decisions": controller.taken, "adopted": controller.adopted}
    if isinstance(guard, TrustRegion):
        facts |= {"constraint_activation_rate": guard.activation_rate}
        if guard.has_radius:
            facts |= {"final_radius": guard.radius}
        if warning := guard.warning():
            session.log.note(Notice(warning))
    return facts
