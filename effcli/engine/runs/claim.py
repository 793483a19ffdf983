"""A folder for a run, held as long as the run is worked on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from effcli.engine.data.corpus import Corpus
from effcli.engine.processes import Processes
from effcli.engine.runs.lock import locked
from effcli.engine.runs.rundir import LOCK, TOKENIZER, Bystander, RunDir, new_folder
from effcli.errors import InputError
from effcli.settings.layers import storable
from effcli.settings.train import TrainSettings


@contextmanager
def claimed(
    command: str, settings: TrainSettings, corpus: Corpus, processes: Processes
) -> Iterator[RunDir]:
    """The run's folder. The first process claims it; the others only look into it."""
    if not processes.is_first:
        found = processes.first(None)
        if found is None:
            raise InputError("the first process did not begin")
        yield Bystander(Path(found))
        return
    told = False
    try:
        folder = settings.out or new_folder(f"{command}-{settings.preset}")
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK, f"the run in {folder}"):
            run = _begun(command, settings, corpus, folder)
            processes.first(str(folder))
            told = True
            try:
                yield run
            finally:
                run.close()
    finally:
        if not told:
            processes.first(None)


def _begun(command: str, settings: TrainSettings, corpus: Corpus, folder: Path) -> RunDir:
    run = RunDir(folder)
    if run.has_begun and not settings.resume:
        hint = "continue it with --resume, or choose another --out"
        raise InputError(f"{folder} holds a run already", hint)
    if not run.has_begun:
        # A tokenizer alone is what a run leaves that was killed before it began.
        others = (path.name for path in folder.iterdir() if path.name != TOKENIZER)
        if any(not name.startswith(".") for name in others):
            raise InputError(f"{folder} holds something else", "choose another --out")
        corpus.tokenizer.save(folder / TOKENIZER)
        # By its full path: a run goes on from any folder, whatever was prepared since.
        where: dict[str, Any] = {"data": corpus.data}
        for name in settings.RUNS:
            where[name] = [str(path.resolve()) for path in getattr(settings, name)]
        run.begin(command, {**storable(settings), **where})
    return run
