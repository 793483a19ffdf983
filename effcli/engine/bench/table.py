"""A table, and the means that stand in it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from effcli.engine.bench.reading import Row
from effcli.safe import safe


@dataclass(frozen=True)
class Table:
    """Rows of text under a head."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    about: str = ""
    texts: frozenset[str] = frozenset(
        {"arm", "what it is", "against", "cost", "verdict", "in FLOPs", "at equal"}
        | {"chosen", "status", "error"}
    )
    """Columns of words; all others are of numbers."""

    def as_markdown(self) -> str:
        """The table alone, without its title."""
        line = ["---" if name in self.texts else "---:" for name in self.head]
        rows = [[escaped(cell) for cell in row] for row in self.rows]
        return "\n".join(f"| {' | '.join(row)} |" for row in [list(self.head), line, *rows])


def escaped(text: str) -> str:
    """Text in Markdown, where it makes no markup, no link and no other cell."""
    plain = " ".join(safe(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*|]|(?<=\])(?=[(\[:]))", r"\\\1", plain)


def mean(cells: Sequence[Row], name: str, shown: Callable[[float], str]) -> str:
    """The mean of what the cells tell of a name, or a dash."""
    values = [cell[name] for cell in cells if cell.get(name) is not None]
    return shown(fmean(values)) if values else "-"
