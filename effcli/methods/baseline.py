"""Train, with nothing clever about it."""

from effcli.engine.optim.optimizer import Optimizer
from effcli.engine.records import Stop, Watch, never, unwatched
from effcli.engine.runs.report import Report
from effcli.engine.session import Session
from effcli.methods.tune import tune
from effcli.settings.baseline import BaselineSettings


def run(settings: BaselineSettings, watch: Watch = unwatched, stop: Stop = never) -> Report:
    """One plain run, on request with the best of several learning rates and decays."""
    with Session("baseline", settings, watch, stop) as session:
        if not settings.tune:
            return session.train()
        with session.log.aside():
            better, tuning = tune(session.run.folder / "tuning", settings, watch, stop)
        session.parts.optimizer = Optimizer(session.parts.model, better.optim)
        return session.train(tuning=tuning.model_dump())
