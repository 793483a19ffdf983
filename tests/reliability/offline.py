"""Without a network: text, training and generation, and not one attempt to connect."""

import contextlib
import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from reliability.harness import Tally, command, outcome, training, warm

WATCHED = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}


def _blocked(line: list[Any], told: Path) -> Callable[[], int]:
    """A command in a process in which every attempt to connect is counted, and fails."""

    def work() -> int:
        import effcli.offline

        attempts: list[str] = []

        def refuse(*arguments: Any, **_: Any) -> Any:
            attempts.append(repr(arguments)[:200])
            raise OSError("there is no network in this test")

        def audit(event: str, arguments: Any) -> None:
            # Below Python's own functions, so that nobody can go around what is patched.
            if event in WATCHED:
                refuse(event, arguments)

        effcli.offline._refuse = refuse  # what --offline puts in place of a connection
        sys.addaudithook(audit)
        code = command(*line)()
        told.write_text(json.dumps(attempts), "utf8")
        return code

    return work


def no_network(work: Path, n: int, tally: Tally) -> None:
    """Prepare, train, generate and report, `n` times with --offline and `n` times without."""
    warm(work)
    told = work / "told.json"
    _require_a_trap(work, told)
    for number in range(2 * n):
        corpus, run = work / "corpus", work / "run"
        for folder in (corpus, run):
            shutil.rmtree(folder, ignore_errors=True)
        prepare = ["prepare", "grammar:1", "--max-tokens", "20000", "--out", corpus, "--quiet"]
        generate = ["generate", run, "the ", "--max-new-tokens", "8"]
        generate += ["--set", "device.threads=1"]
        for line in (prepare, training(corpus, run, steps=3), generate, ["report", run]):
            full = [*line, "--offline"] if number % 2 == 0 else line
            told.unlink(missing_ok=True)
            end = outcome(_blocked(full, told), work)
            attempts = json.loads(told.read_text("utf8")) if told.exists() else ["unknown"]
            tally.count("attempts", len(attempts))
            if end.code or attempts:
                tally.see(f"{full[0]}: code {end.code}, {attempts}, {end.err[-300:]!r}")
            else:
                tally.see(None)


def _require_a_trap(work: Path, told: Path) -> None:
    """What is looked for would be seen."""

    def connect() -> int:
        with contextlib.suppress(OSError):
            socket.create_connection(("192.0.2.1", 9), timeout=1)
        return 0

    with patch("reliability.offline.command", lambda *_: connect):
        outcome(_blocked([], told), work)
    if not json.loads(told.read_text("utf8")):
        raise RuntimeError("an attempt to connect was not noticed")
