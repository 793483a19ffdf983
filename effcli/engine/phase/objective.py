"""Next tokens, and phases as they are wished."""

import torch

from effcli.engine.models.phase import Phase
from effcli.engine.objectives.next_token import NextToken
from effcli.engine.phase.curriculum import Curriculum
from effcli.engine.phase.listening import energies, listening
from effcli.engine.protocols import Batch, LanguageModel, Loss


class WithEnergies:
    """Cross-entropy plus weighted energies of the same forward pass."""

    def __init__(self, inner: NextToken, weigher: Curriculum) -> None:
        self._inner, self._weigher = inner, weigher

    def __call__(self, model: LanguageModel, batch: Batch) -> Loss:
        """One forward pass."""
        assert isinstance(model, Phase)
        weights = {name: weight for name, weight in self._weigher.weights.items() if weight}
        if not weights:
            return self._inner(model, batch)
        with listening(model) as heard:
            loss = self._inner(model, batch)
        found = energies(heard)
        more = torch.stack([w * found[name] for name, w in weights.items() if name in found]).sum()
        return Loss(loss.mean + more, loss.per_sequence, loss.features)

    def flops(self, model: LanguageModel, batch: Batch) -> dict[str, float]:
        """With the products of the energies that count."""
        assert isinstance(model, Phase)
        bill = self._inner.flops(model, batch)
        if self._weigher.weights.get("interference"):
            s, positions = model.settings, batch.inputs.numel()
            # K by K products of keys, in each head of each layer, forward and backward.
            bill["train"] += 3 * 2.0 * positions * s.layers * s.width * (s.width // s.heads)
        return bill
