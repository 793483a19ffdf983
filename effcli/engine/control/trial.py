"""Ways to go on, tried from the same step on the same batches, and compared window by window."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from effcli.engine.control.advisor import Arm
from effcli.engine.control.probes import scores
from effcli.engine.control.trust import TrustRegion
from effcli.engine.loop import Parts, train
from effcli.engine.measure.evaluate import HeldOut
from effcli.engine.records import Diverged, Stop

Losses = NDArray[np.float64]
Schedule = Callable[[float], float]


@dataclass(frozen=True)
class Snapshot:
    """A run at one step, in the memory of the CPU."""

    tree: dict[str, Any]

    @classmethod
    def of(cls, parts: Parts) -> "Snapshot":
        """All of it, copied."""
        return cls(copied({"model": parts.model.state_dict(), "parts": Parts.state_dict(parts)}))

    def restore(self, parts: Parts) -> None:
        """Go back there; it can be done again."""
        tree = copied(self.tree)
        parts.model.load_state_dict(tree["model"])
        Parts.load_state_dict(parts, tree["parts"])

    @property
    def meter(self) -> dict[str, Any]:
        """The ledger at that step."""
        meter: dict[str, Any] = self.tree["parts"]["meter"]
        return meter


def copied(tree: Any) -> Any:
    """The same tree, of which nothing else knows."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {name: copied(value) for name, value in tree.items()}
    return [copied(value) for value in tree] if isinstance(tree, list) else tree


def faded(schedule: Schedule, multiplier: float, progress: float) -> float:
    """A schedule's factor times a multiplier that fades with it: 1 + (multiplier - 1) · factor."""
    factor = schedule(progress)
    return factor * (1 + (multiplier - 1) * min(1.0, factor))


def compare(own: Losses, other: Losses) -> tuple[float, float, float]:
    """Mean gain of `other` over `own`, its standard errors, and a p-value (Student 1908, paired).

    The p-value is of `other` being no better. What is not finite loses against what is.
    """
    from scipy.stats import t

    is_finite, is_other_finite = np.isfinite(own).all(), np.isfinite(other).all()
    if not (is_finite and is_other_finite):
        is_better = is_other_finite and not is_finite
        return (math.inf, math.inf, 0.0) if is_better else (-math.inf, -math.inf, 1.0)
    gains = own - other
    gain, error = float(gains.mean()), float(gains.std(ddof=1)) / math.sqrt(len(gains))
    if not error:
        return gain, math.copysign(math.inf, gain) if gain else 0.0, 0.0 if gain > 0 else 1.0
    return gain, gain / error, float(t.sf(gain / error, len(gains) - 1))


class Trial:
    """Runs arms, and counts what they cost. It moves the parts; whoever asks puts them back."""

    def __init__(
        self, parts: Parts, schedule: Schedule, windows: HeldOut, steps: int, stop: Stop
    ) -> None:
        self._parts, self._schedule, self._windows = parts, schedule, windows
        self._steps, self._stop = steps, stop
        self.flops = 0.0

    def run(self, begun: Snapshot, arm: Arm) -> tuple[Snapshot | None, Losses]:
        """Train an arm from a step on, and judge it; none where it is not finite."""
        begun.restore(self._parts)
        guard = self._parts.optimizer.guard
        if isinstance(guard, TrustRegion):
            guard.factor = arm.radius
        before = self._spent()
        is_whole = self._train(lambda progress: faded(self._schedule, arm.multiplier, progress))
        end = Snapshot.of(self._parts) if is_whole else None
        self.flops += self._spent() - before
        return end, self.judge(arm) if is_whole else np.array([np.nan])

    def judge(self, arm: Arm) -> Losses:
        """Cool down from here to almost nothing, in half as many steps, and look."""
        before, parts = self._spent(), self._parts
        progress = parts.device.processes.first(parts.budget.progress(parts.meter))
        count, top = (self._steps + 1) // 2, faded(self._schedule, arm.multiplier, progress)
        falling = iter([top * (count - number) / (count + 1) for number in range(count)])
        is_whole = self._train(lambda _: next(falling), count)
        losses = scores(parts, self._windows, self._stop) if is_whole else np.array([np.nan])
        self.flops += self._spent() - before
        return losses

    def _train(self, schedule: Schedule, steps: int | None = None) -> bool:
        """Whether all steps were finite."""
        parts = replace(self._parts, schedule=schedule)
        records = islice(train(parts, until=math.inf, stop=self._stop), steps or self._steps)
        return not any(isinstance(record, Diverged) for record in records)

    def _spent(self) -> float:
        return sum(self._parts.meter.flops.values())
