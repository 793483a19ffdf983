"""What happens in a run, as facts. The engine yields them; screens, files and tests read them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Record:
    """Something that happened."""

    kind: ClassVar[str] = ""

    def as_row(self) -> dict[str, Any]:
        """The record as a row of `records.jsonl`."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Step(Record):
    """One optimizer step is done. Costs are totals since the start of the run."""

    kind: ClassVar[str] = "step"
    index: int
    progress: float
    """Share of the budget that was spent before this step."""
    loss: float
    """Training loss of this step's batch, in nats per token."""
    lr: float
    grad_norm: float
    tokens: int
    flops: float
    seconds: float
    """Of everything but evaluation and compilation."""


@dataclass(frozen=True, slots=True)
class Evaluation(Record):
    """A look at the held-out text."""

    kind: ClassVar[str] = "evaluation"
    step: int
    loss: float
    """Nats per token."""
    bits_per_byte: float
    windows: int
    tokens: int
    flops: float
    seconds: float
    joules: float


@dataclass(frozen=True, slots=True)
class Saved(Record):
    """A checkpoint is safe on disk."""

    kind: ClassVar[str] = "saved"
    step: int


@dataclass(frozen=True, slots=True)
class Diverged(Record):
    """A loss or gradient was not finite; the weights were not touched by it."""

    kind: ClassVar[str] = "diverged"
    step: int
    loss: str
    grad_norm: str
    lr: float


@dataclass(frozen=True, slots=True)
class Ledger(Record):
    """All accounts, as they stand."""

    kind: ClassVar[str] = "ledger"
    status: str
    steps: int
    tokens: int
    unique_tokens: int
    flops: dict[str, float]
    seconds: dict[str, float]
    joules: dict[str, float]
    """By the source of the measurement."""
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True)
class FloorsFound(Record):
    """What counting alone would have reached on the same windows, in nats per token."""

    kind: ClassVar[str] = "floors"
    unigram: float
    bigram: float
    trigram: float


@dataclass(frozen=True, slots=True)
class TailFound(Record):
    """Held-out loss of each tenth of the tokens, the rarest first, in nats per token."""

    kind: ClassVar[str] = "tail"
    losses: list[float]


@dataclass(frozen=True, slots=True)
class Sample(Record):
    """A text that the trained model wrote."""

    kind: ClassVar[str] = "sample"
    prompt: str
    text: str


@dataclass(frozen=True, slots=True)
class Facts(Record):
    """What was found once, as a piece of the report has it."""

    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TextsMeasured(Facts):
    """What texts of the trained model are like, beside held-out ones."""

    kind: ClassVar[str] = "texts"


@dataclass(frozen=True, slots=True)
class PhasesFound(Facts):
    """What the phases of a model do."""

    kind: ClassVar[str] = "phases"


@dataclass(frozen=True, slots=True)
class LanguagesFound(Facts):
    """How well a model speaks each of its languages."""

    kind: ClassVar[str] = "languages"


@dataclass(frozen=True, slots=True)
class AlignmentFound(Facts):
    """Whether a model means the same in all of its languages."""

    kind: ClassVar[str] = "alignment"


@dataclass(frozen=True, slots=True)
class BesideFound(Facts):
    """The run of a GPT of equal size, and what it came to."""

    kind: ClassVar[str] = "beside"


@dataclass(frozen=True, slots=True)
class Grown(Record):
    """The model has become a larger one that computes the same."""

    kind: ClassVar[str] = "grown"
    step: int
    width: int
    layers: int
    parameters: int
    difference: float
    """Of logits on a held-out window, the largest, in float32; as a share of the largest logit."""


@dataclass(frozen=True, slots=True)
class Student(Facts):
    """What a distillation has made: a file, and what was measured of it."""

    kind: ClassVar[str] = "student"


@dataclass(frozen=True, slots=True)
class HybridFound(Facts):
    """What the parts of `--hybrid` did over a run."""

    kind: ClassVar[str] = "hybrid"


@dataclass(frozen=True, slots=True)
class Notice(Record):
    """Something the reader should know about how the run was done."""

    kind: ClassVar[str] = "notice"
    text: str


@dataclass(frozen=True, slots=True)
class Reading(Record):
    """How far a preparation is."""

    kind: ClassVar[str] = "reading"
    what: str
    share: float | None
    """Of the current split, if it can be known."""
    tokens: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CellBegun(Record):
    """A run of a suite begins."""

    kind: ClassVar[str] = "cell-begun"
    title: str
    done: int
    total: int
    seconds_left: float
    """Of the whole suite, as far as it can be foreseen."""


@dataclass(frozen=True, slots=True)
class CellDone(Record):
    """A run of a suite has ended."""

    kind: ClassVar[str] = "cell-done"
    title: str
    status: str
    loss: float | None
    done: int
    total: int
    seconds_left: float
    standing: tuple[tuple[str, int, float | None], ...]
    """Of every arm: name, complete runs at its largest budget, their mean loss."""


@dataclass(frozen=True, slots=True)
class Turn(Record):
    """One of several that are timed is about to do some of its work."""

    kind: ClassVar[str] = "turn"
    name: str
    share: float
    """Of all turns, done."""


Watch = Callable[[Record], None]
Stop = Callable[[], int | None]
"""Asks whether to stop; answers with the number of the signal that wants it."""


def unwatched(_: Record) -> None:
    """A watcher that looks away."""


def never() -> int | None:
    """A `Stop` that never stops."""
    return None
