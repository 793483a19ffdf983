"""The ordinary objective: predict the next token."""

from effcli.engine.objectives.cross_entropy import head_loss
from effcli.engine.protocols import Batch, LanguageModel, Loss


class NextToken:
    """Mean cross-entropy of every next token."""

    def __init__(self, rows: int | None = None) -> None:
        self._rows = rows

    def __call__(self, model: LanguageModel, batch: Batch) -> Loss:
        """One forward pass."""
        features = model.features(batch.inputs)
        mean, each = head_loss(model, features, batch.targets, self._rows, batch.weights)
        return Loss(mean, each.mean(1), features.detach())

    def flops(self, model: LanguageModel, batch: Batch) -> dict[str, float]:
        """Forward and backward, all of it training."""
        shape = batch.inputs.shape
        return {"train": model.forward_flops(*shape) + model.backward_flops(*shape)}
