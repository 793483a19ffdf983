"""The shapes everything else fits. Read this file first.

Shapes:  batch = sequences, time = positions, width = channels, vocab = token ids.
Units:   loss in nats per token, cost in FLOPs, progress in 0..1 of the budget.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from effcli.engine.records import Record

ACCOUNTS = ("train", "select", "teacher", "grow", "meta", "eval")
"""Every cost has an account. Budgets pay for all but `eval`."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences and, at each position, the token that comes next."""

    inputs: Int[Tensor, "batch time"]
    targets: Int[Tensor, "batch time"]
    ids: Int[Tensor, " batch"]
    """The number of each sequence in its corpus; never on a GPU, where to read it is to wait."""
    weights: Float[Tensor, " batch"] | None = None
    """Of each sequence's loss, with a mean of about 1; none are ones."""

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, stop: int) -> "Batch":
        """Some of the sequences."""
        part = slice(start, stop)
        weights = None if self.weights is None else self.weights[part]
        return Batch(self.inputs[part], self.targets[part], self.ids[part], weights)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device, but for its numbers; a GPU fetches as it works."""
        weights = None if self.weights is None else sent(self.weights, device)
        inputs, targets = sent(self.inputs, device), sent(self.targets, device)
        return Batch(inputs, targets, self.ids, weights)


def sent(part: Tensor, device: torch.device) -> Tensor:
    """A tensor on another device; a GPU fetches it while it works."""
    if device.type == "cuda" and not part.is_cuda:
        return part.pin_memory().to(device, non_blocking=True)
    return part.to(device)


@dataclass(frozen=True, slots=True)
class Loss:
    """What an objective says about a batch."""

    mean: Float[Tensor, ""]
    """What is minimized."""
    per_sequence: Float[Tensor, " batch"]
    """Mean over each sequence, detached."""
    features: Float[Tensor, "batch time width"]
    """The model's last features, detached: whoever listens need not compute them again."""


class LanguageModel(nn.Module, ABC):
    """Predicts each next token from the ones before it, never from later ones.

    The last features and the head are apart, because a loss in chunks, a posterior
    over the last layer and generation of one token all need them so.
    """

    vocab_size: int
    """Ids that can be predicted; `head` may have more rows, which do not count."""
    context: int
    """Positions seen at once."""
    soft_cap: float
    """Logits are squashed into ± this; 0 leaves them alone."""
    endless: bool = False
    """Its cache never fills: however long a text is, what it has read is never cut."""

    trunk: nn.Module
    """Everything below the head: from ids, and perhaps a cache, to the last features."""
    dtype: torch.dtype = torch.float32
    """Type of activations and products; the weights themselves are float32."""
    settled_head: Tensor | Callable[[Tensor], Tensor] | None = None
    """The head in the type of products, or what makes its logits, where it will not change."""

    def features(
        self, tokens: Int[Tensor, "batch time"], cache: Any = None
    ) -> Float[Tensor, "batch time width"]:
        """The last hidden state. With a cache, `tokens` continue what is in it."""
        if cache is None:
            # Contiguous, because a compiled trunk is made for one layout of its input.
            features: Tensor = self.trunk(tokens.contiguous())
            return features
        cached: Tensor = self.trunk.forward(tokens, cache)  # never compiled: every length is new
        return cached

    @property
    @abstractmethod
    def head(self) -> Float[Tensor, "rows width"]:
        """One row for each token id; the logits are products with it."""

    @property
    def phases(self) -> Float[Tensor, "vocab channels"] | None:
        """Unit phasors of every token, [re | im]; none where a model has none."""
        return None

    @abstractmethod
    def new_cache(self, batch: int) -> Any:
        """Room for the keys and values of `context` positions; of all, where it is `endless`."""

    @abstractmethod
    def forward_flops(self, batch: int, time: int, *, dense: bool = False) -> float:
        """FLOPs of one forward pass, head included; `dense` counts masked attention too."""

    def backward_flops(self, batch: int, time: int) -> float:
        """FLOPs of one backward pass: two products for each one of the forward."""
        return 2 * self.forward_flops(batch, time)

    @abstractmethod
    def parameter_count(self) -> int:
        """Weights, without rows that only pad a table."""

    def role(self, name: str, parameter: Tensor) -> str:
        """What a tensor is to an optimizer: `matrix`, `embedding`, `table`, `head` or `scalar`."""
        if parameter.ndim < 2:
            return "scalar"
        if "table" in name:  # its gradient is sparse
            return "table"
        if "unembedding" in name:
            return "head"
        return "embedding" if "embedding" in name or "positions" in name else "matrix"

    def forward(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocab"]:
        """Logits of the next token at every position, in float32."""
        return self.logits(self.features(tokens))

    def logits(self, features: Float[Tensor, "*any width"]) -> Float[Tensor, "*any vocab"]:
        """What the head makes of features, in float32."""
        logits = self.products(features)
        return logits if not self.soft_cap else self.soft_cap * (logits / self.soft_cap).tanh()

    def products(self, features: Float[Tensor, "*any width"]) -> Float[Tensor, "*any vocab"]:
        """The same before the soft cap."""
        head = self.settled_head
        if head is None:
            head = self.head[: self.vocab_size].to(features.dtype)
        return (features @ head.T).float() if isinstance(head, Tensor) else head(features)


@runtime_checkable
class Objective(Protocol):
    """Turns a model and a batch into something to minimize."""

    def __call__(self, model: LanguageModel, batch: Batch) -> Loss:
        """The loss of a batch; its gradient is the sum over the batch divided by its size."""
        ...

    def flops(self, model: LanguageModel, batch: Batch) -> dict[str, float]:
        """What forward and backward on a batch cost, by account."""
        ...


@runtime_checkable
class BatchSource(Protocol):
    """Decides what the model reads next."""

    def draw(self, progress: float) -> Batch:
        """The sequences of one optimizer step, on the CPU."""
        ...

    def feedback(self, batch: Batch, loss: Loss) -> None:
        """Hear how a part of the step's batch went."""
        ...

    def hear(self, loss: float) -> list[Record]:
        """Hear a held-out loss; whoever has something to tell does so."""
        ...

    @property
    def unique_tokens(self) -> int:
        """How many different tokens of the corpus were drawn so far."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly: numbers, strings and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        ...
