"""The training loop, driven by a controller: the same steps, and comparisons between some."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from effcli.engine.control.controller import Controller, Decision
from effcli.engine.control.trial import Schedule, faded
from effcli.engine.loop import Parts, train
from effcli.engine.measure.meter import Budget, Meter
from effcli.engine.records import Diverged, Step, Stop, never


class Inclusive(Budget):
    """A budget of steps or tokens that pays for comparisons, too: what `meta` cost, in steps."""

    def __init__(self, parts: Parts, sequences: int) -> None:
        self.limits = parts.budget.limits
        self._flops, self._tokens = parts.step_flops(sequences), sequences * parts.model.context

    def progress(self, meter: Meter) -> float:
        """Share of the budget already spent, 0..1."""
        more = meter.flops["meta"] / self._flops
        spent = {"steps": meter.steps + more, "tokens": meter.tokens + more * self._tokens}
        shares = (
            amount / self.limits[name] for name, amount in spent.items() if name in self.limits
        )
        return max(super().progress(meter), min(1.0, max(shares, default=0.0)))


@dataclass
class GuidedParts(Parts):
    """What a guided loop moves."""

    controller: Controller
    plain: Schedule
    """The schedule that the controller may leave."""

    @classmethod
    def of(
        cls, parts: Parts, controller: Controller, sequences: int | None = None
    ) -> "GuidedParts":
        """These parts, guided. With the `sequences` of a step, their budget pays for it."""
        plain = parts.schedule

        def schedule(progress: float) -> float:
            return faded(plain, controller.arm.multiplier, progress)

        own = {one.name: getattr(parts, one.name) for one in fields(Parts)}
        own["schedule"] = schedule
        if sequences is not None:
            own["budget"] = Inclusive(parts, sequences)
        return cls(**own, controller=controller, plain=plain)

    def state_dict(self) -> dict[str, Any]:
        """With what the controller knows."""
        return super().state_dict() | {"controller": self.controller.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        super().load_state_dict(state)
        self.controller.load_state_dict(state["controller"])


def guided(
    parts: GuidedParts, *, until: float = 1.0, stop: Stop = never
) -> Iterator[Step | Diverged | Decision]:
    """Train as `train` does, comparing ways to go on at the controller's points."""
    controller, processes = parts.controller, parts.device.processes
    while True:
        if controller.is_due(parts.meter):
            yield controller.decide(parts, parts.plain, stop)
        for record in train(parts, until=min(until, controller.next_point), stop=stop):
            if isinstance(record, Step):
                controller.observe(record, parts.plain(record.progress))
            yield record
            if isinstance(record, Diverged):
                return
            if controller.is_due(parts.meter):
                break
        else:
            if processes.first(parts.budget.progress(parts.meter)) >= until:
                return
            controller.begin(parts)
