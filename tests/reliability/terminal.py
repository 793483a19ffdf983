"""Hostile text on its way to a terminal: no byte of it may control anything."""

import os
import pty
import random
import re
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from reliability.harness import Tally, command, fork, prepared, training, wait, warm

ATOMS = (
    "\x1b[31m",
    "\x1b[2J\x1b[H",
    "\x1b]52;c;cm0gLXJmIH4=\x07",
    "\x1b]8;;http://example.org\x1b\\text\x1b]8;;\x1b\\",
    "\x1b]0;title\x07",
    "\x1bP1$r\x1b\\",
    "\x1bc",
    "\x9b31m",
    "\x9d52;c;YQ==\x9c",
    "\x90q\x9c",
    "\x85",
    "\x7f\x7f",
    "\x00",
    "\r\x0b\x0c\x08\x08",
    "\x0e\x0f\x05",
    "\u202etxt.exe\u202c",
    "\u2066\u2067\u2069\u200e\u200f\u061c",
    "\ud800",
    "\udcff\udfff",
    "\u0301" * 300,
    "[bold red]markup[/]",
    "[link=http://example.org]x[/link]",
    ":skull:",
    "日本語",
    "\U0001f469\u200d\U0001f467",
)
MARK = "\u2042"
FOREIGN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
OWN = re.compile("\x1b\\[(?:0|1|2|1;31|2;39)m")
"""The program's styles. No hostile text has one of them, so one that comes through is seen."""
COMMANDS = 20  # only each one of so many strings also goes through whole command lines


def strings(n: int, dice: random.Random) -> Iterator[str]:
    """Hostile strings, each of a few hostile parts among letters."""
    for _ in range(n):
        parts = [dice.choice((*ATOMS, "abc ", "x")) for _ in range(dice.randrange(1, 7))]
        yield "a" + "".join(parts)


def _mark(number: int) -> None:
    """What follows belongs to this string."""
    os.write(1, f"{MARK}{number}{MARK}".encode())


def _show(texts: list[str], run: Path) -> Callable[[], int]:
    """Everything that can bring text to a terminal, as work for a child."""

    def stream(*_: Any) -> Iterator[str]:
        for number, text in enumerate(texts):
            _mark(number)
            yield text
        _mark(len(texts))

    def work() -> int:
        from effcli.errors import InputError
        from effcli.ui.console import Screen, show_error

        # What a model writes comes from bytes: it can hold anything but halves of characters.
        with patch("effcli.methods.generate.stream", stream):
            command("generate", run, "a")()
        written = [(text, "length") for text in texts]
        with patch("effcli.methods.generate.texts", lambda *_: [written]):
            _mark(len(texts))
            command("generate", run, "a", "--num-return-sequences", "2")()
            command("generate", run, "a", "--json")()
        for number, text in enumerate(texts):
            _mark(number)
            show_error(InputError(text, hint=text))
            Screen(as_json=False, quiet=False).note(text)
            Screen(as_json=True, quiet=False).result({text: text})
            if number % COMMANDS == 0 and "\0" not in text:  # no command line can hold that
                for line in (["verify", text], ["prepare", text, "--quiet"], [text]):
                    command(*line)()
                command("verify", run, "--set", f"{text}={text}")()
        return 0

    return work


def _through_a_pty(work: Callable[[], int]) -> bytes:
    """What a child says to a terminal that it takes for one with colors."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    said = bytearray()

    def read() -> None:
        while True:
            try:
                data = os.read(master, 2**16)
            except OSError:  # the last other end was closed
                return
            if not data:
                return
            said.extend(data)

    def connected() -> int:
        os.environ.update(TERM="xterm-256color", COLUMNS="100")
        for number in (1, 2):
            os.dup2(slave, number)
        os.close(slave)
        os.close(master)
        return work()

    child = fork(connected)
    os.close(slave)
    reader = threading.Thread(target=read)
    reader.start()
    code = wait(child)
    reader.join(10)
    os.close(master)
    if code:
        raise RuntimeError(f"exit code {code}: {bytes(said[-300:])!r}")
    return bytes(said)


def _through_a_file(work: Callable[[], int], place: Path) -> bytes:
    """What a child says to a file that takes both of its streams."""

    def joined() -> int:
        os.dup2(1, 2)
        return work()

    if code := wait(fork(joined, place)):
        raise RuntimeError(f"exit code {code}")
    return (place / ".stdout").read_bytes()


def _foreign(said: bytes) -> dict[int, str]:
    """What should not have come through, by the number of its string."""
    text = OWN.sub("", said.decode("utf8", errors="surrogateescape"))
    found: dict[int, str] = {}
    _, *parts = text.split(MARK)
    for number, part in zip(parts[::2], parts[1::2], strict=True):
        bad = FOREIGN.search(part) or re.search("[\ud800-\udfff]", part)
        if bad:
            found[int(number)] = ascii(part[max(0, bad.start() - 40) : bad.end() + 20])
    return found


def hostile_strings(work: Path, n: int, tally: Tally) -> None:
    """Show every string in every way, on a terminal and in a file."""
    warm(work)
    run = work / "run"
    command_line = training(prepared(work), run, steps=1)
    wait(fork(command(*command_line)))
    texts = list(strings(n, random.Random(8)))
    show = _show(texts, run)
    for name, said in (("terminal", _through_a_pty(show)), ("file", _through_a_file(show, work))):
        tally.facts[f"bytes to a {name}"] = len(said)
        found = _foreign(said)
        for number in range(len(texts) + 1):  # one more for what shows all of them at once
            tally.see(f"{name}: {found[number]}" if number in found else None)
