"""What is chosen now: the window that pacing opens, the scores inside it, the policy's tilt."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effcli.engine.selection.choose import Choice, Quotas, choose
from effcli.engine.selection.competence import Curriculum, competence
from effcli.engine.selection.keys import places_of
from effcli.engine.selection.listener import Listener
from effcli.engine.selection.policy import Arms, Policy
from effcli.engine.selection.pool import Candidates
from effcli.engine.selection.scales import standardized
from effcli.engine.selection.selectors import Known, Selector
from effcli.engine.selection.stages import Stages
from effcli.settings.aql import PacingSettings

Floats = NDArray[np.float64]
GROUPS, BINS = 16, 3  # arms of a policy: groups of clusters by terciles of difficulty
LARGEST_WEIGHT = 4.0
EDGES = np.arange(-3.0, 3.25, 0.5)  # of the histogram of uncertainty


@dataclass(frozen=True)
class Standards:
    """Where the scores of a whole pool lie, so that those of a few can be compared with them."""

    column: str
    """The static score that stands for uncertainty before anything was read."""
    mean: float
    deviation: float
    terciles: Floats
    """Of the losses under counts."""
    clusters: int
    shares: Floats
    """Of the pool's tokens, by arm."""
    excess: Floats
    """Mean by arm."""

    @classmethod
    def of(cls, columns: dict[str, NDArray[Any]], column: str, clusters: int) -> "Standards":
        """Of all passages that may be read."""
        static = columns[column].astype(np.float64)
        terciles = np.quantile(columns["loss"], [1 / 3, 2 / 3])
        arms = _arm(columns["cluster"].astype(int), np.searchsorted(terciles, columns["loss"]))
        size = GROUPS * BINS
        tokens = np.bincount(arms, weights=columns["length"], minlength=size)
        excess = np.bincount(arms, weights=columns["excess"] * columns["length"], minlength=size)
        with np.errstate(invalid="ignore"):
            means = excess / tokens
        spread = float(static.std()) or 1.0
        shares = tokens / tokens.sum()
        return cls(column, float(static.mean()), spread, terciles, clusters, shares, means)

    def uncertainty(self, candidates: Candidates) -> Floats:
        """The static score of candidates, standardized."""
        values = candidates[self.column].astype(np.float64)
        z: Floats = ((values - self.mean) / self.deviation).clip(-3, 3)
        return z

    def groups(self, candidates: Candidates) -> NDArray[np.int64]:
        """Cluster and tercile of every candidate, as one number."""
        bins = np.searchsorted(self.terciles, candidates["loss"])
        return candidates["cluster"].astype(np.int64) * BINS + bins

    @property
    def owners(self) -> NDArray[np.int64]:
        """The cluster of every group."""
        return np.arange(self.clusters * BINS) // BINS

    @property
    def arms(self) -> NDArray[np.int64]:
        """The arm of every group."""
        return _arm(self.owners, np.arange(self.clusters * BINS) % BINS)


def _arm(clusters: NDArray[np.int64], bins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Small clusters, which have high numbers, share the last group."""
    return np.minimum(clusters, GROUPS - 1) * BINS + bins


@dataclass(frozen=True)
class Chosen:
    """Passages to be read, and what goes with each of them."""

    ids: NDArray[np.int64]
    groups: NDArray[np.int64]
    weights: NDArray[np.float32]
    """Of its loss, for whoever wants the objective of the whole pool."""


def inverse_chances(
    scores: Floats, threshold: float, lengths: NDArray[np.int64]
) -> NDArray[np.float32]:
    """One over the chance that a key was above the threshold, at most 4 times the least.

    The mean over the tokens is 1 (importance weights; Mineiro & Karampatziakis 2013).
    """
    if not len(scores):
        return np.empty(0, dtype=np.float32)
    inverse = -1 / np.expm1(-np.exp(np.minimum(scores - threshold, 50.0)))
    clipped = np.minimum(inverse, LARGEST_WEIGHT * inverse.min())
    weights: NDArray[np.float32] = (clipped / np.average(clipped, weights=lengths)).astype(
        np.float32
    )
    return weights


class Chooser:
    """Everything that decides, and what it was told."""

    def __init__(
        self,
        selector: Selector,
        standards: Standards,
        quotas: Quotas | None,
        pacing: tuple[Curriculum | Stages, PacingSettings],
        strengths: tuple[float, float],
        policy: Policy,
        listener: Listener,
    ) -> None:
        """`strengths` are the exponent of the ratio and the largest tilt by uncertainty."""
        self._selector, self._standards, self._quotas = selector, standards, quotas
        (self._curriculum, self._pacing), (self._exponent, self._tilt) = pacing, strengths
        self._policy, self._listener = policy, listener
        self._stages = self._curriculum if isinstance(self._curriculum, Stages) else None
        self._used: Floats = np.zeros(GROUPS * BINS)
        self._by_cluster: Floats = np.zeros(standards.clusters)
        self._facts: dict[str, Any] = {}
        self.quarantined = 0
        """Candidates whose score was no number."""

    def admitted(self, progress: float) -> float:
        """The share of the pool that is easy enough."""
        pace = self._pacing
        if isinstance(self._curriculum, Stages):
            return self._curriculum.level(progress)
        shape = {"start": pace.start, "length": pace.length, "power": pace.power}
        return competence(self._curriculum, progress, **shape)

    def harder(self) -> dict[str, Floats]:
        """What was heard of clusters, as columns of difficulty."""
        owners = self._standards.owners
        means = {name: self._listener.means(name, owners) for name in ("uncertainty", "gradient")}
        return {
            name: np.where(np.isfinite(values), values, np.nanmean(values))
            for name, values in means.items()
            if np.isfinite(values).any()
        }

    def choose(
        self,
        candidates: Candidates,
        tokens: int,
        progress: float,
        seed: int,
        own: Floats | None = None,
    ) -> Chosen:
        """Choose passages of so many tokens from candidates.

        `own` is how uncertain each of them is itself, standardized; NaN where it is not known.
        """
        admitted, groups = self.admitted(progress), self._standards.groups(candidates)
        known, arms = self._known(candidates, admitted, own), self._standards.arms
        scores = self._selector.score(known) + self._tilts(progress)[arms[groups]]
        noise = (seed, 0) if self._selector.is_drawn else None
        lengths, clusters = candidates["length"], candidates["cluster"]
        quotas = None
        if self._quotas is not None and self._selector.has_quotas:
            quotas = self._quotas.left(self._by_cluster, tokens, float(lengths.mean()))
        choice = choose(scores, candidates.ids, lengths, clusters, quotas, tokens, noise)
        at = places_of(choice.ids, candidates.ids)
        self._used = np.bincount(arms[groups[at]], lengths[at], GROUPS * BINS).astype(np.float64)
        self._by_cluster = self._by_cluster + np.bincount(
            clusters[at], lengths[at], self._standards.clusters
        )
        self._facts = self._told(candidates, known, at, admitted, choice)
        self.quarantined += choice.quarantined
        weights = inverse_chances(scores[at], choice.threshold, lengths[at])
        return Chosen(choice.ids, groups[at], weights if noise else np.ones_like(weights))

    def everything(self, candidates: Candidates) -> Chosen:
        """All of them: they were chosen in an earlier pass."""
        ones = np.ones(len(candidates), dtype=np.float32)
        return Chosen(candidates.ids, self._standards.groups(candidates), ones)

    def _known(self, candidates: Candidates, admitted: float, own: Floats | None) -> Known:
        z = self._standards.uncertainty(candidates)
        heard = self._listener.means("uncertainty", self._standards.owners)
        seen = standardized(heard)[candidates["cluster"]]
        if own is not None:
            seen = np.where(np.isfinite(own), own, seen)
        if np.isfinite(heard).any() or seen.any():  # two looks at the same thing, of like spread
            z = (z + seen) / np.sqrt(2)
        return Known(candidates, z, self._exponent, self._tilt * admitted)

    def _tilts(self, progress: float) -> Floats:
        standards, arms, listener = self._standards, self._standards.arms, self._listener
        used = self._used / max(1.0, self._used.sum())
        if self._used.any():
            self._policy.hear(used, listener.means("alignment", arms, GROUPS * BINS))
        told = (listener.means(name, arms, GROUPS * BINS) for name in ("uncertainty", "alignment"))
        uncertainty, alignment = told
        state = Arms(standards.excess, uncertainty, used, alignment, progress, standards.shares)
        return self._policy.tilts(state)

    def _told(
        self,
        candidates: Candidates,
        known: Known,
        at: NDArray[np.int64],
        admitted: float,
        choice: Choice,
    ) -> dict[str, Any]:
        clusters = np.bincount(candidates["cluster"][at], candidates["length"][at])
        shares = clusters[clusters > 0] / max(1, clusters.sum())
        counts = [
            np.histogram(known.uncertainty[mask].clip(-3, 3), EDGES)[0].tolist()
            for mask in (slice(None), at)
        ]
        return {
            "admitted": admitted,
            "stage": 0 if self._stages is None else len(self._stages.decisions),
            "clusters_used": len(shares),
            "cluster_entropy": float(-(shares * np.log(shares)).sum()),
            "uncertainty_mean": float(known.uncertainty[at].mean()) if len(at) else 0.0,
            "threshold": choice.threshold if np.isfinite(choice.threshold) else None,
            "histogram": {"edges": EDGES.tolist(), "looked_at": counts[0], "chosen": counts[1]},
        }

    def hear(self, loss: float) -> dict[str, Any]:
        """Hear a held-out loss; answers with what was chosen last."""
        if self._stages is not None:
            self._stages.hear(loss)
            return {**self._facts, "decisions": self._stages.decisions}
        return self._facts

    def state_dict(self) -> dict[str, Any]:
        """All that decides."""
        return {
            "policy": self._policy.state_dict(),
            "stages": None if self._stages is None else self._stages.state_dict(),
            "used": self._used.tolist(),
            "by_cluster": self._by_cluster.tolist(),
            "facts": self._facts,
            "quarantined": self.quarantined,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._policy.load_state_dict(state["policy"])
        if self._stages is not None:
            self._stages.load_state_dict(state["stages"])
        self._used, self._facts = np.array(state["used"]), dict(state["facts"])
        self._by_cluster = np.array(state["by_cluster"])
        self.quarantined = int(state["quarantined"])
