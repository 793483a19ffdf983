"""Reports of finished runs, made again or beside each other."""

from pathlib import Path
from typing import Any

from effcli.engine.runs.compare import compare as compare_runs
from effcli.engine.runs.compare import write_comparison
from effcli.engine.runs.page import write_page
from effcli.engine.runs.report import report_of
from effcli.errors import InputError

PAGE_MARK = b'<meta name="generator" content="eff">'


def require_ours(page: Path) -> None:
    """Refuse to overwrite what is no page of eff."""
    if page.exists() and not (page.is_file() and PAGE_MARK in page.read_bytes()[:2048]):
        message = f"{page} is not a page of eff, and is not overwritten"
        raise InputError(message, "choose another --out")


def rebuild(folder: Path) -> tuple[dict[str, Any], OSError | None]:
    """Make a run's `report.json` and `report.html` again, from its folder alone.

    Also says why they could not be written: a run of somebody else's can be looked at, too.
    """
    report = report_of(folder)
    try:
        report.write()
        write_page(folder, report)
    except OSError as error:
        return report.as_json(), error
    return report.as_json(), None


def compare(folders: tuple[Path, ...], page: Path) -> tuple[dict[str, Any], OSError | None]:
    """Compare runs, and draw them on a page; also says why that could not be written."""
    require_ours(page)
    comparison = {**compare_runs(list(folders)), "page": str(page)}
    try:
        write_comparison(comparison, page)
    except OSError as error:
        return comparison, error
    return comparison, None
