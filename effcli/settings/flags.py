"""Flags made from settings classes, so that a setting is declared once."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Optional, get_args

import typer
from pydantic.fields import FieldInfo

from effcli.settings.base import Flag, Settings


def marked(cls: type[Settings], prefix: str = "") -> Iterator[tuple[str, FieldInfo, Flag]]:
    """Every field that has a flag, as (dotted name, field, flag), in the order of the class."""
    for name, field in cls.model_fields.items():
        if flag := next((m for m in field.metadata if isinstance(m, Flag)), None):
            yield prefix + name, field, flag
        default = field.default
        if isinstance(default, Settings):
            yield from marked(type(default), f"{prefix}{name}.")


def parameters(cls: type[Settings]) -> list[inspect.Parameter]:
    """The command-line parameters of a settings class. None means: not given."""
    return [_parameter(name, field, flag) for name, field, flag in marked(cls)]


def collect(cls: type[Settings], given: dict[str, Any]) -> dict[str, Any]:
    """The values that were given on the command line, by dotted name."""
    values = {name: given.get(_identifier(name, flag)) for name, _, flag in marked(cls)}
    return {name: value for name, value in values.items() if value not in (None, [])}


def spelled(name: str, flag: Flag) -> str:
    """How the flag of a field is written, dashes and all."""
    return f"--{_identifier(name, flag).replace('_', '-')}"


def _identifier(name: str, flag: Flag) -> str:
    return flag.name.replace("-", "_") if flag.name else name.rpartition(".")[2]


def _parameter(name: str, field: FieldInfo, flag: Flag) -> inspect.Parameter:
    identifier = _identifier(name, flag)
    help_text = " ".join((field.description or "").split())
    kind: Any = Optional[str]
    if field.annotation is bool:
        kind = Optional[bool]
    elif "tuple" in str(field.annotation):
        kind = Optional[list[str]]
    if flag.positional:
        info: Any = typer.Argument(
            metavar=flag.metavar,
            help=help_text,
            show_default=False,
            autocompletion=_completion(flag),
        )
    else:
        info = typer.Option(
            *_names(spelled(name, flag), flag, field),
            help=f"{help_text}{_default(flag, field)}",
            metavar=_metavar(flag, field),
            show_default=False,
            rich_help_panel=flag.panel,
            autocompletion=_completion(flag),
        )
    return inspect.Parameter(
        identifier,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind, info],
    )


def _names(dashed: str, flag: Flag, field: FieldInfo) -> list[str]:
    if field.annotation is bool and flag.has_negation:
        dashed += f"/--no-{dashed[2:]}"
    return [dashed, flag.short] if flag.short else [dashed]


def _metavar(flag: Flag, field: FieldInfo) -> str | None:
    if field.annotation is bool:
        return ""
    if flag.metavar:
        return flag.metavar
    if flag.choices and not callable(flag.choices):
        return "|".join(flag.choices)
    plain = [a for a in (get_args(field.annotation) or (field.annotation,)) if a is not type(None)]
    names: dict[Any, str] = {int: "N", float: "X", Path: "PATH"}
    return names.get(plain[0], "TEXT")


def _default(flag: Flag, field: FieldInfo) -> str:
    """The default as the help shows it; typer's own way would put it into parentheses."""
    value = flag.default or (None if field.is_required() else field.default)
    return "" if value in (None, False, ()) else f" [dim]\\[default: {value}][/dim]"


def _completion(flag: Flag) -> Callable[[str], list[str]] | None:
    choices = flag.choices
    if not choices:
        return None

    def complete(incomplete: str) -> list[str]:
        names = choices() if callable(choices) else choices
        # A shell shows them as they are, so a folder whose name controls a terminal is no proposal.
        return [name for name in names if name.startswith(incomplete) and name.isprintable()]

    return complete
