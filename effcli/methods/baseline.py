"""Train, with nothing clever about it."""

from effcli.engine.records import Stop, Watch, never, unwatched
from effcli.engine.runs.report import Report
from effcli.engine.session import Session
from effcli.settings.baseline import BaselineSettings


def run(settings: BaselineSettings, watch: Watch = unwatched, stop: Stop = never) -> Report:
    """One plain run."""
    with Session("baseline", settings, watch, stop) as session:
        return session.train()
