"""One finding, and how a group of them is made without ever failing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "missing"]


@dataclass(frozen=True, slots=True)
class Row:
    """Something about this machine."""

    name: str
    status: Status
    """`note` is worth knowing; without what is `missing`, training cannot work."""
    value: str
    hint: str | None = None
    """What to do about it."""
    number: float | None = None
    """The value for programs, in bytes, FLOP/s or as many as there are."""


Check = Callable[[], Iterator[Row]]


def found(name: str, check: Check) -> list[Row]:
    """The rows of a check; one that breaks says so, since the others may tell why."""
    rows: list[Row] = []
    try:
        rows.extend(check())
    except Exception as error:
        rows.append(Row(name, "note", f"cannot be found out: {type(error).__name__}: {error}"))
    return rows
