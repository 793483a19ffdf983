"""A source of batches that stands around another one."""

from typing import Any

from effcli.engine.protocols import Batch, BatchSource, Loss
from effcli.engine.records import Record


class Around:
    """Passes everything on. Whoever stands around a source overrides what it changes."""

    def __init__(self, batches: BatchSource) -> None:
        self._batches = batches

    def draw(self, progress: float) -> Batch:
        """The next batch."""
        return self._batches.draw(progress)

    def feedback(self, batch: Batch, loss: Loss) -> None:
        """Pass on how it went."""
        self._batches.feedback(batch, loss)

    def hear(self, loss: float) -> list[Record]:
        """What the inner source tells."""
        return self._batches.hear(loss)

    @property
    def unique_tokens(self) -> int:
        """Of the inner source."""
        return self._batches.unique_tokens

    def state_dict(self) -> dict[str, Any]:
        """Of the inner source, under a name of its own."""
        return {"batches": self._batches.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._batches.load_state_dict(state["batches"])
