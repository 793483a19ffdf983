"""A learning rate that may leave its schedule, where a paid comparison says so.

At a few points, ways to go on are tried from the same weights on the same batches, and each
is judged after a short cool-down, on text that neither trains nor judges the run: without
the cool-down too small a rate looks best for a while, and loses in the end. The schedule is
left only for a gain that is significant, and its end is always its own.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from effcli.engine.control.advisor import RADII, Advisor, Arm, Features, Outcome
from effcli.engine.control.probes import Probe
from effcli.engine.control.trial import Losses, Schedule, Snapshot, Trial, compare, copied
from effcli.engine.control.trust import TrustRegion
from effcli.engine.loop import Parts
from effcli.engine.measure.evaluate import HeldOut
from effcli.engine.measure.meter import Meter
from effcli.engine.records import Record, Step, Stop, never
from effcli.settings.schedule import ConstantSettings, CosineSettings, WsdSettings

DECISIONS = 4
LOWER, HIGHER = 0.5, math.sqrt(2)
EARLIEST = 0.04  # share of the budget; before, every rate is good
TRIES = 2  # arms beside the one in force: each costs about as many steps as it trains
FEW = 8  # windows whose gradients are looked at
_SUREST = 3.0  # standard errors that an outcome counts at most


@dataclass(frozen=True, slots=True)
class Decision(Record):
    """Ways to go on were compared; the first is the one that was in force."""

    kind: ClassVar[str] = "decision"
    step: int
    multipliers: list[float]
    radii: list[float]
    """Factors of the trust region's radius."""
    losses: list[float | None]
    """After the cool-down, on windows that are set aside; none of what was not finite."""
    p_values: list[float]
    """Of each but the first being no better than it, one-sided and paired by window."""
    level: float
    """What a p-value must be below."""
    chosen: int
    steps: int
    """That each one trained before its cool-down."""
    flops: float
    """Paid by `meta`."""


@dataclass(frozen=True)
class Terms:
    """What it takes to leave the schedule."""

    span: float = 2.0
    """Multipliers are between this and its inverse; 1..10."""
    share: float = 0.005
    """Of the run's steps: what an arm trains; its cool-down has half as many."""
    alpha: float = 0.05
    """Probability that an arm is ever adopted that is no better."""
    gain: float = 0.02
    """Nats per token that an arm must be better by: short comparisons flatter small rates."""


def decision_points(
    schedule: ConstantSettings | CosineSettings | WsdSettings, count: int = DECISIONS
) -> list[float]:
    """Shares of the training that is wanted, after the warm-up and before the cool-down.

    They are early, and each twice as far from the next as from the one before: what a wrong
    rate does in the beginning stays. A cosine is taken to cool down from its middle on.
    """
    end = 1.0 if isinstance(schedule, ConstantSettings) else 0.5
    if isinstance(schedule, WsdSettings):
        end = 1 - schedule.cooldown
    begin = min(max(schedule.warmup, EARLIEST), end)
    return [begin + (end - begin) * (2**number - 1) / 2**count for number in range(count)]


class Controller:
    """Decides what the schedule's learning rate and the trust radius are multiplied by."""

    def __init__(
        self, windows: HeldOut, points: Sequence[float], terms: Terms | None = None, seed: int = 0
    ) -> None:
        """`windows` are set aside; at the `points`, which ascend, something is decided.

        What comparisons take of the budget is no training, so it puts the next ones off.
        """
        self._windows, self._points, self._terms = windows, list(points), terms or Terms()
        self.arm, self.taken, self.adopted = Arm(), 0, 0
        self.advisor = Advisor(self._terms.span, seed)
        self._features = Features()
        self._outcomes: list[Outcome] = []
        self._multiplied = 0.0
        self._steps = 0
        self._begun: Snapshot | None = None
        self._state: list[float] = []  # of training, when the comparison began
        self._count = 0  # of the steps of arms
        self._spent = 0.0  # of the budget, on comparisons

    @property
    def next_point(self) -> float:
        """Where the next comparison begins; nowhere during one."""
        is_over = self._begun is not None or self.taken >= len(self._points)
        return math.inf if is_over else self._points[self.taken] + self._spent

    def is_due(self, meter: Meter) -> bool:
        """Whether the arm in force has trained as long as the others are to."""
        return self._begun is not None and meter.steps >= self._begun.meter["steps"] + self._count

    @property
    def multiplier_mean(self) -> float:
        """Of the learning rate, over all steps so far."""
        return self._multiplied / self._steps if self._steps else 1.0

    def observe(self, step: Step, factor: float) -> None:
        """Hear of a step, and of the schedule's factor."""
        self._features.observe(step)
        self._multiplied += 1 + (self.arm.multiplier - 1) * min(1.0, factor)
        self._steps += 1

    def begin(self, parts: Parts) -> None:
        """Remember this step: the arm in force trains on, then the others do from here."""
        processes, probe = parts.device.processes, Probe.of(parts, self._windows, FEW)
        before = parts.budget.progress(parts.meter)
        if (momenta := _momenta(parts)) and len(probe.batch) > 1:
            noise, along = processes.first(probe.halves(momenta))
            self._features.note(noise=noise, momentum=along)
        self._book(parts, before)
        self._state = self._features.standard()
        if not self._count:  # before comparisons have cost a part of the budget
            whole = parts.meter.steps / max(parts.budget.progress(parts.meter), 1e-9)
            self._count = processes.first(max(1, round(self._terms.share * whole)))
        self._begun = Snapshot.of(parts)

    def _book(self, parts: Parts, before: float) -> None:
        """Remember what a comparison has taken since the budget was spent so far."""
        spent = parts.budget.progress(parts.meter) - before
        self._spent += parts.device.processes.first(spent)

    def arms(self, *, has_radius: bool) -> list[Arm]:
        """The one in force, what the network proposes, and half or √2 times the multiplier.

        The other side than the proposal's comes first. Where there is a radius, every other time
        a larger or a smaller one comes before both.
        """
        own, span = self.arm, self._terms.span
        advice = self.advisor.propose(self._state)
        tries = [advice if has_radius else replace(advice, radius=own.radius)]
        if has_radius and self.taken % 2:
            by = RADII if self.taken % 4 == 1 else 1 / RADII
            tries.append(replace(own, radius=own.radius * by))
        sides = (HIGHER, LOWER) if advice.multiplier < own.multiplier else (LOWER, HIGHER)
        tries += [replace(own, multiplier=own.multiplier * by) for by in sides]
        arms = [own]
        for tried in tries:
            multiplier = min(span, max(1 / span, tried.multiplier))
            arm = Arm(multiplier, min(RADII, max(1 / RADII, tried.radius)))
            if not any(map(arm.is_near, arms)):
                arms.append(arm)
        return arms[: 1 + TRIES]

    def decide(self, parts: Parts, schedule: Schedule, stop: Stop = never) -> Decision:
        """Compare the arms, and go on with the best from where its cool-down began.

        A signal leaves all as it was: what was not decided is compared again.
        """
        here, guard = Snapshot.of(parts), parts.optimizer.guard
        arms = self.arms(has_radius=isinstance(guard, TrustRegion) and guard.has_radius)
        level = self._terms.alpha / (len(self._points) * max(2, len(arms) - 1))
        trial = Trial(parts, schedule, self._windows, self._count, stop)
        with parts.meter.timing("meta"):
            try:
                best, chosen, losses = self._tried(trial, arms, level)
            except BaseException:
                here.restore(parts)
                raise
            (best or here).restore(parts)
            parts.meter.load_state_dict(here.meter)
        before = parts.budget.progress(parts.meter)
        parts.meter.charge("meta", trial.flops)
        self._book(parts, before)
        found = [compare(losses[0], loss) for loss in losses[1:]]
        for arm, (_, z, _) in zip(arms[1:], found, strict=True):
            z = max(-_SUREST, min(_SUREST, z))
            self._outcomes.append(Outcome(tuple(self._state), self.arm, arm, z))
        self.advisor.learn(self._outcomes)
        self.arm, self._begun = arms[chosen], None
        self.taken, self.adopted = self.taken + 1, self.adopted + (chosen > 0)
        means = [float(loss.mean()) for loss in losses]
        return Decision(
            step=parts.meter.steps,
            multipliers=[arm.multiplier for arm in arms],
            radii=[arm.radius for arm in arms],
            losses=[mean if math.isfinite(mean) else None for mean in means],
            p_values=[p for _, _, p in found],
            level=level,
            chosen=chosen,
            steps=self._count,
            flops=trial.flops,
        )

    def _tried(
        self, trial: Trial, arms: list[Arm], level: float
    ) -> tuple[Snapshot | None, int, list[Losses]]:
        """Where the best arm ended, if it is to be adopted, its number, and how all went."""
        assert self._begun is not None
        best, chosen, most = None, 0, self._terms.gain
        losses = [trial.judge(arms[0])]
        for number, arm in enumerate(arms[1:], start=1):
            end, loss = trial.run(self._begun, arm)
            losses.append(loss)
            gain, _, p = compare(losses[0], loss)
            if end is not None and p < level and gain > most:
                best, chosen, most = end, number, gain
        return best, chosen, losses

    def state_dict(self) -> dict[str, Any]:
        """What was decided and learned, and where a comparison began that is not over."""
        return {
            "arm": list(astuple(self.arm)),
            "counts": [self.taken, self.adopted, self._steps, self._count],
            "multiplied": self._multiplied,
            "spent": self._spent,
            "features": self._features.state_dict(),
            "outcomes": [list(one.row) for one in self._outcomes],
            "advisor": self.advisor.state_dict(),
            "begun": None if self._begun is None else self._begun.tree,
            "state": list(self._state),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.arm = Arm(*state["arm"])
        self.taken, self.adopted, self._steps, self._count = state["counts"]
        self._multiplied, self._state = state["multiplied"], list(state["state"])
        self._spent = state["spent"]
        self._features.load_state_dict(state["features"])
        self._outcomes = [Outcome.of(row) for row in state["outcomes"]]
        self.advisor.load_state_dict(state["advisor"])
        self._begun = None if state["begun"] is None else Snapshot(copied(state["begun"]))


def _momenta(parts: Parts) -> dict[str, Tensor]:
    """The optimizers' means of gradients, by tensor."""
    return {
        path.rpartition("/")[0]: value
        for path, value in parts.optimizer.state_dict().items()
        if path.endswith(("/exp_avg", "/momentum_buffer"))
    }
