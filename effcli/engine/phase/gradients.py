"""Which way energies would pull the weights, beside the loss."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from effcli.engine.models.phase import Phase
from effcli.engine.phase.listening import energies, listening

MOST = 2048  # tokens


def gradient_shares(model: Phase, tokens: Int[Tensor, "batch time"]) -> dict[str, dict[str, float]]:
    """Of each energy, the norm of its gradient by that of the loss, and their cosine.

    By the weights of the blocks, at a weight of 1; the model as it is when it is used. A cosine
    above 0 is an energy that goes down where the loss does.
    """
    named = model.trunk.blocks.named_parameters()
    steered = (".balance", ".center")  # whose gradients are none of a loss
    weights = [one for name, one in named if one.requires_grad and not name.endswith(steered)]
    with torch.enable_grad(), listening(model) as heard:
        some = tokens[: max(1, MOST // tokens.shape[1])]
        logits = model.logits(model.trunk.forward(some[:, :-1]))
        loss = F.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten())
        own = _gradient(loss, weights)
        size = own.norm().clamp(min=1e-30)
        found = {}
        for name, energy in energies(heard).items():
            pull = _gradient(energy, weights)
            norm = pull.norm()
            cosine = pull @ own / (size * norm.clamp(min=1e-30))
            found[name] = {"share": float(norm / size), "cosine": float(cosine)}
    return found


def _gradient(of: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """By all weights, in a row; 0 where one has no part in it."""
    if not of.requires_grad:
        return torch.zeros(sum(one.numel() for one in weights), device=of.device)
    found = torch.autograd.grad(of, weights, retain_graph=True, allow_unused=True)
    parts = zip(found, weights, strict=True)
    return torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in parts])
