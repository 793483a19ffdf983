"""A run in low bits that tells, at every look at its held-out text, what the codes do."""

from dataclasses import dataclass
from typing import Any, ClassVar

from effcli.engine.data.around import Around
from effcli.engine.measure.meter import Meter
from effcli.engine.protocols import Batch, BatchSource, LanguageModel
from effcli.engine.quant.diagnosis import Diagnosis, State, warnings
from effcli.engine.records import Notice, Record

FLAT = 0.002  # of the held-out loss: it stands still where it falls by less between two looks


@dataclass(frozen=True, slots=True)
class CodesFound(Record):
    """The codes of all layers together; shares are of their weights."""

    kind: ClassVar[str] = "codes"
    step: int
    zeros: float
    dead_zone: float
    """So near to a threshold that noise decides the code."""
    flips: float | None
    """Whose codes differ from those of the last look; none at the first."""
    empty_rows: int
    steps: int
    """Since the last look; at the first, since the beginning."""


class Diagnosed(Around):
    """A source that looks at the codes where it hears a held-out loss in the low-bit phase.

    The phase is the last `share` of the budget; a step is in it if it was when its batch was
    drawn. A warning is given once in a run. Looking is at the expense of `eval`. Every process
    finds the same, since all have the same weights.
    """

    def __init__(
        self, batches: BatchSource, model: LanguageModel, share: float, meter: Meter
    ) -> None:
        super().__init__(batches)
        self._diagnosis, self._begin, self._meter = Diagnosis(model), 1 - share, meter
        self._progress = 0.0
        self._loss: float | None = None  # at the last look
        self._warned: list[str] = []

    def draw(self, progress: float) -> Batch:
        """The next batch."""
        self._progress = progress
        return super().draw(progress)

    def hear(self, loss: float) -> list[Record]:
        """What the inner source tells, then what the codes do, then what is wrong with them."""
        told = super().hear(loss)
        if self._progress < self._begin or self._diagnosis.step == self._meter.steps:
            return told  # floats, or weights that were looked at already
        with self._meter.timing("eval"):
            states = self._diagnosis.look(self._meter.steps)
        is_flat = self._loss is not None and loss > (1 - FLAT) * self._loss
        self._loss = loss
        lines = warnings(states, self._progress, is_flat=is_flat)
        is_begun = self._meter.steps > 0  # matrices may begin as zeros
        news = [name for name in lines if is_begun and name not in self._warned]
        self._warned += news
        return [*told, self._found(State.of(states.values())), *(Notice(lines[n]) for n in news)]

    def _found(self, whole: State) -> CodesFound:
        shares = (whole.zeros, whole.dead_zone, whole.flips)
        return CodesFound(self._meter.steps, *shares, whole.empty_rows, whole.steps)

    def state_dict(self) -> dict[str, Any]:
        """With what the last look found, and what was said."""
        return {
            **super().state_dict(),
            "progress": self._progress,
            "loss": self._loss,
            "warned": list(self._warned),
            "codes": self._diagnosis.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        super().load_state_dict(state)
        self._progress, self._loss = state["progress"], state["loss"]
        self._warned = list(state["warned"])
        self._diagnosis.load_state_dict(state["codes"])
