"""A model learns hard text also from what it thought of it a while ago."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from effcli.engine.objectives.cross_entropy import head_loss
from effcli.engine.protocols import Batch, LanguageModel, Loss

HARD = 4  # one in so many sequences is hard


class Snapshot:
    """A model as it was at some time. Its tensors are replaced, never written to."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
        self.is_taken = False

    def take(self, model: LanguageModel) -> None:
        """Remember the model as it is now."""
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.model.load_state_dict(weights, assign=True)
        self.model.requires_grad_(requires_grad=False)
        self.is_taken = True

    def state_dict(self) -> dict[str, Any]:
        """The weights, if any were taken."""
        return dict(self.model.state_dict()) if self.is_taken else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.is_taken = bool(state)
        if state:
            place = self.model.head.device
            weights = {name: tensor.to(place).clone() for name, tensor in state.items()}
            self.model.load_state_dict(weights, assign=True)
            self.model.requires_grad_(requires_grad=False)


class SelfDistillation:
    """Cross-entropy, and on the hardest quarter of sequences the divergence from a snapshot.

    KL(snapshot ‖ model) of every next token (Furlanello et al. 2018), times `weight`.
    """

    def __init__(self, snapshot: Snapshot, weight: float, rows: int | None = None) -> None:
        self._snapshot, self._weight, self._rows = snapshot, weight, rows

    def __call__(self, model: LanguageModel, batch: Batch) -> Loss:
        """Two forward passes for hard sequences, one for the others."""
        features = model.features(batch.inputs)
        mean, each = head_loss(model, features, batch.targets, self._rows, batch.weights)
        losses = each.mean(1)
        count = len(batch) // HARD
        if count and self._snapshot.is_taken and torch.is_grad_enabled():
            hard = losses.topk(count).indices
            with torch.no_grad():
                before = self._snapshot.model.features(batch.inputs[hard])
            apart = [
                checkpoint(self._divergence, model, mine, theirs, use_reentrant=False)
                for mine, theirs in zip(features[hard], before, strict=True)
            ]
            mean = mean + self._weight * torch.stack(apart).sum() / batch.inputs.numel()
        return Loss(mean, losses, features.detach())

    def _divergence(
        self,
        model: LanguageModel,
        mine: Float[Tensor, "time width"],
        theirs: Float[Tensor, "time width"],
    ) -> Float[Tensor, ""]:
        """Sum over a sequence, whose logits are not kept for the backward pass."""
        with torch.no_grad():
            wanted = self._snapshot.model.logits(theirs).log_softmax(-1)
        found = model.logits(mine).log_softmax(-1)
        return F.kl_div(found, wanted, reduction="sum", log_target=True)

    def flops(self, model: LanguageModel, batch: Batch) -> dict[str, float]:
        """The snapshot's forward pass is a teacher's; the second look at the head is training."""
        sequences, time = batch.inputs.shape
        train = model.forward_flops(sequences, time) + model.backward_flops(sequences, time)
        if not self._snapshot.is_taken:
            return {"train": train}
        count = sequences // HARD
        head = 2.0 * count * time * model.head.numel()
        # Forward, again for the backward pass, and that is two products; the snapshot's once more.
        again = {"train": train + 4 * head}
        return again | {"teacher": self._snapshot.model.forward_flops(count, time) + head}
