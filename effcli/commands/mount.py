"""One way to make a command from a settings class and a body."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from effcli import launch
from effcli.errors import InputError
from effcli.offline import go_offline
from effcli.settings.base import Settings
from effcli.settings.flags import collect, parameters
from effcli.settings.layers import Resolved, resolve
from effcli.ui.console import Screen

_PANEL = "Every command"


@dataclass(frozen=True)
class Given:
    """What stood on the command line."""

    cls: type[Settings]
    flags: dict[str, Any]
    assignments: list[str]
    config: Path | None
    is_dry: bool

    def resolve(self, config: Path | None = None) -> Resolved[Any]:
        """The settings, all layers put together; `config` stands in for a file not given."""
        return resolve(self.cls, self.flags, self.assignments, self.config or config)


Body = Callable[[Given, Screen], None]


def mount(
    app: typer.Typer,
    name: str,
    cls: type[Settings],
    body: Body,
    *,
    has_plan: bool = False,
    in_parallel: bool = False,
) -> None:
    """Add a command to the app. Its help is the body's docstring and the fields' docstrings.

    One that runs `in_parallel` may be started by torchrun; the first process speaks for all.
    """
    app.command(name)(_command(name, cls, body, has_plan, in_parallel))


def mount_group(
    app: typer.Typer,
    name: str,
    cls: type[Settings],
    body: Body,
    main: str,
    *,
    in_parallel: bool = False,
) -> typer.Typer:
    """Add a command that has others below it, and does `main`, one of them, by itself."""
    group = typer.Typer(name=name, help=inspect.getdoc(body))
    run = _command(name, cls, body, True, in_parallel)

    def alone(context: typer.Context, **values: Any) -> None:
        if context.invoked_subcommand is None:
            run(**values)
        elif given := [name for name, value in values.items() if value]:
            flag = given[0].replace("_", "-")
            hint = f"write it behind {context.invoked_subcommand}"
            raise InputError(f"--{flag} stands before {context.invoked_subcommand}", hint)

    signature = inspect.signature(run)
    here = inspect.Parameter(
        "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )
    alone.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[here, *signature.parameters.values()]
    )
    alone.__doc__ = run.__doc__
    group.callback(invoke_without_command=True)(alone)
    group.command(main)(run)
    app.add_typer(group)
    return group


def _command(
    name: str, cls: type[Settings], body: Body, has_plan: bool, in_parallel: bool
) -> Callable[..., None]:
    def run(**values: Any) -> None:
        if not (in_parallel or launch.is_alone()):
            raise InputError(f"eff {name} is the work of one process", "start it without torchrun")
        if values["offline"]:
            go_offline()
        given = Given(
            cls,
            collect(cls, values),
            values["set"] or [],
            values["config"],
            bool(values.get("dry_run")),
        )
        is_heard = launch.rank() == 0
        screen = Screen(values["json"], quiet=values["quiet"] or not is_heard, is_heard=is_heard)
        body(given, screen)

    shared = [p for p in _SHARED if has_plan or p.name != "dry_run"]
    run.__signature__ = inspect.Signature([*parameters(cls), *shared])  # type: ignore[attr-defined]
    run.__doc__ = inspect.getdoc(body)
    return run


def _option(name: str, kind: Any, default: Any, help_text: str, metavar: str | None) -> Any:
    flag = f"--{name.replace('_', '-')}"
    option = typer.Option(
        flag, help=help_text, metavar=metavar, show_default=False, rich_help_panel=_PANEL
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


_SHARED = [
    _option("config", Optional[Path], None, "Settings from a TOML file, or of a run.", "FILE"),
    _option(
        "set", Optional[list[str]], None, "Any other setting, as in model.layers=4.", "NAME=VALUE"
    ),
    _option("dry_run", bool, False, "Show settings and costs, and do nothing.", ""),
    _option("json", bool, False, "Print the result as one JSON document.", ""),
    _option("quiet", bool, False, "No progress and no notes.", ""),
    _option("offline", bool, False, "Refuse every network connection.", ""),
    _option("debug", bool, False, "Show the traceback of an error.", ""),
]
