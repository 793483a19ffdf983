"""What a run may know of single windows, and may read, beyond what is usual."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effcli.engine.objectives.self_distillation import Snapshot
from effcli.engine.selection.chooser import Chosen
from effcli.engine.selection.keys import places_of
from effcli.engine.selection.passages import Ids
from effcli.engine.selection.pool import Candidates, Pool
from effcli.engine.selection.scales import standardized
from effcli.engine.selection.scorers import Scorer
from effcli.engine.selection.synth import Writer
from effcli.engine.selection.visits import Visits

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Aids:
    """What else may be known of single windows, and be read."""

    scorer: Scorer | None = None
    visits: Visits | None = None
    writer: Writer | None = None
    snapshot: Snapshot | None = None

    def own(self, candidates: Candidates, pool: Pool, training_flops: float) -> Floats | None:
        """How uncertain each candidate is itself, standardized; NaN where it is not known."""
        told = [] if self.visits is None else [self.visits.scores(candidates.ids)]
        if self.scorer is not None:
            told.append(self.scorer.scores(candidates.ids, pool.fetch, training_flops))
        if not told:
            return None
        own: Floats = np.full(len(candidates), np.nan)
        for scores in told:  # what was found out now replaces what was known
            own = np.where(np.isfinite(scores), standardized(scores), own)
        return own

    def written(
        self, candidates: Candidates, chosen: Chosen, pool: Pool
    ) -> tuple[Chosen, Ids] | None:
        """Windows that are written after chosen ones, whose ids and groups they have."""
        if self.writer is None:
            return None
        at = places_of(chosen.ids, candidates.ids)
        known = candidates["loss"][at], candidates["ratio"][at]
        windows, of = self.writer.write(pool.fetch(chosen.ids), *known)
        ones = np.ones(len(of), dtype=np.float32)
        return Chosen(chosen.ids[of], chosen.groups[of], ones), windows

    @property
    def spent(self) -> float:
        """FLOPs so far."""
        return 0.0 if self.scorer is None else self.scorer.spent

    def facts(self) -> dict[str, Any]:
        """What is worth telling."""
        told: dict[str, Any] = {}
        if self.visits is not None and self.visits.is_reusing:
            told["reused"] = self.visits.reused
        if self.writer is not None:
            told["written"] = self.writer.state_dict()
        return told

    def state_dict(self) -> dict[str, Any]:
        """Of those that are there."""
        return {name: part.state_dict() for name, part in vars(self).items() if part is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        for name, one in state.items():
            getattr(self, name).load_state_dict(one)
