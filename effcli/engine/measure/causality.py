"""Whether a model predicts from the past alone: a loss that knows the future means nothing."""

import torch
from torch import Tensor

from effcli.engine.protocols import LanguageModel
from effcli.errors import CheckError

LENGTH = 320  # of the text that is tried: beyond a chunk of memories and a window of attention
SPREAD = 0.3  # of random weights: those of a new model are zero in places, which would hide a leak


@torch.no_grad()
def require_causal(model: LanguageModel) -> None:
    """Refuse a model whose predictions change with later tokens, or do not with earlier ones.

    Its weights are lost: they are drawn anew, so that every path carries something.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0.0, SPREAD, generator=generator)
    length = min(LENGTH, model.context)
    tokens = torch.randint(model.vocab_size, (1, length), generator=generator)
    for is_training in (True, False):
        _try(model.train(is_training), tokens)


def _try(model: LanguageModel, tokens: Tensor) -> None:
    def logits(tokens: Tensor) -> Tensor:
        with torch.random.fork_rng([]):  # whatever is dropped is the same each time
            torch.manual_seed(0)
            found: Tensor = model(tokens)
            return found

    length, before = tokens.shape[1], logits(tokens)
    for at in {1, length // 2, length - 1}:
        changed = tokens.clone()
        changed[:, at:] = (changed[:, at:] + 1) % model.vocab_size
        after = logits(changed)
        if not torch.equal(before[:, :at], after[:, :at]):
            raise CheckError(
                f"{type(model).__name__} looks ahead: what it predicts before position {at} "
                "depends on tokens from there on",
                "a model must see only what comes before",
            )
        if torch.equal(before[:, at:], after[:, at:]):
            raise CheckError(f"{type(model).__name__} does not see what it reads")
