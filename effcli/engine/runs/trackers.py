"""The trackers: one small class each, entered in the catalog, opened in a process of its own.

Their libraries print, start threads, wait for networks and register work for the end of the
program. None of that may touch a run, so `tracking.py` starts `serve` in a child process and
only ever writes lines to it.
"""

import json
import os
import sys
import threading
import time
import uuid
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

from effcli.offline import go_offline, is_offline
from effcli.registry import resolve_place

Config = dict[str, Any]
PROJECT = "eff"
GRACE_SECONDS = 10.0
"""For a tracker to finish when the run's process was killed."""


class Tracker(Protocol):
    """What a tracker does. Opening one may continue what an earlier process wrote."""

    needs: ClassVar[tuple[str, ...]]
    """The modules that must be installed."""

    def __init__(self, folder: Path, config: Config, first: int) -> None:
        """Open the run in `folder`; steps from `first` on are about to be written, or again."""
        ...

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add figures of a step."""
        ...

    def close(self) -> None:
        """Flush everything."""
        ...


class TensorBoard:
    """Event files in RUN/tensorboard; `tensorboard --logdir RUN` shows them."""

    needs = ("tensorboard",)

    def __init__(self, folder: Path, config: Config, first: int) -> None:
        # Its own writer, since torch's imports all of torch for the same bytes.
        event = import_module("tensorboard.compat.proto.event_pb2")
        summary = import_module("tensorboard.compat.proto.summary_pb2")
        files = import_module("tensorboard.summary.writer.event_file_writer")
        self._event, self._summary = event.Event, summary.Summary
        self._file = files.EventFileWriter(str(folder / "tensorboard"), flush_secs=10)
        started = event.SessionLog(status=event.SessionLog.START)
        # What an earlier process wrote of these steps is void: they are done again.
        self._file.add_event(self._event(wall_time=time.time(), step=first, session_log=started))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add scalars."""
        scalars = [self._summary.Value(tag=n, simple_value=v) for n, v in values.items()]
        content = self._summary(value=scalars)
        self._file.add_event(self._event(wall_time=time.time(), step=step, summary=content))

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()


class Wandb:
    """Weights & Biases, its files in RUN/wandb; WANDB_MODE, WANDB_PROJECT and its login apply."""

    needs = ("wandb",)

    def __init__(self, folder: Path, config: Config, first: int) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # goes to somebody else
        wandb: Any = import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=folder.resolve().name,
            id=_kept_id(folder / "wandb" / "run-id"),
            resume="allow",
            dir=str(folder),
            config=config,
            settings=wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                disable_code=True,
                disable_git=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add metrics; what it has of earlier steps stays."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Wait until it has everything."""
        self._run.finish()


def _kept_id(path: Path) -> str:
    """The name that the service knows this run by: made once, so that resuming continues it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex, "utf8")
    return path.read_text("utf8").strip()


class Trackio:
    """A local database in RUN/trackio, unless TRACKIO_DIR or TRACKIO_SPACE_ID says otherwise."""

    needs = ("trackio",)

    def __init__(self, folder: Path, config: Config, first: int) -> None:
        os.environ.setdefault("TRACKIO_DIR", str((folder / "trackio").resolve()))
        trackio: Any = import_module("trackio")
        self._run = trackio.init(
            project=PROJECT,
            name=folder.resolve().name,
            config=config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add metrics."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Wait until it has everything."""
        self._run.finish()


def serve() -> None:
    """The child: open the tracker that the first line names, write what the others say.

    Its last word, one line, is why it failed; a library's own words go nowhere.
    """
    if is_offline():
        go_offline()
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    voice, silence = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    tracker: Tracker | None = None
    try:
        about = json.loads(sys.stdin.buffer.readline())
        for line in sys.stdin.buffer:
            step, values = json.loads(line)
            if tracker is None:
                cls = resolve_place(about["place"])
                tracker = cls(Path(about["folder"]), about["config"], step)
            tracker.write(step, values)
        if tracker is not None:
            tracker.close()
    except BaseException as error:
        why = str(error).strip() or type(error).__name__
        os.write(voice, why.splitlines()[0].encode("utf8", "replace")[:300])
        os._exit(1)  # what the library wants to do at the end would be about nothing


def _leave_with(parent: int) -> None:
    """End soon after the run's process, also where a tracker hangs and would not notice."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(GRACE_SECONDS)
    os._exit(1)
