"""Train a phase model, and find one."""

from contextlib import suppress
from pathlib import Path

from effcli.engine.records import Stop, Watch, never, unwatched
from effcli.engine.runs.report import Report
from effcli.engine.runs.rundir import CHECKPOINTS, root
from effcli.engine.session import Session
from effcli.errors import InputError
from effcli.settings.layers import CONFIG, read_toml
from effcli.settings.qllm import QllmSettings


def run(settings: QllmSettings, watch: Watch = unwatched, stop: Stop = never) -> Report:
    """One run of a phase model, or of the GPT that it is compared with."""
    with Session("qllm", settings, watch, stop) as session:
        return session.train()


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
