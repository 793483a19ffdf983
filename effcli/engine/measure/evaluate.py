"""The held-out loss: always the same windows for a corpus and a context."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effcli.engine.data.corpus import Split
from effcli.engine.device import Device
from effcli.engine.objectives.cross_entropy import head_loss
from effcli.engine.protocols import LanguageModel
from effcli.engine.records import Stop
from effcli.errors import InputError, Stopped


@dataclass(frozen=True)
class HeldOut:
    """Windows of held-out text, one more token long than the context."""

    tokens: NDArray[np.int64]
    bytes: int
    """Length of the text that is predicted."""

    @classmethod
    def of(
        cls, split: Split, token_bytes: NDArray[np.int64], context: int, budget: int
    ) -> "HeldOut":
        """About `budget` tokens, in windows spread evenly over the split."""
        if split.in_row <= context:
            there = f"{split.in_row} tokens in a row"
            raise InputError(
                f"the held-out text has {there}, less than one context of {context}",
                "prepare more held-out text, or set a smaller model.context",
            )
        starts = split.spread(context, max(1, budget // context))
        tokens = split.read(starts, context + 1)
        return cls(tokens, int(token_bytes[tokens[:, 1:]].sum()))

    @property
    def predicted(self) -> int:
        """Tokens that are predicted."""
        rows, length = self.tokens.shape
        return int(rows * (length - 1))

    def computed(self, batch: int) -> int:
        """Windows that are computed in batches of one size: the last is filled up."""
        return -(-len(self.tokens) // batch) * batch

    def bits_per_byte(self, loss: float) -> float:
        """A loss in nats per token, whatever the tokens are."""
        return loss * self.predicted / (self.bytes * math.log(2))


@torch.no_grad()
def held_out_loss(
    model: LanguageModel,
    held_out: HeldOut,
    device: Device,
    batch: int,
    stop: Stop,
    loss_rows: int | None = None,
    keep: Tensor | None = None,
) -> float:
    """Mean loss over all windows, in nats per token; `loss_rows` as in `head_loss`.

    `keep`, of shape (windows, context), is given the loss at every position that this
    process looks at: its part, where there are several.
    """
    was_training = model.training
    model.eval()
    total, windows = 0.0, torch.from_numpy(held_out.tokens)
    try:
        processes = device.processes
        for start in range(batch * processes.rank, len(windows), batch * processes.world):
            if (signal_number := stop()) is not None:
                raise Stopped(signal_number, "on request, during an evaluation")
            rows = torch.arange(start, start + batch) % len(windows)  # one shape for all batches
            part = windows[rows].to(device.torch)
            _, each = head_loss(model, model.features(part[:, :-1]), part[:, 1:], loss_rows)
            each = each[: len(windows) - start]
            total += each.double().sum().item()
            if keep is not None:
                keep[start : start + batch] = each
    finally:
        model.train(was_training)
    return device.processes.total(total) / held_out.predicted
