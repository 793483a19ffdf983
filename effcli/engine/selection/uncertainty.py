"""How little a language model knows about a sequence: the shape of every measure of it.

All of them look at a few positions only, evenly spread, and listen to the training step,
whose features are there anyway.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from effcli.engine.protocols import Batch, LanguageModel

FIRST = 32  # earlier positions are uncertain for want of context, not of knowledge
POSITIONS = 16


@runtime_checkable
class Uncertainty(Protocol):
    """Listens to training, and says what the model does not know yet."""

    def observe(
        self, model: LanguageModel, batch: Batch, features: Float[Tensor, "batch time width"]
    ) -> None:
        """Hear of a part of a training step; nothing that is used changes before `commit`."""
        ...

    def commit(self, add_up: Callable[[list[Tensor]], None]) -> None:
        """Take in what was heard; `add_up` sums tensors in place over all processes.

        Every process must have observed, or none. Tensors of the state are replaced,
        never written to, so a state that was taken before stays what it was.
        """
        ...

    def score(
        self, model: LanguageModel, batch: Batch, features: Float[Tensor, "batch time width"]
    ) -> Float[Tensor, " batch"]:
        """How uncertain each sequence is, in float32: larger is less known."""
        ...

    def flops(self, model: LanguageModel, sequences: int, time: int) -> float:
        """What observing and scoring that many sequences once costs, beyond the forward pass."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that was taken in: numbers, strings and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, without what was heard and not yet taken in."""
        ...


def places(time: int, count: int) -> Int[Tensor, " positions"]:
    """At most `count` positions of a sequence, evenly spread behind its beginning."""
    first = min(FIRST, time // 4)
    return torch.linspace(first, time - 1, min(count, time - first)).round().long()


def looked_at(
    features: Float[Tensor, "batch time width"], count: int
) -> Float[Tensor, "batch positions width"]:
    """The features at `places`, in their own type."""
    chosen = places(features.shape[1], count).to(features.device)
    return features.detach().index_select(1, chosen)


def probabilities(
    model: LanguageModel, features: Float[Tensor, "*any width"]
) -> Float[Tensor, "*any vocab"]:
    """What the model expects to come next, in float32."""
    return model.logits(features).softmax(-1)


def entropies(chances: Float[Tensor, "*any vocab"]) -> Float[Tensor, "*any"]:
    """Entropy of each distribution, in nats."""
    entropy: Tensor = torch.special.entr(chances).sum(-1)
    return entropy


def disagreement(chances: Float[Tensor, "members *any vocab"]) -> Float[Tensor, "*any"]:
    """Entropy of the mean less the mean entropy, in nats: 0 where all members agree.

    For draws from a posterior it is the mutual information of the next token and the
    weights (Houlsby et al. 2011); for an ensemble, the Jensen-Shannon divergence.
    """
    return entropies(chances.mean(0)) - entropies(chances).mean(0)


def head_flops(model: LanguageModel, positions: int) -> float:
    """Cost of the logits at so many positions."""
    return 2.0 * positions * model.head.numel()
