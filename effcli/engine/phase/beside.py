"""The GPT that a phase model is compared with, if there is one."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from effcli.engine.records import BesideFound
from effcli.engine.runs.report import report_of
from effcli.engine.runs.rundir import RunDir, root, status
from effcli.errors import InputError
from effcli.settings.layers import CONFIG, read_toml, storable
from effcli.settings.model import GPTSettings
from effcli.settings.train import TrainSettings

_BUDGET = ("steps", "tokens", "flops", "minutes")
_READ = (*_BUDGET, "recipe", "seed", "text_share", "batch", "grow", "grow_depth")
_SHAPE = set(GPTSettings.model_fields) - {"name", "positions"}


def equal_gpt(settings: TrainSettings, corpus: str) -> BesideFound | None:
    """The newest complete run of a GPT of equal size, text, order and budget; by its report."""
    wanted = _compared(storable(settings))
    found = []
    for path in root().glob(f"*/{CONFIG}"):
        with suppress(InputError, KeyError, TypeError):
            config, env = read_toml(path), RunDir(path.parent).env()
            is_gpt = config["model"]["name"] == "gpt" and env["corpus"]["hash"] == corpus
            if is_gpt and status(path.parent) == "complete" and _compared(config) == wanted:
                found.append(path.parent)
    if not found:
        return None
    report = report_of(max(found, key=lambda run: (run / CONFIG).stat().st_mtime_ns))
    if report.held_out is None:
        return None
    held_out = report.held_out.model_dump()
    facts = {"run": report.run, "parameters": report.parameters, "held_out": held_out}
    return BesideFound(facts)


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal for a comparison."""
    shape = {name: value for name, value in config["model"].items() if name in _SHAPE}
    return {**{name: config.get(name) for name in _READ}, "model": shape}
