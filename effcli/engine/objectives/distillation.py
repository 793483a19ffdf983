"""A student learns from text and from what its teacher says about it.

As with the plain loss, logits exist for some rows at one time, and the gradients are made in
the forward pass. A teacher that is no better than its student is not listened to.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from effcli.engine.models.layers import Linear, generators
from effcli.engine.objectives.cross_entropy import ChunkedLoss, head_loss, rows_at_once
from effcli.engine.objectives.signals import (
    Asked,
    Drawn,
    Likeliest,
    Signal,
    TaughtBatch,
    Terms,
)
from effcli.engine.protocols import Batch, LanguageModel, Loss
from effcli.engine.records import Notice
from effcli.engine.teaching.teachers import Teachers

HIDDEN_UNTIL = 0.7  # of the run: alike features help at its start and hinder at its end


class Distillation:
    """Cross-entropy, divergence from the teacher, and the angle between their last features."""

    def __init__(
        self,
        terms: Terms,
        teacher_loss: float,
        teachers: Teachers | None = None,
        bridge: "Bridge | None" = None,
        rows: int | None = None,
    ) -> None:
        """`teachers` are asked at every step; without any, batches say what they said.

        `teacher_loss` is held-out, in nats per token. The hidden-state term needs teachers and
        a `bridge`; `rows` as in `head_loss`.
        """
        self._terms, self._teacher_loss, self._rows = terms, teacher_loss, rows
        self._teachers, self._bridge = teachers, bridge
        self._is_better = True
        self.progress = 0.0
        """Of the run: whoever draws batches says it."""

    @property
    def listens(self) -> bool:
        """Whether what the teacher predicts counts now."""
        return self._is_better and self._terms.teaches

    def hear(self, loss: float) -> Notice | None:
        """Hear the student's held-out loss; a teacher that is no better has nothing to say."""
        was_better, self._is_better = self._is_better, self._teacher_loss < loss
        if was_better == self._is_better:
            return None
        losses = f"its held-out loss is {self._teacher_loss:.3f}, the student's {loss:.3f}"
        said = "is better again and teaches" if self._is_better else "is no better and is not heard"
        return Notice(f"the teacher {said}: {losses}")

    def __call__(self, model: LanguageModel, batch: Batch) -> Loss:
        """One forward pass, and one of each teacher that is asked.

        A batch about which nothing was said, and a model that is not trained, have the plain
        cross-entropy.
        """
        features = model.features(batch.inputs)
        theirs, signal = self._ask(batch) if torch.is_grad_enabled() else ([], None)
        if signal is None:
            mean, each = head_loss(model, features, batch.targets, self._rows, batch.weights)
        else:
            how = (signal, self._rows, batch.weights)
            mean, each = taught_loss(model, features, batch.targets, *how)
        if theirs and self._hidden:
            assert self._bridge is not None
            apart = self._bridge(features, theirs)
            weights = 1.0 if batch.weights is None else batch.weights.unsqueeze(1)
            mean = mean + self._hidden * (apart * weights).mean()
        return Loss(mean, each.mean(1), features.detach())

    @property
    def _hidden(self) -> float:
        """The weight of the hidden-state term, as far as the run is."""
        left = max(0.0, 1 - self.progress / HIDDEN_UNTIL)
        return self._terms.hidden * left if self._is_better else 0.0

    def _ask(self, batch: Batch) -> tuple[list[Tensor], Signal | None]:
        """The teachers' features, where they are asked, and what is predicted, where it counts."""
        if self._teachers is not None and (self.listens or self._hidden):
            theirs = self._teachers.features(batch.inputs)
            return theirs, Asked(self._teachers, theirs, self._terms) if self.listens else None
        if isinstance(batch, TaughtBatch) and self.listens:
            form = Drawn if batch.said.logs is None else Likeliest
            return [], form(batch.said, self._terms)
        return [], None

    def flops(self, model: LanguageModel, batch: Batch) -> dict[str, float]:
        """The student's passes are training, as without a teacher; what is asked is the teacher's.

        What a cache once cost is not in it.
        """
        shape = batch.inputs.shape
        bill = {"train": model.forward_flops(*shape) + model.backward_flops(*shape)}
        if self._teachers is not None and (self.listens or self._hidden):
            bill["teacher"] = self._teachers.forward_flops(*shape, head=self.listens)
        if self._hidden and self._bridge is not None:
            bill["train"] += 6.0 * batch.inputs.numel() * self._bridge.weights
        return bill

    def state_dict(self) -> dict[str, Any]:
        """Whether the teacher is heard, and the bridge."""
        bridge = {} if self._bridge is None else dict(self._bridge.state_dict())
        return {"is_better": self._is_better, "bridge": bridge}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._is_better = state["is_better"]
        if self._bridge is not None:
            self._bridge.load_state_dict(state["bridge"])


class Bridge(nn.Module):
    """From the student's last features to those of each teacher; as they are, if equally wide."""

    def __init__(self, width: int, theirs: Sequence[int], seed: int) -> None:
        super().__init__()
        maps = (Linear(width, other, bias=False) if other != width else None for other in theirs)
        self.maps = nn.ModuleList(nn.Identity() if one is None else one for one in maps)
        for _, parameter, generator in generators(self, seed):
            with torch.no_grad():
                parameter.normal_(0.0, width**-0.5, generator=generator)

    @property
    def weights(self) -> int:
        """How many are learned."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(
        self, mine: Float[Tensor, "batch time width"], theirs: Sequence[Tensor]
    ) -> Float[Tensor, "batch time"]:
        """1 - cosine at every position, 0..2, the mean over the teachers."""
        pairs = zip(self.maps, theirs, strict=True)
        near = [F.cosine_similarity(one(mine).float(), x.float(), dim=-1) for one, x in pairs]
        return 1 - torch.stack(near).mean(0)


def taught_loss(
    model: LanguageModel,
    features: Float[Tensor, "batch time width"],
    targets: Int[Tensor, "batch time"],
    signal: Signal,
    rows: int | None = None,
    weights: Float[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch time"]]:
    """What is minimized, to be differentiated, and the cross-entropy at every position; in nats.

    `rows` and `weights` as in `head_loss`: of all terms there is one mean over all positions.
    """
    if rows is None:
        rows = rows_at_once(features, model.vocab_size)
    how = (model.vocab_size, model.soft_cap, rows, signal)
    every = None if weights is None else weights.repeat_interleave(targets.shape[1])
    x = features.flatten(0, 1)
    mean, each = _ChunkedDistillation.apply(x, model.head, targets.flatten(), every, how)  # type: ignore[no-untyped-call]
    return mean, each.view_as(targets)


class _ChunkedDistillation(ChunkedLoss):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        head: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        how: tuple[int, float, int, Signal],
    ) -> tuple[Tensor, Tensor]:
        vocab, soft_cap, rows, signal = how
        weight = head.to(x.dtype)
        each, minimized = (x.new_empty(len(x), dtype=torch.float32) for _ in range(2))
        x_gradient, head_gradient = torch.empty_like(x), torch.zeros_like(head)
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            logits = (x[part] @ weight.T)[:, :vocab].float()
            if soft_cap:  # as in the plain loss: a softmax does not see the constant
                squashed = logits.mul_(2 / soft_cap).sigmoid_()
                logits = squashed * (2 * soft_cap)
            logits.sub_(logits.amax(-1, keepdim=True))
            column = targets[part].unsqueeze(1)
            each[part], minimized[part], gradient = signal.grade(logits, column, part)
            if soft_cap:
                gradient.addcmul_(gradient, squashed, value=-1).mul_(squashed).mul_(4)
            if weights is not None:
                gradient.mul_(weights[part].unsqueeze(1))
            gradient = gradient.to(x.dtype)
            x_gradient[part] = gradient @ weight[:vocab]
            head_gradient[:vocab] += gradient.T @ x[part]
        ctx.save_for_backward(x_gradient, head_gradient)
        ctx.mark_non_differentiable(each)
        return (minimized if weights is None else minimized * weights).mean(), each
