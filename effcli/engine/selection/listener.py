"""What the training forward says about groups of passages, at next to no cost.

A passage that was read says what the model knows of its cluster; nothing else is run
over the pool. How often it is listened to is decided by what it costs.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effcli.engine.processes import Processes
from effcli.engine.protocols import Batch, LanguageModel, Loss
from effcli.engine.selection.alignment import Holdout, alignment, residuals
from effcli.engine.selection.governor import Governor
from effcli.engine.selection.uncertainty import Uncertainty, head_flops, looked_at, places

Floats = NDArray[np.float64]
KEPT = 0.98  # of what is known of a cluster, at every step that is listened to
SIGNALS = ("uncertainty", "loss", "gradient", "alignment")
TRUSTED_SEQUENCES = 16
_POSITIONS = 16


class Groups:
    """The group of every passage that a step may have."""

    def __init__(self, ids: NDArray[np.int64], groups: NDArray[np.int64]) -> None:
        self._ids, first = np.unique(ids, return_index=True)
        self._groups = groups[first]

    def of(self, ids: Tensor) -> Tensor:
        """The groups of a batch."""
        return torch.from_numpy(self._groups[np.searchsorted(self._ids, ids.cpu().numpy())])


class Listener:
    """Running means by group of uncertainty, loss, gradient norm and alignment."""

    def __init__(
        self,
        model: LanguageModel,
        uncertainty: Uncertainty,
        groups: int,
        processes: Processes,
        governor: Governor,
        trusted: Batch | None = None,
    ) -> None:
        """`trusted` text is what gradients are compared with, if at all."""
        self.model, self._uncertainty, self._processes = model, uncertainty, processes
        self._governor, self._trusted = governor, trusted
        self._sums = torch.zeros(1 + len(SIGNALS), groups, dtype=torch.float64)
        self._pending: Tensor | None = None
        self._listens, self._missing = False, 0
        self._holdout: Holdout | None = None

    def begin_step(self, training_flops: float, sequences: int) -> None:
        """Decide whether to listen to the step."""
        cost = self.flops(sequences)
        self._listens = self._governor.allows(training_flops, cost)
        start, stop = self._processes.share(sequences)
        self._missing = stop - start
        if self._listens:
            self._governor.spent(cost)

    def begin_round(self, training_flops: float) -> None:
        """Look at trusted text again, with the model as it is now."""
        if self._trusted is None:
            return
        shape = (len(self._trusted), self.model.context)
        cost = self.model.forward_flops(*shape)
        if not self._governor.allows(training_flops, cost) and self._holdout is not None:
            return
        self._governor.spent(cost)
        place = self.model.head.device
        batch = self._trusted.to(place)
        with torch.no_grad():
            features = self.model.features(batch.inputs)
            self._holdout = Holdout.of(self.model, features, batch.targets)

    @torch.no_grad()
    def hear(self, batch: Batch, loss: Loss, groups: Tensor) -> Tensor | None:
        """Add up what a part of a step says about each group.

        Returns score and loss of each sequence, if the step is listened to.
        """
        if not self._listens:
            return None
        model, features = self.model, loss.features
        self._uncertainty.observe(model, batch, features)
        score = self._uncertainty.score(model, batch, features)
        told = [score, loss.per_sequence, self._gradient_norms(batch, features)]
        if self._holdout is not None:
            told.append(alignment(model, features, batch.targets, self._holdout))
        else:
            told.append(torch.zeros_like(score))
        rows = torch.stack([torch.ones_like(score), *told]).double().cpu()
        heard = torch.zeros_like(self._sums).index_add_(1, groups, rows)
        self._pending = heard if self._pending is None else self._pending + heard
        self._missing -= len(batch)
        if not self._missing:
            self._commit()
        return rows[1:3]

    def _gradient_norms(self, batch: Batch, features: Tensor) -> Tensor:
        """Mean of ‖p - e_y‖ ‖φ‖ over a few positions: the norm of the head's gradient there."""
        where = places(features.shape[1], _POSITIONS).to(features.device)
        few = looked_at(features, _POSITIONS)
        slopes = residuals(self.model, few, batch.targets.index_select(1, where))
        norms: Tensor = (slopes.norm(dim=-1) * few.float().norm(dim=-1)).mean(1)
        return norms

    def _commit(self) -> None:
        """Take in a step, all parts of it, at the same place in all processes."""
        self._uncertainty.commit(self._add_up)
        heard = torch.zeros_like(self._sums) if self._pending is None else self._pending
        self._add_up([heard])
        self._sums = KEPT * self._sums + heard
        self._pending = None

    def _add_up(self, tensors: list[Tensor]) -> None:
        self._processes.add_up(tensors)

    def means(self, signal: str, parents: NDArray[np.int64], count: int | None = None) -> Floats:
        """The running mean of a signal by parent of the groups; NaN where nothing was heard."""
        row, size = self._sums[1 + SIGNALS.index(signal)].numpy(), count or int(parents.max()) + 1
        heard = np.bincount(parents, self._sums[0].numpy(), size)
        known: Floats = np.full(size, np.nan)
        np.divide(np.bincount(parents, row, size), heard, out=known, where=heard > 1e-9)
        return known

    def flops(self, sequences: int) -> float:
        """What listening to a step of so many sequences costs."""
        time = self.model.context
        cost = self._uncertainty.flops(self.model, sequences, time)
        cost += head_flops(self.model, sequences * _POSITIONS)
        return cost + (0.0 if self._holdout is None else self._holdout.flops(sequences))

    @property
    def spent(self) -> float:
        """FLOPs so far."""
        return self._governor.total

    def state_dict(self) -> dict[str, Any]:
        """All that was taken in; tensors are replaced, never written to."""
        state: dict[str, Any] = {
            "sums": self._sums,
            "uncertainty": self._uncertainty.state_dict(),
            "governor": self._governor.state_dict(),
        }
        if self._holdout is not None:
            held = self._holdout
            names = ("features", "residuals", "norm")
            state["holdout"] = {name: getattr(held, name) for name in names}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, without what was heard and not yet taken in."""
        self._sums, self._pending, self._listens = state["sums"].clone(), None, False
        self._uncertainty.load_state_dict(state["uncertainty"])
        self._governor.load_state_dict(state["governor"])
        held = state.get("holdout")
        self._holdout = None if held is None else Holdout(**held, root=None)
