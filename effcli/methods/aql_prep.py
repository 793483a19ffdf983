"""Score a corpus before training."""

from typing import Any

from effcli.engine.data.corpus import Corpus, locate
from effcli.engine.records import Notice, Stop, Watch, never, unwatched
from effcli.engine.selection import sidecar
from effcli.engine.selection.assemble import CANNOT_GATE
from effcli.engine.selection.prep import prepared, request_of
from effcli.settings.aql import PrepSettings

_FACTS = ("tokens", "passages", "documents", "contamination", "exponent", "trusted_tokens")
_MORE = ("duplicate_tokens", "overlapping_tokens", "quarantined", "clusters", "seconds", "flops")


def run(settings: PrepSettings, watch: Watch = unwatched, stop: Stop = never) -> dict[str, Any]:
    """The scores of a corpus, made unless they are there."""
    corpus = Corpus.open(locate(settings.corpus))
    folder = sidecar.place(corpus, request_of(corpus, settings.prep))
    is_new = settings.force or not (folder / sidecar.MANIFEST).exists()
    scores = prepared(corpus, settings.prep, watch, stop, again=settings.force)
    if not is_new:
        watch(Notice(f"the scores in {folder} are unchanged; --force makes them again"))
    if not scores.is_trusted:
        watch(Notice(CANNOT_GATE))
    return {
        "schema": 1,
        "command": "aql prep",
        "status": "prepared" if is_new else "unchanged",
        "corpus": str(corpus.folder),
        "scores": str(folder),
        "mode": scores.facts["holdout"]["mode"],
        **{name: scores.facts[name] for name in (*_FACTS, *_MORE)},
    }
