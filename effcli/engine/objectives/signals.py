"""What a teacher says about each position, in three forms, and how a student is graded by it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from effcli.engine.objectives.divergence import Kind, divergence
from effcli.engine.protocols import Batch, sent
from effcli.engine.teaching.teachers import Teachers
from effcli.errors import InputError

Mode = Literal["online", "sampled", "topk"]
Grades = tuple[Tensor, Tensor, Tensor]
"""Of some rows: the cross-entropy, what is minimized, and its gradient by the logits."""
_LEAST = 1e-30  # of odds whose largest is 1: far below what counts in float32


@dataclass(frozen=True)
class Terms:
    """What is minimized: alpha T² KD + (1 - alpha) CE + hidden (1 - cos), a mean over positions."""

    kind: Kind = "forward"
    """Which divergence KD is; `none` leaves the cross-entropy alone."""
    alpha: float = 0.5
    """0..1, what the teacher's word is worth."""
    temperature: float = 1.0
    """T, which divides the logits of both; 1 is right for language (Busbridge et al. 2025)."""
    mixture: float = 0.5
    """b of the kind `jsd`, between 0 and 1."""
    hidden: float = 0.0
    """Weight of 1 - cosine of the last features, at the start of the run."""

    def __post_init__(self) -> None:
        limits = {
            "alpha": (0 <= self.alpha <= 1, "0 to 1"),
            "temperature": (0 < self.temperature < float("inf"), "above 0"),
            "mixture": (0 < self.mixture < 1, "between 0 and 1"),
            "hidden": (0 <= self.hidden < float("inf"), "0 or more"),
        }
        for name, (is_inside, allowed) in limits.items():
            if not is_inside:
                raise InputError(f"{name} is {getattr(self, name)}, but has to be {allowed}")

    @property
    def teaches(self) -> bool:
        """Whether what the teacher predicts counts at all."""
        return self.kind != "none" and self.alpha > 0

    def require(self, mode: Mode) -> None:
        """Refuse what cannot be known from a teacher's words that were kept in this form."""
        if mode == "online":
            return
        if self.temperature != 1:
            message = f"a cache is made at temperature 1, and {self.temperature} is asked for"
            raise InputError(message, "use --cache online, or a temperature of 1")
        if self.hidden:
            message = "the hidden-state term needs the teacher itself, not a cache"
            raise InputError(message, "use --cache online, or --hidden 0")
        if mode == "sampled" and self.kind in ("reverse", "jsd"):
            message = f"--kd {self.kind} needs probabilities, which samples do not tell"
            raise InputError(message, "use --cache topk:32, --cache online or --kd forward")


@dataclass(frozen=True, slots=True)
class Said:
    """What a teacher said about a batch, as a cache keeps it."""

    ids: Integer[Tensor, "batch time k"]
    """Drawn with the teacher's probabilities; where there are `logs`, the most probable ones."""
    logs: Float[Tensor, "batch time outcomes"] | None = None
    """Log-probabilities of the k ids and, as the last, of all others together."""


@dataclass(frozen=True, slots=True)
class TaughtBatch(Batch):
    """A batch, and what a teacher said about it."""

    said: Said = field(kw_only=True)

    def part(self, start: int, stop: int) -> "TaughtBatch":
        """Some of the sequences."""
        part, logs = slice(start, stop), self.said.logs
        said = Said(self.said.ids[part], None if logs is None else logs[part])
        return TaughtBatch.of(Batch.part(self, start, stop), said)

    def to(self, device: torch.device) -> "TaughtBatch":
        """The same batch on another device."""
        logs = self.said.logs
        said = Said(sent(self.said.ids, device), None if logs is None else sent(logs, device))
        return TaughtBatch.of(Batch.to(self, device), said)

    @classmethod
    def of(cls, batch: Batch, said: Said) -> "TaughtBatch":
        """A batch with what was said about it."""
        return cls(batch.inputs, batch.targets, batch.ids, batch.weights, said=said)


@runtime_checkable
class Signal(Protocol):
    """Knows what was said at every position of a batch, counted as if it were one sequence."""

    def grade(
        self, logits: Float[Tensor, "rows vocab"], targets: Int[Tensor, "rows 1"], part: slice
    ) -> Grades:
        """Grades of the positions of `part`; the logits, at most 0, are not kept."""
        ...


class Drawn:
    """Ids drawn from the teacher stand for its probabilities p: the mean gradient is q - p.

    KL(P‖Q) but for the teacher's entropy, which no gradient has (Anshumann et al. 2025).
    """

    def __init__(self, said: Said, terms: Terms) -> None:
        self._ids, self._alpha = said.ids.flatten(0, 1), terms.alpha

    def grade(self, logits: Tensor, targets: Tensor, part: slice) -> Grades:
        """The next token and each draw are targets, of weights 1 - alpha and alpha / n."""
        ids = self._ids[part].long()
        wanted = torch.cat((targets, ids), 1)
        shares = logits.new_full(wanted.shape, self._alpha / ids.shape[1])
        shares[:, 0] = 1 - self._alpha
        picked = logits.gather(1, wanted)
        odds = logits.exp_()
        total = odds.sum(-1, keepdim=True)
        nats = total.log() - picked
        gradient = odds.div_(total).scatter_add_(1, wanted, -shares)
        return nats[:, 0], (nats * shares).sum(-1), gradient


class Likeliest:
    """The teacher's most probable ids, and all others as one outcome: a lower bound of KD."""

    def __init__(self, said: Said, terms: Terms) -> None:
        assert said.logs is not None
        self._ids, self._logs = said.ids.flatten(0, 1), said.logs.flatten(0, 1)
        self._terms = terms

    def grade(self, logits: Tensor, targets: Tensor, part: slice) -> Grades:
        """Whatever the others should have together, they share as the student has it now."""
        ids, alpha = self._ids[part].long(), self._terms.alpha
        theirs = self._logs[part].float().log_softmax(-1)  # what was rounded adds up to 1 again
        target, picked = logits.gather(1, targets), logits.gather(1, ids)
        odds, known = logits.exp_(), picked.exp()
        others = odds.scatter_(1, ids, 0.0).sum(-1, keepdim=True).clamp(min=_LEAST)
        total = others + known.sum(-1, keepdim=True)
        mine = torch.cat((picked, others.log()), 1).sub_(total.log())
        value, slope = divergence(self._terms.kind, theirs, mine, self._terms.mixture)
        slope.mul_(alpha)
        gradient = odds.mul_((1 - alpha) / total + slope[:, -1:] / others)
        gradient.scatter_(1, ids, known.mul_((1 - alpha) / total).add_(slope[:, :-1]))
        gradient.scatter_add_(1, targets, gradient.new_full(targets.shape, alpha - 1))
        nats = (total.log() - target).squeeze(1)
        return nats, (1 - alpha) * nats + alpha * value, gradient


class Asked:
    """The teachers' own features: all probabilities are made of them, row by row."""

    def __init__(self, teachers: Teachers, features: Sequence[Tensor], terms: Terms) -> None:
        self._teachers, self._terms = teachers, terms
        self._features = [x.flatten(0, 1) for x in features]

    def grade(self, logits: Tensor, targets: Tensor, part: slice) -> Grades:
        """Both distributions are flattened by the temperature, several teachers as one."""
        alpha, T = self._terms.alpha, self._terms.temperature
        theirs = self._teachers.log_probabilities([x[part] for x in self._features])
        mine = tempered = logits.log_softmax(-1)
        if T != 1:
            theirs, tempered = theirs.div_(T).log_softmax(-1), logits.div_(T).log_softmax(-1)
        value, slope = divergence(self._terms.kind, theirs, tempered, self._terms.mixture)
        nats = -mine.gather(1, targets).squeeze(1)
        gradient = mine.exp_()
        gradient.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=gradient.dtype))
        gradient.mul_(1 - alpha).add_(slope, alpha=alpha * T)
        return nats, (1 - alpha) * nats + alpha * T**2 * value, gradient
