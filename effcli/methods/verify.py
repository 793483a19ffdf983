"""Hash everything again."""

from pathlib import Path
from typing import Any

from effcli.engine.data.corpus import FILE, Corpus
from effcli.engine.runs import checkpoint
from effcli.engine.runs.rundir import CHECKPOINTS, CONFIG
from effcli.errors import CheckError, InputError


def verify(path: Path) -> dict[str, Any]:
    """Check a corpus or every checkpoint of a run."""
    if (path / FILE).exists():
        return _result(path, "corpus", Corpus.open(path, check=False).verify())
    if not (path / CONFIG).exists():
        raise InputError(f"{path} is neither a run nor a corpus")
    places = checkpoint.steps(path / CHECKPOINTS)
    for place in places:
        if reason := checkpoint.damage(place):
            raise CheckError(f"{place} is damaged: {reason}", "--resume will set it aside")
    return _result(path, "run", 4 * len(places))


def _result(path: Path, kind: str, files: int) -> dict[str, Any]:
    return {"schema": 1, "command": "verify", "path": str(path), "kind": kind, "files": files}
