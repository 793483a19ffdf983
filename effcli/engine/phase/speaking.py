"""Whether a model means the same in all of its languages."""

import torch
import torch.nn.functional as F
from torch import Tensor

from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.models.phase import Phase
from effcli.engine.phase.pairs import Pairs, about
from effcli.engine.records import AlignmentFound

_ROWS = 64  # texts that are read at once


@torch.no_grad()
def aligned(model: Phase, tokenizer: Tokenizer, pairs: Pairs | None) -> AlignmentFound:
    """How far languages are turned, and what texts that were set aside find of their own."""
    assert model.spoken is not None
    squares = model.spoken.angles_embedding.square().mean(1)
    turned = dict(zip(tokenizer.marks, squares.sqrt().tolist(), strict=True))
    if pairs is None:
        return AlignmentFound({"turned": turned})
    found = retrieval(model, pairs)
    return AlignmentFound({"turned": turned, "pairs": len(pairs.aside), "retrieval": found})


@torch.no_grad()
def retrieval(model: Phase, pairs: Pairs) -> dict[str, float]:
    """Share of the texts set aside whose nearest in another language means the same."""
    was_training = model.training
    model.eval()
    means = {name: _means(model, pairs, n) for n, name in enumerate(pairs.languages)}
    model.train(was_training)
    found = {}
    for one, a in means.items():
        for other, b in means.items():
            if one != other:
                own = torch.arange(len(a), device=a.device)
                found[f"{one}-{other}"] = float(((a @ b.T).argmax(1) == own).float().mean())
    return found


def _means(model: Phase, pairs: Pairs, language: int) -> Tensor:
    texts = [row[language] for row in pairs.aside]
    parts = [about(model, texts[at : at + _ROWS])[0] for at in range(0, len(texts), _ROWS)]
    return F.normalize(torch.cat(parts), dim=-1)
