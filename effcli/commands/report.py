"""`eff report`."""

from pathlib import Path

from effcli.commands.mount import Given
from effcli.errors import InputError, ResourceError
from effcli.ui.console import Screen
from effcli.ui.tables import comparison_table, report_table


def report(given: Given, screen: Screen) -> None:
    """Rebuild the report of a run, or compare several; the first one is the reference."""
    settings = given.resolve().settings
    from effcli.methods.report import compare, rebuild

    if len(settings.runs) == 1:
        if settings.out is not None:
            raise InputError("out: has no effect, the report of a single run stays in its folder")
        document, failure = rebuild(settings.runs[0])
        screen.result(document, report_table(document))
        _require(failure, f"the report could not be written to {document['run']}", "report a copy")
        screen.note(f"the page with plots: {document['run']}/report.html")
        return
    comparison, failure = compare(settings.runs, settings.out or Path("comparison.html"))
    screen.result(comparison, comparison_table(comparison))
    for note in comparison["notes"]:
        screen.note(note)
    _require(
        failure, f"the page could not be written to {comparison['page']}", "give another --out"
    )
    screen.note(f"the page with plots: {comparison['page']}")


def _require(failure: OSError | None, message: str, instead: str) -> None:
    """Whoever cannot write has seen the table by now."""
    if failure is not None:
        hint = f"make room or change the permissions, or {instead}"
        raise ResourceError(f"{message}: {failure.strerror or failure}", hint)
