"""What scoring may cost: a share of what training did."""

from typing import Any


class Governor:
    """Lets scoring spend `share` of what training spent so far, and `window` in advance.

    While only what is allowed is spent, and costs no more than expected, spending never
    exceeds share × training + window. What costs more is owed, and paid back first.

    The unit is the caller's. Choices by FLOPs are the same in every run; choices by seconds
    depend on what else the machine does, so what a model reads is decided by FLOPs, and seconds are
    only reported.
    """

    def __init__(self, share: float, window: float) -> None:
        self.share, self.window = share, window
        self.total = 0.0
        """Spent so far."""

    def allows(self, training: float, expected: float) -> bool:
        """Whether a score of an expected cost fits, given what training spent so far."""
        return self.total + expected <= self.share * training + self.window

    def credit(self, training: float) -> float:
        """What may be spent now, given what training spent so far."""
        return self.share * training + self.window - self.total

    def spent(self, cost: float) -> None:
        """Hear what a score cost."""
        self.total += cost

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly: a number."""
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.total = float(state["total"])
