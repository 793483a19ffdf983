"""Choose without training."""

from typing import Any

from effcli.engine.data.corpus import Corpus, locate
from effcli.engine.records import Notice, Stop, Watch, never, unwatched
from effcli.engine.runs.lock import locked
from effcli.engine.selection import view
from effcli.engine.selection.assemble import CANNOT_GATE, selector_of
from effcli.engine.selection.prep import prepared
from effcli.engine.selection.selectors import CAUTIOUS
from effcli.engine.selection.view_page import write_page
from effcli.settings.aql import SelectSettings
from effcli.settings.corpora import root


def run(settings: SelectSettings, watch: Watch = unwatched, stop: Stop = never) -> dict[str, Any]:
    """A corpus of the chosen documents, made unless it is there."""
    corpus = Corpus.open(locate(settings.data))
    name = f"{corpus.name}-{settings.selector}-{settings.ratio:g}"
    folder = settings.out or root() / name
    folder = folder if folder.name else folder.resolve()  # so that `.` has a name, too
    request = view.describe(corpus, settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock"), f"the view in {folder}"):
        is_new = not view.is_there(folder, request)
        scores = prepared(corpus, settings.prep, watch, stop)
        if selector_of(settings.selector, scores) is CAUTIOUS:
            watch(Notice(CANNOT_GATE))
        picked = view.pick(corpus, scores, settings)
        if is_new:
            view.write(picked, folder, request, stop)
        document = {
            "schema": 1,
            "command": "aql select",
            "status": "selected" if is_new else "unchanged",
            "corpus": str(folder),
            "of": str(corpus.folder),
            "selector": settings.selector,
            "ratio": settings.ratio,
            **picked.facts(),
            "numbers": str(folder / view.NUMBERS),
            "text": str(folder / view.TEXT),
        }
        page = str(write_page(picked, folder, document)) if settings.report else None
    return {**document, "page": page}
