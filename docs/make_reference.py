"""Write docs/reference.md from the settings themselves; `--check` only looks whether it is."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from effcli import catalog
from effcli.app import app
from effcli.settings import presets
from effcli.settings.aql import (
    AqlSettings,
    AuditSettings,
    PolicySettings,
    PrepSettings,
    SelectSettings,
)
from effcli.settings.base import Settings
from effcli.settings.baseline import BaselineSettings
from effcli.settings.bench import BenchSettings
from effcli.settings.corpora import CORPORA, MIXES
from effcli.settings.distill import CacheSettings, CheckSettings, DistillSettings, PackSettings
from effcli.settings.export import ExportSettings
from effcli.settings.flags import marked, spelled
from effcli.settings.generate import GenerateSettings
from effcli.settings.prepare import PrepareSettings
from effcli.settings.probe import ProbeSettings
from effcli.settings.qllm import InspectSettings, QllmSettings, WriteSettings
from effcli.settings.reading import DoctorSettings, ReportSettings, VerifySettings
from effcli.settings.train import TrainSettings

PAGE = Path(__file__).with_name("reference.md")
COMMANDS = {
    "eff prepare": PrepareSettings,
    "eff baseline": BaselineSettings,
    "eff aql": AqlSettings,
    "eff aql prep": PrepSettings,
    "eff aql select": SelectSettings,
    "eff aql audit": AuditSettings,
    "eff aql policy train": PolicySettings,
    "eff distill": DistillSettings,
    "eff distill cache": CacheSettings,
    "eff distill pack": PackSettings,
    "eff distill verify": CheckSettings,
    "eff qllm": QllmSettings,
    "eff qllm generate": WriteSettings,
    "eff qllm inspect": InspectSettings,
    "eff qllm probe": ProbeSettings,
    "eff export": ExportSettings,
    "eff generate": GenerateSettings,
    "eff bench": BenchSettings,
    "eff report": ReportSettings,
    "eff verify": VerifySettings,
    "eff doctor": DoctorSettings,
}


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _parent(cls: type[Settings]) -> type[Settings] | None:
    """The class whose settings are told of elsewhere: that of every training command."""
    if cls is BaselineSettings or not issubclass(cls, TrainSettings):
        return None
    return AqlSettings if cls is PolicySettings else TrainSettings


def _rows(cls: type[Settings], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every setting of its own as (name, default, description), groups opened."""
    parent = _parent(cls)
    known = {} if parent is None else parent.model_fields
    for name, field in cls.model_fields.items():
        if name in known and field.description == known[name].description:
            continue
        default = field.default
        if isinstance(default, Settings):
            if not any(isinstance(m, catalog.Registry) for m in field.metadata):
                yield from _rows(type(default), f"{prefix}{name}.")
            continue
        shown = "" if field.is_required() or default in (None, ()) else f"`{default}`"
        yield f"{prefix}{name}", shown, _cell(field.description or "")


def _table(cls: type[Settings], prefix: str = "") -> list[str]:
    flags = {
        dotted: spelled(dotted, flag) for dotted, _, flag in marked(cls) if not flag.positional
    }
    lines = ["| setting | default | |", "|---|---|---|"]
    for name, default, text in _rows(cls, prefix):
        short = name.removeprefix(prefix)
        flag = f"<br>`{flags[short]}`" if short in flags else ""
        lines.append(f"| `{name}`{flag} | {default} | {text} |")
    return [*lines, ""]


def _commands(group: typer.Typer, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and first sentences of all commands; what a group does by itself is its first one."""
    for command in group.registered_commands:
        doc = command.callback.__doc__ if command.callback else None
        yield f"{prefix}{command.name}", (doc or "").splitlines()[0]
    for below in group.registered_groups:
        assert below.typer_instance is not None
        yield from _commands(below.typer_instance, f"{prefix}{below.typer_instance.info.name} ")


def page() -> str:
    """The whole reference."""
    lines = [
        "# Reference",
        "",
        "Made from the code by `make docs`. Every setting can be given with `--set name=value`",
        "or in a TOML file (`--config`); those with a flag have it below their name.",
        "",
        "Budgets: of `steps`, `tokens`, `flops` and `minutes`, the first that is reached ends the",
        "run; giving one replaces those of the preset. `preset` and `recipe` are chosen once:",
        "a settings file that names one cannot be put on top of another.",
        "",
    ]
    lines += [f"- `eff {name}`: {first}" for name, first in _commands(app)]
    lines.append("")
    for title, cls in COMMANDS.items():
        lines += [f"## `{title}`", ""]
        if parent := _parent(cls):
            other = "eff aql" if parent is AqlSettings else "eff baseline"
            lines += [f"Beside those of `{other}`:", ""]
        lines += _table(cls)
    parts = {"model": catalog.MODELS, "optim": catalog.OPTIMIZERS, "schedule": catalog.SCHEDULES}
    for kind, registry in parts.items():
        for name in registry:
            part = registry.load(name)
            lines += [f'## `{kind}.name = "{name}"`', "", part.__doc__ or "", ""]
            lines += _table(part, f"{kind}.")
    lines += [
        "## Presets",
        "",
        "| preset | recipe | tokens | model | batch |",
        "|---|---|---|---|---|",
    ]
    for name in presets.PRESETS:
        preset = presets.read(name)
        model, batch = preset["model"], preset["batch"]
        shape = "{layers} × {width}, {heads} heads, context {context}".format(**model)
        tokens = f"{preset['tokens']:,}"
        lines.append(
            f"| `{name}` | {preset['recipe']} | {tokens} | {shape} | {batch['sequences']} |"
        )
    lines += [
        "",
        "## Named corpora",
        "",
        "| name | hub id | configuration | license | size | tokenizer |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for name, entry in CORPORA.items():
        cells = (entry.hub_id, entry.config or "", entry.license, entry.size, entry.tokenizer)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    lines += ["", "| mix | shares of the tokens |", "|---|---|"]
    for name, mix in MIXES.items():
        shares = ", ".join(f"{part} {share:g}" for part, share in mix.shares.items())
        lines.append(f"| `{name}` | {shares} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or say that it is out of date."""
    text = page()
    if "--check" not in sys.argv:
        PAGE.write_text(text, "utf8")
    elif not PAGE.exists() or PAGE.read_text("utf8") != text:
        print("docs/reference.md is out of date: run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
