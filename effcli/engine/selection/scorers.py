"""Scores of single candidates before they are chosen, by the model itself or by a small proxy.

What listening to training says about a cluster is the same for all of its passages; this is
about each passage by itself. It costs forward passes, so only as many candidates are scored
as there is credit for, in a random order.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from effcli.engine.models.gpt import GPT
from effcli.engine.objectives.next_token import NextToken
from effcli.engine.optim.optimizer import Optimizer
from effcli.engine.processes import Processes
from effcli.engine.protocols import Batch, LanguageModel
from effcli.engine.selection.governor import Governor
from effcli.engine.selection.keys import uniform
from effcli.engine.selection.laplace import Laplace
from effcli.engine.selection.passages import Ids
from effcli.engine.selection.uncertainty import Uncertainty, head_flops
from effcli.settings.model import GPTSettings
from effcli.settings.optim import AdamWSettings

Floats = NDArray[np.float64]
Fetch = Callable[[Ids], Ids]

PROXY_VOCAB, PROXY_CONTEXT, PROXY_OBSERVED, PROXY_RATE = 1024, 256, 8, 3e-3
LEARNING_SHARE = 0.5  # of a proxy's credit
_ORDER = 5  # salt of the order in which candidates are scored


class Scorer:
    """Scores by the model as it is now. Several processes share the work, as that of a step."""

    def __init__(
        self,
        model: LanguageModel,
        uncertainty: Uncertainty,
        governor: Governor,
        processes: Processes,
        micro: int,
        seed: int,
    ) -> None:
        """At most `micro` windows are scored at one time."""
        self._model, self._uncertainty, self._governor = model, uncertainty, governor
        self._processes, self._micro, self._seed = processes, micro, seed

    def hear(self, batch: Batch, training_flops: float) -> None:
        """What training reads; the model learns from it without us."""

    def scores(self, ids: Ids, fetch: Fetch, training_flops: float) -> Floats:
        """How uncertain windows are, in random order as far as credit goes; NaN for the others."""
        out: Floats = np.full(len(ids), np.nan)
        time = self._model.context
        cost = self.scoring_flops(time)
        count = min(len(ids), int(self._governor.credit(training_flops) / cost))
        if count <= 0:
            return out
        self._governor.spent(count * cost)
        order = np.argsort(uniform(ids, self._seed, 0, _ORDER))
        scored = np.sort(order[:count])
        windows = fetch(ids[scored])
        middle = (windows.shape[1] - time) // 2
        out[scored] = self._scored(torch.from_numpy(windows[:, middle : middle + time]))
        return out

    def scoring_flops(self, time: int) -> float:
        """Of one window: a forward pass without the head, and the score."""
        model, told = self._model, self._uncertainty
        score = told.flops(model, 1, time) - told.flops(model, 0, time)
        return model.forward_flops(1, time) - head_flops(model, time) + score

    @torch.no_grad()
    def _scored(self, windows: Int[Tensor, "windows time"]) -> Floats:
        model, processes = self._model, self._processes
        found = torch.zeros(len(windows), dtype=torch.float64)
        was_training = model.training
        model.eval()
        mine = torch.arange(processes.rank, len(windows), processes.world)
        for part in torch.split(mine, self._micro):
            tokens = self._ids(windows[part]).to(model.head.device)
            batch = Batch(tokens, tokens, part)  # no score looks at targets
            features = model.trunk.forward(tokens)  # never compiled: numbers of windows differ
            found[part] = self._uncertainty.score(model, batch, features).double().cpu()
        model.train(was_training)
        processes.add_up([found])
        return found.numpy()

    def _ids(self, tokens: Tensor) -> Tensor:
        return tokens

    @property
    def spent(self) -> float:
        """FLOPs so far."""
        return self._governor.total

    def state_dict(self) -> dict[str, Any]:
        """What was spent; the model and its uncertainty are kept elsewhere."""
        return {"governor": self._governor.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._governor.load_state_dict(state["governor"])


class Proxy(Scorer):
    """Scores by a small model with hashed tokens, which reads some of the batches, too."""

    def __init__(
        self,
        shape: GPTSettings,
        vocab_size: int,
        share: float,
        processes: Processes,
        device: torch.device,
        seed: int,
    ) -> None:
        """`share` of what training costs may be spent on learning and scoring together."""
        model = GPT(shape, min(vocab_size, PROXY_VOCAB), seed).to(device)
        governor = Governor(share * (1 - LEARNING_SHARE), 0.0)
        micro = max(1, 2**15 // shape.context)
        told = Laplace(sequences=PROXY_OBSERVED)
        super().__init__(model, told, governor, processes, micro, seed)
        self._learning = Governor(share * LEARNING_SHARE, 0.0)
        self._objective, self._hashed = NextToken(), hashed(vocab_size)
        self._optimizer = Optimizer(model, ADAM)
        self._kept = self._snapshot()

    def hear(self, batch: Batch, training_flops: float) -> None:
        """Learn from a step's batch, if there is credit for it."""
        model, processes = self._model, self._processes
        time = min(batch.inputs.shape[1], model.context)
        cost = self.learning_flops(len(batch), time)
        if not self._learning.allows(training_flops, cost):
            return
        self._learning.spent(cost)
        mine = batch.part(*processes.share(len(batch)))
        inputs, targets = (self._ids(part[:, :time]) for part in (mine.inputs, mine.targets))
        mine = Batch(inputs, targets, mine.ids).to(model.head.device)
        loss = self._objective(model, mine)
        (loss.mean * (len(mine) / len(batch))).backward()  # type: ignore[no-untyped-call]
        processes.add_up(self._optimizer.gradients())
        self._optimizer.clip()
        self._optimizer.step(1.0)
        self._optimizer.zero_grad()
        self._uncertainty.observe(model, mine, loss.features)
        self._uncertainty.commit(processes.add_up)
        self._kept = self._snapshot()

    def learning_flops(self, sequences: int, time: int) -> float:
        """What learning from so many sequences costs, all processes together."""
        model = self._model
        observed = self._uncertainty.flops(model, 0, time) * self._processes.world
        both = model.forward_flops(sequences, time) + model.backward_flops(sequences, time)
        return both + observed

    def _ids(self, tokens: Tensor) -> Tensor:
        return self._hashed[tokens]

    @property
    def spent(self) -> float:
        """FLOPs so far, those of learning included."""
        return self._governor.total + self._learning.total

    def _snapshot(self) -> dict[str, Any]:
        """A copy: the weights and moments themselves are written to."""
        return {
            "weights": _copied(self._model.state_dict()),
            "moments": _copied(self._optimizer.state_dict()),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything; it is copied when something was learned, not when it is asked for."""
        told = {"learning": self._learning.state_dict(), "told": self._uncertainty.state_dict()}
        return {**super().state_dict(), **told, **self._kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        super().load_state_dict(state)
        self._learning.load_state_dict(state["learning"])
        self._uncertainty.load_state_dict(state["told"])
        self._model.load_state_dict(state["weights"])
        self._optimizer = Optimizer(self._model, ADAM)
        self._optimizer.load_state_dict(_copied(state["moments"]))
        self._kept = self._snapshot()


ADAM = AdamWSettings(lr=PROXY_RATE)


def proxy_shape(layers: int, width: int, context: int) -> GPTSettings:
    """A plain transformer without tables, of short windows."""
    return GPTSettings(
        layers=layers,
        width=width,
        context=min(PROXY_CONTEXT, context),
        shift=0,
        pair_rows=0,
        value_tables=False,
    )


def hashed(vocab_size: int) -> Int[Tensor, " vocab"]:
    """The id of every token for a proxy: its own where there are few, else a fixed hash."""
    ids = torch.arange(vocab_size)
    if vocab_size <= PROXY_VOCAB:
        return ids
    return (ids * 2_654_435_761 % 2**32) * PROXY_VOCAB // 2**32  # Knuth's multiplicative


def _copied(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in tensors.items()}
