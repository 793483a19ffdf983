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
        if failure is not None:
            message = f"the report could not be written to {document['run']}: {failure.strerror}"
            raise ResourceError(message, "make room or change its permissions, or report a copy")
        screen.note(f"the page with plots: {document['run']}/report.html")
        return
    comparison = compare(settings.runs, settings.out or Path("comparison.html"))
    screen.result(comparison, comparison_table(comparison))
    for note in comparison["notes"]:
        screen.note(note)
    screen.note(f"the page with plots: {comparison['page']}")
