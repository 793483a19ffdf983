"""A run's folder: what was asked, where it ran, what happened, what came out."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import tomli_w

from effcli import __version__
from effcli.engine.data.write import describe_file
from effcli.engine.records import Record
from effcli.engine.runs.files import read_json, write_json, write_text
from effcli.errors import InputError
from effcli.settings.layers import CONFIG as CONFIG

ENV, RECORDS, REPORT = "env.json", "records.jsonl", "report.json"
TOKENIZER, CHECKPOINTS, PAGE, LOCK = "tokenizer.json", "checkpoints", "report.html", ".lock"
SEAL = "files.json"


def root() -> Path:
    """Where runs live: `runs/`, or what EFF_RUNS says."""
    return Path(os.environ.get("EFF_RUNS") or "runs")


def new_folder(title: str) -> Path:
    """Make the next free folder `<title>-N`."""
    number = 1
    while True:
        folder = root() / f"{title}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def unfinished(command: str) -> Path:
    """The newest run of a command that was begun and has not come to its end."""
    begun = [
        path.parent
        for path in root().glob(f"*/{CONFIG}")
        if _command_of(path.parent) == command and status(path.parent) != "complete"
    ]
    if not begun:
        raise InputError(
            f"there is no unfinished run of {command} in {root()}/", "name it with --out"
        )
    return max(begun, key=lambda folder: (folder / CONFIG).stat().st_mtime_ns)


def _command_of(folder: Path) -> str:
    """The command that made a run; from its name, if it was killed before it could say so."""
    try:
        return str(read_json(folder / ENV)["command"])
    except (InputError, KeyError, TypeError):
        return folder.name.partition("-")[0]


def status(folder: Path) -> str:
    """What a run's report says of it: `complete`, `stopped`, `diverged`; else `unfinished`."""
    try:
        return str(read_json(folder / REPORT)["status"])
    except (InputError, KeyError, TypeError):
        return "unfinished"


class RunDir:
    """Writes and reads one run. Every file is whole; records lose at most their last line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / CHECKPOINTS
        self._records: IO[bytes] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the folder holds a run."""
        return (self.folder / CONFIG).exists()

    def begin(self, command: str, settings: dict[str, Any]) -> None:
        """Write down what was asked for, before anything is done."""
        header = f"# eff {command}; `eff {command} --config` with this file repeats the run.\n"
        write_text(self.folder / CONFIG, header + tomli_w.dumps(settings))

    def describe(self, facts: dict[str, Any]) -> None:
        """Write down where and with what the run is done; one entry per start."""
        try:
            before = read_json(self.folder / ENV)
        except InputError:
            before = {}
        sessions = [*before.get("sessions", []), {"started_at": _now(), "python": sys.version}]
        write_json(self.folder / ENV, {**before, **facts, **environment(), "sessions": sessions})

    def correct(self, facts: dict[str, Any]) -> None:
        """Replace what turned out to be wrong."""
        write_json(self.folder / ENV, {**read_json(self.folder / ENV), **facts})

    def withdraw(self) -> None:
        """Take back what `begin` wrote, where nothing was done."""
        if not (self.folder / ENV).exists():
            for name in (CONFIG, TOKENIZER):
                (self.folder / name).unlink(missing_ok=True)

    def asked(self) -> str:
        """Names what was asked for: the hash of what `begin` wrote."""
        return str(describe_file(self.folder / CONFIG)["sha256"])

    def require_asked(self, before: str | None) -> None:
        """Refuse settings that are not those of a checkpoint, which has their name."""
        if before not in (None, self.asked()):
            hint = "put it back as it was, or start a new run in another --out"
            raise InputError(f"{self.folder / CONFIG} is not what the run was begun with", hint)

    def env(self) -> dict[str, Any]:
        """What `describe` wrote."""
        env = read_json(self.folder / ENV)
        if not isinstance(env, dict):
            raise InputError(f"{self.folder / ENV} is damaged")
        return env

    def append(self, record: Record) -> None:
        """Add a record."""
        if self._records is None:
            self._records = (self.folder / RECORDS).open("ab", buffering=0)
        row = json.dumps(record.as_row(), allow_nan=False).encode() + b"\n"
        while row:  # a disk that is nearly full takes a part, and complains at the next one
            row = row[self._records.write(row) :]

    def position(self) -> int:
        """Bytes of records, all of them on disk."""
        if self._records is not None:
            os.fsync(self._records.fileno())
        path = self.folder / RECORDS
        return path.stat().st_size if path.exists() else 0

    def rewind(self, position: int) -> None:
        """Forget the records after a position: that work is about to be done again."""
        self.close()
        path = self.folder / RECORDS
        if path.exists():
            os.truncate(path, min(position, path.stat().st_size))

    def seal(self) -> None:
        """Write down what the files of a run that has ended hold; reports are made from them."""
        named = (CONFIG, ENV, RECORDS, TOKENIZER)
        described = {name: describe_file(self.folder / name) for name in named}
        write_json(self.folder / SEAL, described)

    def unseal(self) -> None:
        """The run goes on."""
        (self.folder / SEAL).unlink(missing_ok=True)

    def sealed(self) -> dict[str, dict[str, Any]]:
        """What `seal` wrote; empty while a run goes on."""
        seal: dict[str, dict[str, Any]] = {}
        if (self.folder / SEAL).exists():
            seal = read_json(self.folder / SEAL)
        if not isinstance(seal, dict) or not set(seal) <= {CONFIG, ENV, RECORDS, TOKENIZER}:
            raise InputError(f"{self.folder / SEAL} is damaged")
        return seal

    def close(self) -> None:
        """Let go of the records file."""
        if self._records is not None:
            self._records.close()
            self._records = None

    def records(self) -> Iterator[dict[str, Any]]:
        """Every whole record, in order."""
        path = self.folder / RECORDS
        if not path.exists():
            return
        with path.open("rb") as stream:
            for line in stream:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue  # the last line of a run that was killed
                if isinstance(row, dict) and isinstance(row.get("kind"), str):
                    yield row


class Bystander(RunDir):
    """A run's folder for a process that another one writes for."""

    def begin(self, command: str, settings: dict[str, Any]) -> None:
        """Written by the other."""

    def describe(self, facts: dict[str, Any]) -> None:
        """Written by the other."""

    def correct(self, facts: dict[str, Any]) -> None:
        """Written by the other."""

    def withdraw(self) -> None:
        """Written by the other."""

    def append(self, record: Record) -> None:
        """Written by the other."""

    def rewind(self, position: int) -> None:
        """Written by the other."""

    def seal(self) -> None:
        """Written by the other."""

    def unseal(self) -> None:
        """Written by the other."""


def environment() -> dict[str, Any]:
    """Versions and the commit, for whoever wants the same result again."""
    packages = ("torch", "numpy", "datasets", "tiktoken", "safetensors")
    return {
        "eff": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source, when it is run from a checkout."""
    source = Path(__file__).resolve().parents[3]
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
