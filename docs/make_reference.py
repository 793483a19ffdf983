"""Write docs/reference.md from the settings themselves; `--check` only looks whether it is."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from effcli import catalog
from effcli.app import app
from effcli.settings import presets
from effcli.settings.base import Settings
from effcli.settings.baseline import BaselineSettings
from effcli.settings.corpora import CORPORA, MIXES
from effcli.settings.flags import marked
from effcli.settings.generate import GenerateSettings
from effcli.settings.prepare import PrepareSettings

PAGE = Path(__file__).with_name("reference.md")
COMMANDS = {
    "eff prepare": PrepareSettings,
    "eff baseline": BaselineSettings,
    "eff generate": GenerateSettings,
}


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _rows(cls: type[Settings], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every setting as (name, default, description), groups opened."""
    for name, field in cls.model_fields.items():
        default = field.default
        if isinstance(default, Settings):
            if not any(isinstance(m, catalog.Registry) for m in field.metadata):
                yield from _rows(type(default), f"{prefix}{name}.")
            continue
        shown = "" if field.is_required() or default in (None, ()) else f"`{default}`"
        yield f"{prefix}{name}", shown, _cell(field.description or "")


def _table(cls: type[Settings], prefix: str = "") -> list[str]:
    flags = {dotted for dotted, _, flag in marked(cls) if not flag.positional}
    lines = ["| setting | default | |", "|---|---|---|"]
    for name, default, text in _rows(cls, prefix):
        short = name.removeprefix(prefix)
        flag = f"<br>`--{short.rpartition('.')[2].replace('_', '-')}`" if short in flags else ""
        lines.append(f"| `{name}`{flag} | {default} | {text} |")
    return [*lines, ""]


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
    for command in app.registered_commands:
        first = (command.callback.__doc__ or "").splitlines()[0] if command.callback else ""
        lines.append(f"- `eff {command.name}`: {first}")
    lines.append("")
    for title, cls in COMMANDS.items():
        lines += [f"## `{title}`", "", *_table(cls)]
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
