"""Ctrl-C, SIGTERM and a closed terminal ask; the work answers when it can be saved."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any

#: A hang-up is what is left of a lost connection or a closed window; Windows has none.
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


class Interrupt:
    """While it is entered, signals only leave a note, and calling it reads the note.

    A second Ctrl-C leaves at once: what was saved last stands.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._before: dict[int, Any] = {}

    def __call__(self) -> int | None:
        """The number of the signal that was received, if any."""
        return self._number

    def __enter__(self) -> "Interrupt":
        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_IGN:  # as under nohup
                continue
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._number is not None and number == signal.SIGINT:
            os._exit(128 + number)
        self._number = number
