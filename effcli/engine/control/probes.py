"""Looks at a model that are paid for, at text that neither trains nor judges it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from effcli.engine.data.corpus import Split
from effcli.engine.loop import Parts
from effcli.engine.measure.evaluate import HeldOut, held_out_loss
from effcli.engine.measure.meter import Meter
from effcli.engine.objectives.next_token import NextToken
from effcli.engine.protocols import Batch, LanguageModel, Objective
from effcli.engine.records import Stop
from effcli.errors import InputError

LEAST_WINDOWS = 8  # fewer say nothing about how sure a difference is


def aside(
    split: Split, token_bytes: NDArray[np.int64], context: int, judged: int, windows: int
) -> HeldOut:
    """At most `windows` windows of the held-out text, spread evenly, none of which is judged.

    `judged` is how many windows `HeldOut.of` takes of the same split: a run is steered by the
    windows between these, and its result is not.
    """
    there = split.windows(context)
    taken = np.arange(judged, dtype=np.int64) * there // judged
    free = np.setdiff1d(np.arange(there, dtype=np.int64), taken)
    if len(free) < LEAST_WINDOWS:
        message = f"all but {len(free)} of the {there} windows of held-out text judge the run"
        hint = f"none are left to steer it by: set evaluation.tokens below {judged * context}"
        raise InputError(message, f"{hint}, or prepare more held-out text")
    count = min(windows, len(free))
    chosen = free[np.arange(count, dtype=np.int64) * len(free) // count]
    tokens = split.read(split.begins(chosen, context), context + 1)
    return HeldOut(tokens, int(token_bytes[tokens[:, 1:]].sum()))


def scores(parts: Parts, windows: HeldOut, stop: Stop) -> NDArray[np.float64]:
    """The loss of each window, in nats per token, the same in every process; paid by `meta`."""
    model, meter, processes = parts.model, parts.meter, parts.device.processes
    losses = torch.zeros(len(windows.tokens), model.context)
    with meter.timing("meta"):
        held_out_loss(model, windows, parts.device, parts.micro, stop, keep=losses)
        processes.add_up([losses])  # each looked at a part, and has zeros elsewhere
    meter.charge("meta", model.forward_flops(windows.computed(parts.micro), model.context))
    return losses.double().mean(1).numpy()


@dataclass(frozen=True)
class Probe:
    """A batch on which single steps are judged. Every process looks at all of it."""

    model: LanguageModel
    objective: Objective
    batch: Batch
    """Of one forward pass, where the model is."""
    meter: Meter
    world: int = 1

    @classmethod
    def of(cls, parts: Parts, windows: HeldOut, most: int = 32) -> "Probe":
        """As many of the windows as go through the model at one time, and their next tokens."""
        tokens = torch.from_numpy(windows.tokens[: min(most, parts.micro)])
        batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(len(tokens)))
        batch = batch.to(parts.device.torch)
        world = parts.device.processes.world
        return cls(parts.model, NextToken(), batch, parts.meter, world)

    def loss(self) -> float:
        """Mean over the batch, without dropout."""
        with self.meter.timing("meta"), torch.no_grad():
            loss = self._mean(self.batch).item()
        shape = self.batch.inputs.shape
        self.meter.charge("meta", self.world * self.model.forward_flops(*shape))
        return loss

    def gradients(self, parameters: Sequence[nn.Parameter]) -> tuple[float, list[Tensor | None]]:
        """The loss and its gradient, which is kept apart from the one of training."""
        with self.meter.timing("meta"), torch.enable_grad():
            loss = self._mean(self.batch)
            found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
        bill = self.objective.flops(self.model, self.batch)
        self.meter.charge("meta", self.world * sum(bill.values()))
        return float(loss.detach()), list(found)

    def _mean(self, batch: Batch) -> Tensor:
        was_training = self.model.training
        self.model.eval()
        try:
            return self.objective(self.model, batch).mean
        finally:
            self.model.train(was_training)

    def halves(self, momenta: dict[str, Tensor]) -> tuple[float, float]:
        """Two facts about the gradient: log of its noise scale, cosine with the momentum.

        The noise scale is the trace of the covariance between sequences over the squared mean
        (McCandlish et al. 2018, arXiv 1812.06162, eq. 2.8), here from two halves of the batch.
        `momenta` are those of some tensors, by name.
        """
        tensors = dict(self.model.named_parameters())
        half, half_batches = len(self.batch) // 2, []
        for start in (0, half):
            part = replace(self, batch=self.batch.part(start, start + half))
            half_batches.append(part.gradients([tensors[name] for name in momenta])[1])
        sums = torch.zeros(5, dtype=torch.float64)
        for one, other, momentum in zip(*half_batches, momenta.values(), strict=True):
            if one is not None and other is not None:
                mean = (one + other) / 2
                pairs = ((one, other), (one - other,) * 2, (mean, momentum), (mean,) * 2)
                dots = [torch.sum(a * b) for a, b in (*pairs, (momentum,) * 2)]
                sums += torch.stack(dots).double().cpu()
        same, apart, along, square, momentum_square = sums.tolist()
        least = 1e-3 * square + 1e-30  # the halves may agree in nothing
        noise = math.log((half * apart / 2 + 1e-30) / max(same, least))
        return noise, along / math.sqrt(square * momentum_square + 1e-60)
