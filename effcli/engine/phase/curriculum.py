"""Language first: when which energy counts, and that none counts that hurts."""

from collections.abc import Mapping
from typing import Any

from effcli.engine.data.around import Around
from effcli.engine.protocols import Batch, BatchSource
from effcli.engine.records import Notice, Record

Stage = tuple[str, float, Mapping[str, float]]
"""Its name, the progress that it begins at, and the weights of the energies in it."""
Stages = tuple[Stage, ...]
AUTO: Stages = (
    ("language", 0.0, {}),
    ("phase_alignment", 0.15, {"local": 0.01}),
    ("local_interference", 0.25, {"local": 0.005, "interference": 0.005}),
    ("global_interference", 0.4, {"local": 0.002, "interference": 0.02, "entanglement": 0.005}),
    ("concept_learning", 0.7, {"interference": 0.01, "entanglement": 0.005, "concepts": 0.01}),
    ("anneal", 0.95, {}),
)
SEED: Stages = (
    ("phase_alignment", 0.0, {"local": 0.02, "interference": 0.001}),
    ("local_interference", 2 / 14, {"local": 0.005, "interference": 0.02}),
    ("global_interference", 5 / 14, {"local": 0.01, "interference": 0.015}),
    ("concept_learning", 9 / 14, {"local": 0.005, "interference": 0.01}),
)
"""Weights and lengths as the first design had them, of 14 epochs."""
ALL: Stages = (
    ("on", 0.0, {"local": 0.002, "interference": 0.02, "entanglement": 0.005, "concepts": 0.01}),
    ("anneal", 0.95, {}),
)
RAMP = 0.02  # of the budget, over which weights change
WORSE = 1.005  # what a held-out loss may rise by in a stage


class Curriculum(Around):
    """Weights of energies over a run; it hears the held-out loss from where batches are drawn.

    With a `floor`, the first weights wait until the held-out loss is below it: a model that
    does not beat the counting of trigrams has other things to learn. A stage in which the loss
    rises by more than half a percent has its weights halved; where it does so again, they are 0.
    """

    def __init__(self, batches: BatchSource, stages: Stages, floor: float | None) -> None:
        super().__init__(batches)
        self._stages, self._floor = stages, floor
        self._progress, self._is_open = 0.0, floor is None
        self._lowest: float | None = None
        self._shares: dict[str, float] = {}  # of the weights of a stage that hurt
        self._told = stages[0][0]

    @property
    def weights(self) -> dict[str, float]:
        """As they stand: a stage's are reached on a line."""
        number = self._stage()
        name, begin, wished = self._stages[number]
        before = self._stages[number - 1] if number else (name, begin, wished)
        share = min(1.0, (self._progress - begin) / RAMP) if number else 1.0
        if not self._is_open:
            return {}
        names = {**before[2], **wished}
        first, second = (self._shares.get(one, 1.0) for one in (before[0], name))
        return {
            one: (1 - share) * first * before[2].get(one, 0.0)
            + share * second * wished.get(one, 0.0)
            for one in names
        }

    def _stage(self) -> int:
        return max(n for n, (_, begin, _) in enumerate(self._stages) if begin <= self._progress)

    def draw(self, progress: float) -> Batch:
        """The next batch."""
        self._progress = progress
        return super().draw(progress)

    def hear(self, loss: float) -> list[Record]:
        """Open what waits for this loss, halve what hurt, and say so."""
        told: list[Record] = list(super().hear(loss))
        name, _, wished = self._stages[self._stage()]
        if not self._is_open and self._floor is not None and loss < self._floor:
            self._is_open, self._told = True, name
            below = f"below what trigrams reach, {self._floor:.3f}"
            told.append(Notice(f"{below}: energies may count, stage: {name}"))
        elif self._is_open and wished and self._lowest and loss > WORSE * self._lowest:
            share = self._shares.get(name, 1.0)
            self._shares[name] = 0.5 if share == 1.0 else 0.0
            now = "halved" if share == 1.0 else "off"
            told.append(Notice(f"the held-out loss rose in {name}: its energies are {now}"))
        if name != self._told:
            self._told = name
            if self._is_open:
                told.append(Notice(f"stage: {name}"))
            elif name == self._stages[-1][0]:
                told.append(Notice("no energy has counted: trigrams were not beaten in time"))
        self._lowest = loss if self._lowest is None else min(loss, self._lowest)
        return told

    def state_dict(self) -> dict[str, Any]:
        """With what was heard."""
        own = (self._progress, self._is_open, self._lowest, dict(self._shares), self._told)
        names = ("progress", "is_open", "lowest", "shares", "told")
        return {**super().state_dict(), **dict(zip(names, own, strict=True))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        super().load_state_dict(state)
        self._progress, self._is_open = state["progress"], state["is_open"]
        self._lowest, self._told = state["lowest"], state["told"]
        self._shares = dict(state["shares"])
