"""Head and cross-entropy together, some rows at a time.

The logits of a whole batch never exist: at 50k ids and 8k positions they would take
1.6 GB in float32, twice. The gradients are made in the forward pass, while the rows'
logits are at hand, so nothing is computed twice. The soft cap is written as a sigmoid,
which CPUs compute ten times as fast as a hyperbolic tangent.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from effcli.engine.protocols import LanguageModel

CHUNK_LOGITS = 2**21  # what stays in a CPU's cache; measured against half and twice as many


def head_loss(
    model: LanguageModel,
    features: Float[Tensor, "batch time width"],
    targets: Int[Tensor, "batch time"],
    rows: int | None = None,
    weights: Float[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch time"]]:
    """Mean loss, to be differentiated, and the loss at every position; in nats.

    `rows` positions have logits at one time; by default what suits the processor. With
    `weights`, one for each sequence, the mean is of weighted losses.
    """
    if rows is None:
        rows = rows_at_once(features, model.vocab_size, 4096)
    x, head = features.flatten(0, 1), model.head
    # Inside the function it cannot be asked: there, gradients are always off.
    is_trained = torch.is_grad_enabled() and (x.requires_grad or head.requires_grad)
    how = (model.vocab_size, model.soft_cap, rows, is_trained)
    every = None if weights is None else weights.repeat_interleave(targets.shape[1])
    mean, each = _ChunkedCrossEntropy.apply(x, head, targets.flatten(), every, how)  # type: ignore[no-untyped-call]
    return mean, each.view_as(targets)


def rows_at_once(x: Tensor, vocab_size: int, on_gpu: int = 2048) -> int:
    """Positions that have logits at one time, where nobody says how many."""
    return on_gpu if x.is_cuda else max(256, CHUNK_LOGITS // vocab_size)


class ChunkedLoss(torch.autograd.Function):
    """A mean over positions whose gradients are made in its forward pass, and saved there."""

    @staticmethod
    def backward(ctx: Any, mean_gradient: Tensor, _: Tensor) -> Any:
        """The saved gradients by features and head, scaled; three other inputs have none."""
        x_gradient, head_gradient = ctx.saved_tensors
        scale = mean_gradient / len(x_gradient)
        x_gradient = (x_gradient.float() * scale).to(x_gradient.dtype)
        return x_gradient, head_gradient * scale, None, None, None


class _ChunkedCrossEntropy(ChunkedLoss):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        head: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        how: tuple[int, float, int, bool],
    ) -> tuple[Tensor, Tensor]:
        vocab, soft_cap, rows, is_trained = how
        weight = head.to(x.dtype)
        each = torch.empty(len(x), dtype=torch.float32, device=x.device)
        if is_trained:
            x_gradient, head_gradient = torch.empty_like(x), torch.zeros_like(head)
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            logits = (x[part] @ weight.T)[:, :vocab].float()
            if soft_cap:  # cap * tanh(z / cap) = 2 cap * sigmoid(2 z / cap) - cap
                squashed = logits.mul_(2 / soft_cap).sigmoid_()
                logits = squashed * (2 * soft_cap)  # no need to shift what a softmax sees
            column = targets[part].unsqueeze(1)
            logits.sub_(logits.amax(-1, keepdim=True))
            chosen = logits.gather(1, column)
            gradient = logits.exp_()
            total = gradient.sum(-1, keepdim=True)
            each[part] = (total.log() - chosen).squeeze(1)
            if not is_trained:
                continue
            # d loss / d logit = p - 1[target], and through the sigmoid times 4 s (1 - s)
            gradient.div_(total)
            gradient.scatter_add_(1, column, torch.full_like(column, -1, dtype=gradient.dtype))
            if soft_cap:
                gradient.addcmul_(gradient, squashed, value=-1).mul_(squashed).mul_(4)
            if weights is not None:
                gradient.mul_(weights[part].unsqueeze(1))
            gradient = gradient.to(x.dtype)
            x_gradient[part] = gradient @ weight[:vocab]
            head_gradient[:vocab] += gradient.T @ x[part]
        if is_trained:
            ctx.save_for_backward(x_gradient, head_gradient)
        ctx.mark_non_differentiable(each)
        return (each if weights is None else each * weights).mean(), each
