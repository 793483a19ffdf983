"""What every training command does around its method."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from rich.table import Table

from effcli.commands.mount import Given
from effcli.errors import EffError
from effcli.settings.layers import Resolved
from effcli.ui.console import Screen
from effcli.ui.progress import Watcher
from effcli.ui.tables import plan_tables, report_table


def run_training(command: str, given: Given, screen: Screen) -> None:
    """Resolve the settings, run `effcli.methods.<command>`, and show its report."""
    resolved = _settings(command, given)
    if given.is_dry:
        from effcli.methods.planning import plan_training

        plan = plan_training(resolved)
        screen.result(plan, *plan_tables(plan))
        return
    from effcli.engine.interrupt import Interrupt

    method = import_module(f"effcli.methods.{command}")
    with Interrupt() as stop, Watcher(screen, command) as watch:
        try:
            report = method.run(resolved.settings, watch, stop).as_json()
        except EffError as error:
            if screen.as_json and error.report is not None:
                screen.result(error.report)
            raise
    screen.result(report, report_table(report))
    if resolved.settings.page:
        screen.note(f"the page with plots: {report['run']}/report.html")


def run_watched(
    command: str, place: str, given: Given, screen: Screen, table: Callable[[Any], Table]
) -> None:
    """Run `effcli.methods.<place>`, which takes a while but is no run, and show its document."""
    from effcli.engine.interrupt import Interrupt

    method = import_module(f"effcli.methods.{place}")
    with Interrupt() as stop, Watcher(screen, command) as watch:
        document = method.run(given.resolve().settings, watch, stop)
    screen.result(document, table(document))


def _settings(command: str, given: Given) -> Resolved[Any]:
    """With --resume, the settings are those that the run was begun with."""
    if not given.flags.get("resume"):
        return given.resolve()
    from effcli.methods.resuming import resumed

    return resumed(command, given.cls, given.resolve, given.flags.get("out"))
