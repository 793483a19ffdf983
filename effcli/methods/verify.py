"""Hash everything again."""

from pathlib import Path
from typing import Any

from effcli.engine.data.corpus import Corpus
from effcli.engine.data.write import describe_file
from effcli.engine.runs import checkpoint
from effcli.engine.runs.files import read_json
from effcli.engine.runs.report import report_of
from effcli.engine.runs.rundir import CHECKPOINTS, CONFIG, REPORT, RunDir
from effcli.errors import CheckError, InputError
from effcli.settings.corpora import CORPUS_FILE


def verify(path: Path) -> dict[str, Any]:
    """Check a corpus, or the checkpoints of a run and, if it has ended, its other files."""
    if (path / CORPUS_FILE).exists():
        return _result(path, "corpus", Corpus.verified(path)[1])
    if not (path / CONFIG).exists():
        raise InputError(f"{path} is neither a run nor a corpus")
    places, sealed = checkpoint.steps(path / CHECKPOINTS), RunDir(path).sealed()
    if not places and not sealed:
        raise InputError(f"there is nothing to check in {path} yet", "the run saved nothing so far")
    damaged = [f"{place.name}: {why}" for place in places if (why := checkpoint.damage(place))]
    hint = "--resume will use the newest whole checkpoint" if damaged else None
    for name, described in sealed.items():
        if not (path / name).is_file() or describe_file(path / name) != described:
            damaged.append(f"{name} is not what was written")
    if sealed and not damaged and not _tells_the_records(path):
        damaged.append(f"{REPORT} does not follow from the records")
        hint = f"eff report {path} makes it again"
    if damaged:
        raise CheckError(f"{path} is damaged: {'; '.join(damaged)}", hint)
    return _result(path, "run", 4 * len(places) + len(sealed) + bool(sealed))


def _tells_the_records(path: Path) -> bool:
    """Whether the report is what the run's records make it; the folder may have moved."""
    try:
        kept = read_json(path / REPORT)
    except InputError:
        return False
    known = {"tail": None, **kept, "run": str(path)}  # older reports have no tail
    return bool(known == report_of(path).as_json())


def _result(path: Path, kind: str, files: int) -> dict[str, Any]:
    return {"schema": 1, "command": "verify", "path": str(path), "kind": kind, "files": files}
