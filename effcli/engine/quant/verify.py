"""Is a packed file the model that was trained?"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from effcli.engine.protocols import LanguageModel
from effcli.engine.quant.bitlinear import bit_layers
from effcli.engine.quant.packed import read, require_same, round_the_rest

TOLERANCE = 1e-4  # of a logit
AT_ONCE = 4096  # tokens whose logits exist at one time


@dataclass(frozen=True)
class Verification:
    """A packed file beside the trained model; both compute in float32, on the CPU."""

    wrong_codes: int
    """Codes and scales that are not those of the trained weights."""
    logit_gap: float
    """The largest difference of a logit from those of the trained model whose embeddings, head
    and tables are rounded to 8 bits as the file's are: what packing itself has changed."""
    agreement: float
    """Share of positions where both find the same token most likely."""
    loss: float
    """Of the file, in nats per token."""
    trained_loss: float
    """Of the trained model, with its own embeddings, head and tables."""

    @property
    def roundtrip_gap(self) -> float:
        """What the file costs, rounded tables and all, in nats per token."""
        return self.loss - self.trained_loss

    @property
    def holds(self) -> bool:
        """Whether the file is the model."""
        return not self.wrong_codes and self.logit_gap <= TOLERANCE


@torch.no_grad()
def verify(
    path: Path, trained: LanguageModel, windows: Int[Tensor, "windows longer"]
) -> Verification:
    """Read a file again and compare it with the model that was written.

    `windows` are tokens, each to be predicted from those before it in its window.
    """
    packed, own, wrong = read(path), _plain(copy.deepcopy(trained)), 0
    require_same(packed.document, own)
    for name, layer in bit_layers(own).items():
        codes, other = layer.encode(), packed.layers[name]
        wrong += int((codes.codes != other.codes).sum() + (codes.scales != other.scales).sum())
    rounded, model = copy.deepcopy(own), _plain(packed.model())
    round_the_rest(rounded)
    gap, agreeing = 0.0, 0
    losses = torch.zeros(2, dtype=torch.float64)
    rows = max(1, AT_ONCE // windows.shape[1])
    for start in range(0, len(windows), rows):
        part = windows[start : start + rows].cpu()
        inputs, targets = part[:, :-1], part[:, 1:].flatten()
        found, expected = model(inputs).flatten(0, 1), rounded(inputs).flatten(0, 1)
        apart = (found - expected).abs().nan_to_num(nan=math.inf)  # a NaN is like nothing
        gap = max(gap, float(apart.max()))
        agreeing += int((found.argmax(-1) == expected.argmax(-1)).sum())
        for place, logits in enumerate((found, own(inputs).flatten(0, 1))):
            losses[place] += F.cross_entropy(logits, targets, reduction="sum").double()
    count = windows.shape[0] * (windows.shape[1] - 1)
    loss, trained_loss = (losses / count).tolist()
    return Verification(wrong, gap, agreeing / count, loss, trained_loss)


def _plain(model: LanguageModel) -> LanguageModel:
    """The model in float32 on the CPU, and its attention in one way.

    Activations are rounded to int8, so that another order of sums could be seen in a logit.
    """
    ways = {"dtype": torch.float32, "by_products": False, "recompute": False}
    for module in model.modules():
        for name, value in ways.items():
            if hasattr(module, name):
                setattr(module, name, value)
    return model.cpu().eval()
