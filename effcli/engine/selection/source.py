"""What a selective run reads: round after round, some of the windows that come by."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from effcli.engine.measure.meter import Meter
from effcli.engine.protocols import Batch, Loss
from effcli.engine.records import Record
from effcli.engine.selection.aids import Aids
from effcli.engine.selection.chooser import Chooser, Chosen
from effcli.engine.selection.keys import uniform
from effcli.engine.selection.listener import Groups, Listener
from effcli.engine.selection.passages import Ids
from effcli.engine.selection.pool import Candidates, Pool

Floats = NDArray[np.float64]
_COUNTS = (
    "_epoch",
    "_number",
    "_at",
    "_emitted",
    "_emitted_before",
    "_unique",
    "_labeled",
    "_good",
)
_READING = 4  # salt of the order in which chosen windows are read
MOST_ROUND_TOKENS = 2**21  # in memory at one time


@dataclass(frozen=True, slots=True)
class SelectionFound(Record):
    """What was chosen until an evaluation, and what choosing cost."""

    kind: ClassVar[str] = "selection"
    step: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """How much is read, in which pieces."""

    context: int
    sequences: int
    seed: int
    pass_tokens: int
    """Chosen in one pass over the pool."""
    rounds: int
    """That a pass is divided into, unless they would be too small or too large."""
    is_weighted: bool = False
    """Whether losses are weighted by how unlikely a passage was to be chosen."""

    @property
    def round_tokens(self) -> int:
        """Tokens of a round."""
        wanted = max(self.sequences * self.context, self.pass_tokens // self.rounds)
        return min(wanted, MOST_ROUND_TOKENS)


@dataclass(frozen=True)
class Round:
    """Chosen windows, in the order in which they are read."""

    chosen: Chosen
    tokens: Ids
    """Of shape (windows, context + 1)."""
    is_written: NDArray[np.bool_]
    """By a program, and not in the corpus."""


class Selected:
    """The windows that a chooser chose; its state says exactly which."""

    def __init__(
        self,
        pool: Pool,
        chooser: Chooser,
        listener: Listener,
        reading: Reading,
        meter: Meter,
        aids: Aids | None = None,
    ) -> None:
        """What stands on the meter's account `select` is the price of the scores."""
        self._pool, self._chooser, self._listener = pool, chooser, listener
        self._reading, self._meter, self.aids = reading, meter, aids or Aids()
        self._price = meter.flops["select"]
        self._epoch = self._number = self._at = 0
        self._emitted = self._emitted_before = self._unique = 0
        self._labeled = self._good = 0  # windows that were chosen in the first pass
        self._picked: Ids = np.empty(0, dtype=np.int64)
        """In the first pass."""
        self._round: Round | None = None
        self._groups: Groups | None = None

    def draw(self, progress: float) -> Batch:
        """The windows of one step, of this round and perhaps the next one."""
        parts: list[Batch] = []
        with self._meter.timing("select"):
            self._listener.begin_step(self._meter.flops["train"], self._reading.sequences)
            while (missing := self._reading.sequences - sum(map(len, parts))) > 0:
                if self._round is None or self._at >= len(self._round.tokens):
                    self._begin_round(progress)
                else:
                    parts.append(self._take(self._round, missing))
            batch = parts[0] if len(parts) == 1 else _joined(parts)
            if self.aids.scorer is not None:
                self.aids.scorer.hear(batch, self._meter.flops["train"])
            self._bill()
        return batch

    def _take(self, now: Round, most: int) -> Batch:
        """Some of the windows that are left of this round."""
        part = slice(self._at, self._at + most)
        tokens = torch.from_numpy(now.tokens[part])
        read = tokens[:, :-1].numel()
        self._at += len(tokens)
        self._emitted += read
        if not self._epoch:
            self._unique += self._reading.context * int((~now.is_written[part]).sum())
        weights = torch.from_numpy(now.chosen.weights[part]) if self._reading.is_weighted else None
        return Batch(tokens[:, :-1], tokens[:, 1:], torch.from_numpy(now.chosen.ids[part]), weights)

    def _begin_round(self, progress: float) -> None:
        """Choose what is read next, or what was chosen in the first pass once more."""
        reading = self._reading
        self._listener.begin_round(self._meter.flops["train"])
        if self._number and self.aids.snapshot is not None:
            self.aids.snapshot.take(self._listener.model)
        if self._pool.repeats and self._is_over():
            self._epoch, self._emitted_before = self._epoch + 1, self._emitted
            self._pool.begin(self._epoch, self._picked)
        left = max(self._left(), reading.context)
        # No round is much smaller than the others.
        wanted = min(reading.round_tokens, left) if left > 1.5 * reading.round_tokens else left
        looked, written = self._pool.to_look_at(wanted, left), None
        if self._epoch:
            chosen = self._chooser.everything(self._pool.candidates(looked, 1.0, {}))
        else:
            admitted = self._chooser.admitted(progress)
            candidates = self._pool.candidates(looked, admitted, self._chooser.harder())
            own = self.aids.own(candidates, self._pool, self._meter.flops["train"])
            chosen = self._chooser.choose(candidates, wanted, progress, reading.seed, own)
            self._remember(candidates, chosen)
            written = self.aids.written(candidates, chosen, self._pool)
        self._number, self._at = self._number + 1, 0
        self._open(chosen, written)

    def _is_over(self) -> bool:
        """Whether this pass is."""
        left = self._left()
        return left < self._reading.context or not self._pool.to_look_at(left, left)

    def _remember(self, candidates: Candidates, chosen: Chosen) -> None:
        """What was chosen: to be read again, where it can be, and how much of it is good."""
        if self._pool.repeats:
            self._picked = np.concatenate([self._picked, chosen.ids])
        if "good" in candidates.columns:
            self._labeled += len(chosen.ids)
            self._good += int(np.isin(candidates.ids, chosen.ids)[candidates["good"]].sum())

    def _bill(self) -> None:
        spent = self._listener.spent + self._pool.spent + self.aids.spent
        self._meter.flops["select"] = self._price + spent

    def _left(self) -> int:
        """Tokens of this pass that are still to be read."""
        whole = self._unique if self._epoch else self._reading.pass_tokens
        return whole - (self._emitted - self._emitted_before)

    def _open(self, chosen: Chosen, written: tuple[Chosen, Ids] | None) -> None:
        """Put chosen windows, and those that were written, into a random order."""
        tokens, count = self._pool.fetch(chosen.ids), len(chosen.ids)
        if written is not None:
            parts = zip(vars(chosen).values(), vars(written[0]).values(), strict=True)
            chosen = Chosen(*(np.concatenate(pair) for pair in parts))
            tokens = np.concatenate([tokens, written[1]])
        places = uniform(chosen.ids, self._reading.seed, self._epoch, _READING)
        order = np.argsort(places, kind="stable")
        chosen = Chosen(*(column[order] for column in vars(chosen).values()))
        both = [chosen] if self._round is None else [self._round.chosen, chosen]
        ids, groups = (np.concatenate([getattr(o, n) for o in both]) for n in ("ids", "groups"))
        self._groups = Groups(ids, groups)  # a step may have windows of two rounds
        self._round = Round(chosen, tokens[order], order >= count)

    def feedback(self, batch: Batch, loss: Loss) -> None:
        """Listen to what training says anyway."""
        with self._meter.timing("select"):
            assert self._groups is not None
            told = self._listener.hear(batch, loss, self._groups.of(batch.ids))
            if self.aids.visits is not None:
                self.aids.visits.hear(batch.ids, told, self._meter.steps)

    def hear(self, loss: float) -> list[Record]:
        """Hear a held-out loss; tell what is read."""
        facts = {"epoch": self._epoch, "chosen_tokens": self._unique, **self._chooser.hear(loss)}
        facts |= {
            "quarantined": self._chooser.quarantined,
            "precision": self._good / self._labeled if self._labeled else None,
        }
        return [SelectionFound(self._meter.steps, facts | self.aids.facts())]

    @property
    def unique_tokens(self) -> int:
        """Those of the first pass."""
        return self._unique

    @property
    def picked(self) -> Ids:
        """The windows that were chosen so far, where they can be read again."""
        return self._picked

    def state_dict(self) -> dict[str, Any]:
        """Which passages are read now, how far, and all that decides about the next ones."""
        now = None
        if self._round is not None:
            one = self._round.chosen
            now = {name: torch.from_numpy(value) for name, value in vars(one).items()}
            if self.aids.writer is not None:
                which = self._round.is_written
                now |= {"is_written": torch.from_numpy(which)}
                now |= {"written": torch.from_numpy(self._round.tokens[which])}
        return {
            "counts": {name[1:]: getattr(self, name) for name in _COUNTS},
            "picked": torch.from_numpy(self._picked),
            "now": now,
            "pool": self._pool.state_dict(),
            "chooser": self._chooser.state_dict(),
            "listener": self._listener.state_dict(),
            "aids": self.aids.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the ledger goes back, too, so that nothing is billed twice."""
        for name, value in state["counts"].items():
            setattr(self, f"_{name}", int(value))
        self._picked = state["picked"].numpy()
        self._pool.load_state_dict(state["pool"], self._picked)
        self._chooser.load_state_dict(state["chooser"])
        self._listener.load_state_dict(state["listener"])
        self.aids.load_state_dict(state["aids"])
        self._round = None
        if (now := state["now"]) is not None:
            self._open(*_parted({name: tensor.numpy() for name, tensor in now.items()}))
        self._bill()


def _parted(now: dict[str, NDArray[Any]]) -> tuple[Chosen, tuple[Chosen, Ids] | None]:
    """What was chosen, and what was written, of the state of a round."""
    tokens = now.pop("written", None)
    if tokens is None:
        return Chosen(**now), None
    which = now.pop("is_written").astype(bool)
    chosen, written = (Chosen(**{n: v[one] for n, v in now.items()}) for one in (~which, which))
    return chosen, (written, tokens)


def _joined(parts: list[Batch]) -> Batch:
    """Several batches as one."""
    weights = [part.weights for part in parts if part.weights is not None]
    return Batch(
        torch.cat([part.inputs for part in parts]),
        torch.cat([part.targets for part in parts]),
        torch.cat([part.ids for part in parts]),
        torch.cat(weights) if weights else None,
    )
