"""The ledger and the clock."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from effcli.engine.protocols import ACCOUNTS
from effcli.settings.train import TrainSettings

COMPILE = "compile"


class Meter:
    """A ledger of FLOPs and seconds with one account per purpose.

    Selection and teachers are charged like training, so a claim of efficiency cannot
    hide its own cost.
    """

    def __init__(self) -> None:
        self.flops = dict.fromkeys(ACCOUNTS, 0.0)
        self.seconds = dict.fromkeys((*ACCOUNTS, COMPILE), 0.0)
        self.steps = 0
        self.tokens = 0
        self.joules: dict[str, float] = {}
        self.peak_memory_bytes = 0

    def charge(self, account: str, flops: float) -> None:
        """Book work on an account; one that does not exist is a mistake."""
        self.flops[account] += flops

    @contextmanager
    def timing(self, account: str) -> Iterator[None]:
        """Book the time until the end of the block on an account, but for what is booked in it."""
        before, started = sum(self.seconds.values()), time.perf_counter()
        try:
            yield
        finally:
            elsewhere = sum(self.seconds.values()) - before
            self.seconds[account] += time.perf_counter() - started - elsewhere

    def spent_flops(self) -> float:
        """What a budget pays for: everything but evaluation."""
        return sum(flops for account, flops in self.flops.items() if account != "eval")

    def spent_seconds(self) -> float:
        """What a budget pays for: everything but evaluation and compilation."""
        return sum(s for account, s in self.seconds.items() if account not in ("eval", COMPILE))

    def is_due(self, every: int) -> bool:
        """Whether another so many steps are done; 0 is never."""
        return every > 0 and self.steps % every == 0

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain numbers."""
        return {
            "flops": dict(self.flops),
            "seconds": dict(self.seconds),
            "steps": self.steps,
            "tokens": self.tokens,
            "joules": dict(self.joules),
            "peak_memory_bytes": self.peak_memory_bytes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a ledger."""
        self.flops.update(state["flops"])
        self.seconds.update(state["seconds"])
        self.steps, self.tokens = state["steps"], state["tokens"]
        self.joules = dict(state["joules"])
        self.peak_memory_bytes = state["peak_memory_bytes"]


class Budget:
    """How much a run may spend. Whichever limit is reached first ends it."""

    def __init__(self, settings: TrainSettings, share: float = 1.0) -> None:
        seconds = None if settings.minutes is None else settings.minutes * 60
        limits: dict[str, float | None] = {"steps": settings.steps, "tokens": settings.tokens}
        limits |= {"flops": settings.flops, "seconds": seconds}
        self.limits = {name: limit * share for name, limit in limits.items() if limit is not None}

    def progress(self, meter: Meter) -> float:
        """Share of the budget already spent, 0..1. The one clock of a run."""
        spent = {
            "steps": meter.steps,
            "tokens": meter.tokens,
            "flops": meter.spent_flops(),
            "seconds": meter.spent_seconds(),
        }
        return min(1.0, max((spent[n] / limit for n, limit in self.limits.items()), default=1.0))
