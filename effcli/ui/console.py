"""Where output goes: results to stdout, everything else to stderr."""

import json
import os
import sys
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from effcli.errors import EffError
from effcli.safe import safe, safe_json


class _Stream(Console):
    """A console whose reader may leave: the work goes on, unseen."""

    def __init__(self, *, stderr: bool, soft_wrap: bool = False) -> None:
        super().__init__(
            stderr=stderr, soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False
        )

    def on_broken_pipe(self) -> None:
        """Say no more, instead of ending the program."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


class Screen:
    """The two streams of a command, as its flags want them."""

    def __init__(
        self, as_json: bool = False, *, quiet: bool = False, is_heard: bool = True
    ) -> None:
        self.as_json, self.quiet, self._is_heard = as_json, quiet, is_heard
        self.out = _Stream(stderr=False)
        self.err = _Stream(stderr=True)

    def result(self, document: Any, *drawn: RenderableType) -> None:
        """Show a result: as one JSON document, or drawn for people."""
        if not self._is_heard:
            return
        if self.as_json:
            text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
            print(safe_json(text))
        else:
            for piece in drawn:
                self.out.print(piece)

    def note(self, text: str, style: str = "dim") -> None:
        """Say something beside the result."""
        if not self.quiet:
            self.err.print(Text(safe(text), style))


def show_error(error: EffError) -> None:
    """One line, and what to do next."""
    message = " ".join(safe(error.message).split())
    console = _Stream(stderr=True, soft_wrap=True)
    console.print(Text.assemble((f"{error.label}: ", "bold red"), message))
    if error.hint:
        console.print(Text.assemble(("hint: ", "bold"), " ".join(safe(error.hint).split())))


def flush() -> None:
    """Make sure that a closed pipe is noticed here, and not at the interpreter's end."""
    sys.stdout.flush()
    sys.stderr.flush()
