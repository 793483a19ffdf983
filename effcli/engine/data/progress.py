"""How far a preparation is."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """What is saved beside the unfinished shards."""

    request: dict[str, Any]
    stamps: list[Any]
    """What each source looked like when the preparation began."""
    step: int = 0
    """The pass over the sources that is being done."""
    positions: list[int] = field(default_factory=list)
    """Documents taken from each source in this pass."""
    drawn: int = 0
    tokens: list[int] = field(default_factory=list)
    """Tokens taken from each source in this pass."""
    rows: int = 0
    duplicates: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    mix: dict[str, dict[str, int]] = field(default_factory=dict)
    writers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def begin(self, step: int, sources: int) -> None:
        """Start a pass."""
        self.step, self.drawn = step, 0
        self.positions, self.tokens = [0] * sources, [0] * sources
