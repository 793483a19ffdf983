"""Next tokens, and texts of one meaning brought together."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from effcli.engine.data.order import mix64_array
from effcli.engine.models.phase import Phase, third
from effcli.engine.phase.coherence import exact
from effcli.engine.phase.pairs import Ids, Pairs, about
from effcli.engine.protocols import Batch, LanguageModel, Loss, Objective

SHARP = 10.0  # of the choice between two texts, over cosines


class Aligning:
    """An objective, and for each two sequences two rows of pairs whose texts are told apart.

    Which rows is a matter of the sequences' numbers alone, whatever parts a batch is cut into.
    """

    def __init__(self, inner: Objective, pairs: Pairs, weight: float, seed: int) -> None:
        self._inner, self._pairs, self._weight, self._seed = inner, pairs, weight, seed

    def __call__(self, model: LanguageModel, batch: Batch) -> Loss:
        """The inner loss plus the weighted mean of the other."""
        assert isinstance(model, Phase)
        loss = self._inner(model, batch)
        first, second = self._texts(batch)
        if not first:
            return loss
        ones, others = about(model, first), about(model, second)
        apart = told_apart(ones[0], others[0])
        if ones[1] is not None and others[1] is not None:
            apart = apart + divergence(ones[1], others[1]).mean()
        share = len(first) / len(batch)  # 2 rows of every second sequence: 1 on average
        return Loss(loss.mean + self._weight * share * apart, loss.per_sequence, loss.features)

    def _texts(self, batch: Batch) -> tuple[list[Ids], list[Ids]]:
        """Texts in one language each and in another, two rows in a row by each chosen sequence."""
        count, languages = len(self._pairs.rows), len(self._pairs.languages)
        ids = torch.arange(len(batch)) if batch.ids.is_meta else batch.ids  # only planned
        keys = mix64_array(ids.numpy().astype(np.uint64) ^ np.uint64(self._seed))
        keys = keys[keys % np.uint64(2) == 0]
        drawn = [mix64_array(keys + np.uint64(number)) for number in range(4)]
        rows = [(draw % np.uint64(count)).astype(int) for draw in drawn[:2]]
        one = (drawn[2] % np.uint64(languages)).astype(int)
        other = (one + 1 + (drawn[3] % np.uint64(languages - 1)).astype(int)) % languages
        texts = self._pairs.rows
        chosen = list(zip(*rows, one, other, strict=True))
        first = [texts[row][a] for x, y, a, _ in chosen for row in (x, y)]
        second = [texts[row][b] for x, y, _, b in chosen for row in (x, y)]
        return first, second

    def flops(self, model: LanguageModel, batch: Batch) -> dict[str, float]:
        """With forward and backward of a third of the layers on the pairs."""
        assert isinstance(model, Phase)
        bill = self._inner.flops(model, batch)
        s, each = model.settings, self._texts(batch)
        for texts in filter(None, each):
            shape = (len(texts), max(map(len, texts)))
            head = 2.0 * s.width * len(model.head) * shape[0] * shape[1]
            share = (third(s.layers) + 1) / s.layers
            bill["train"] += 3 * share * (model.forward_flops(*shape) - head)
        return bill


def told_apart(first: Tensor, second: Tensor) -> Tensor:
    """How well each text finds its own among two, in both directions; in nats, 0 at best."""
    a, b = (F.normalize(exact(x), dim=-1).view(-1, 2, first.shape[1]) for x in (first, second))
    near = SHARP * a @ b.mT
    own = torch.arange(2, device=near.device).expand(len(near), 2)
    return (F.cross_entropy(near, own) + F.cross_entropy(near.mT, own)) / 2


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence of shares of codes, in 0..ln 2."""
    mean = ((first + second) / 2).clamp(min=1e-30).log()
    parts = [x * (x.clamp(min=1e-30).log() - mean) for x in (first, second)]
    return torch.stack(parts).sum((0, -1)) / 2
