"""The failures that are expected, and the exit code of each.

EffError
├── InputError     2  a setting, file, corpus, run or name is unknown, damaged or out of range
├── ResourceError  3  disk, memory, permission, lock or network
├── CheckError     4  something that was asked to be checked does not hold
├── DivergedError  5  a loss or gradient is not finite
└── Stopped   128+N   a signal asked for the end; what was done is saved
"""

from typing import Any, ClassVar


class EffError(Exception):
    """What happened, in one line, and what to do about it."""

    exit_code: ClassVar[int] = 1
    label: ClassVar[str] = "error"

    def __init__(
        self, message: str, hint: str | None = None, report: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.report = report
        """What a run that ended this way came to, as `--json` prints it."""


class InputError(EffError):
    """Something given to a command is unknown, damaged, out of range or does not fit."""

    exit_code = 2


class ResourceError(EffError):
    """The machine cannot give what is needed: disk, memory, permission, lock or network."""

    exit_code = 3


class OutOfMemory(ResourceError):
    """A run is too large for this machine; another one need not be."""


class CheckError(EffError):
    """Something that was asked to be checked does not hold."""

    exit_code = 4


class DivergedError(EffError):
    """A loss or gradient is not finite."""

    exit_code = 5


class Stopped(EffError):
    """A signal asked for the end; what was done until then is saved."""

    label = "stopped"

    def __init__(
        self,
        signal_number: int,
        message: str,
        hint: str | None = None,
        report: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint, report)
        self.signal_number = signal_number

    @property
    def code(self) -> int:
        """The shell's convention: 129 after a hang-up, 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signal_number
