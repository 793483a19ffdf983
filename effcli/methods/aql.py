"""Train on a chosen share of a pool."""

from effcli.engine.objectives.self_distillation import SelfDistillation
from effcli.engine.records import Notice, Stop, Watch, never, unwatched
from effcli.engine.runs.report import Report
from effcli.engine.selection import sidecar, visits
from effcli.engine.selection.assemble import CANNOT_GATE, selected, selector_of
from effcli.engine.selection.prep import prepared, request_of
from effcli.engine.selection.selectors import CAUTIOUS
from effcli.engine.selection.source import Selected
from effcli.engine.selection.streamed import measured
from effcli.engine.session import Session
from effcli.settings.aql import AqlSettings


def run(settings: AqlSettings, watch: Watch = unwatched, stop: Stop = never) -> Report:
    """One run, whose batches are chosen; what the scores cost is on its bill."""
    with Session("aql", settings, watch, stop) as session:
        processes = session.parts.device.processes
        with session.log.aside():
            if not processes.is_first:
                processes.wait()  # until the first has made the scores
            how = (session.corpus, settings.prep, watch, stop)
            measures = settings.streaming or settings.synth_cmd is not None
            scores, yardstick = measured(*how) if measures else (prepared(*how), None)
            if processes.is_first:
                processes.wait()
        facts = scores.facts
        if selector_of(settings.selector, scores) is CAUTIOUS:
            watch(Notice(CANNOT_GATE))
        seconds = sum(facts["seconds"].values())
        session.log.bill("select", facts["flops"], seconds)
        asked = session.settings
        assert isinstance(asked, AqlSettings)
        batches = selected(asked, session.parts, session.corpus, scores, yardstick)
        session.parts.batches = batches
        if (before := batches.aids.snapshot) is not None:
            weight, rows = asked.synth.distill, asked.device.loss_rows
            session.parts.objective = SelfDistillation(before, weight, rows)
        kept = ("tokens", "passages", "clusters", "contamination", "duplicate_tokens")
        more = ("overlapping_tokens", "quarantined", "trusted_tokens", "flops")
        told = {name: facts[name] for name in (*kept, *more)}
        told |= {"seconds": seconds, "ratio": settings.ratio, "mode": facts["holdout"]["mode"]}
        report = session.train(selection=told)
        remember(session, asked)
        return report


def remember(session: Session, settings: AqlSettings) -> None:
    """Keep what the run found out about windows beside the scores, if it is to be kept."""
    batches, parts = session.parts.batches, session.parts
    assert isinstance(batches, Selected)
    if settings.choice.remember and batches.aids.visits and parts.device.processes.is_first:
        folder = sidecar.place(session.corpus, request_of(session.corpus, settings.prep))
        visits.write(folder, parts.model.context, batches.aids.visits.table())
