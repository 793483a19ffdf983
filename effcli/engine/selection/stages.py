"""Stages from easy to hard that end when the model stops to gain from them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from effcli.engine.selection.keys import Floats
from effcli.errors import InputError


def trend(losses: Sequence[float]) -> float:
    """The median slope of all pairs of evaluations (Theil 1950, Sen 1968)."""
    values: Floats = np.asarray(losses, dtype=np.float64)
    left, right = np.triu_indices(len(values), 1)
    return float(np.median((values[right] - values[left]) / (right - left)))


class Stages:
    """The share of the passages, by difficulty, that each stage admits, and when it ends.

    A stage ends when the last held-out losses of this stage fall by less than `least` of
    their median per evaluation, or when its part of the run is used up. All stages but the
    last share `length` of the run, in the ratios of `parts`, so the last begins at `length`
    at the latest. No stage comes back.
    """

    def __init__(
        self,
        levels: Sequence[float] = (0.4, 0.7, 1.0),
        *,
        length: float,
        parts: Sequence[float] | None = None,
        evaluations: int = 5,
        least: float = 0.002,
    ) -> None:
        if not levels or sorted({0.0, *levels}) != [0.0, *levels] or levels[-1] != 1:
            raise InputError(
                f"the levels {list(levels)} do not rise from above 0 to 1",
                "name them in rising order, such as 0.4, 0.7, 1",
            )
        ratios: Floats = np.asarray(parts or [1.0] * (len(levels) - 1), dtype=np.float64)
        if len(ratios) != len(levels) - 1 or not (ratios > 0).all():
            raise InputError(
                f"the parts {ratios.tolist()} do not fit {len(levels)} levels",
                "give a positive number for each level but the last",
            )
        self._levels, self._length = list(levels), length
        self._parts: list[float] = (length * ratios / (ratios.sum() or 1.0)).tolist()
        self._evaluations, self._least = evaluations, least
        self._stage, self._began = 0, 0.0
        self._losses: list[float] = []
        self.decisions: list[dict[str, Any]] = []
        """Each advance: the new stage's number and level, progress, why, and the losses heard."""

    def hear(self, loss: float) -> None:
        """Hear a held-out loss, in order; one that is not finite is ignored."""
        if np.isfinite(loss):
            self._losses = [*self._losses, float(loss)][-self._evaluations :]

    def level(self, progress: float) -> float:
        """The admitted share from here on; a stage that is over ends now."""
        while not self._is_last and (why := self._reason(progress)):
            # A late question does not make the next stage longer.
            ended = progress if why == "plateau" else self._ends
            self._advance(why, ended, progress)
        return self._levels[self._stage]

    @property
    def _is_last(self) -> bool:
        return self._stage == len(self._levels) - 1

    @property
    def _ends(self) -> float:
        return self._began + self._parts[self._stage]

    def _reason(self, progress: float) -> str | None:
        if progress >= min(self._ends, self._length):
            return "share"
        if len(self._losses) < self._evaluations:
            return None
        gain = -trend(self._losses)
        return "plateau" if gain < self._least * float(np.median(self._losses)) else None

    def _advance(self, why: str, ended: float, progress: float) -> None:
        self._stage, self._began = self._stage + 1, ended
        decision = {"stage": self._stage, "level": self._levels[self._stage], "why": why}
        self.decisions = [
            *self.decisions,
            {**decision, "progress": float(progress), "losses": self._losses},
        ]
        self._losses = []  # harder passages are to be judged by what they do

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly: numbers, strings and lists."""
        return {
            "stage": self._stage,
            "began": self._began,
            "losses": self._losses,
            "decisions": self.decisions,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._stage, self._began = int(state["stage"]), float(state["began"])
        self._losses, self.decisions = list(state["losses"]), list(state["decisions"])
