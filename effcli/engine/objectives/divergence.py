"""How far a student is from what it is taught, and where that pushes its logits."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Kind = Literal["forward", "reverse", "jsd", "none"]


def divergence(
    kind: Kind,
    theirs: Float[Tensor, "rows outcomes"],
    mine: Float[Tensor, "rows outcomes"],
    mixture: float = 0.5,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows outcomes"]]:
    """Nats between two distributions in each row, and their gradient by the student's logits.

    Both are finite log-probabilities, P the teacher's and Q the student's, whose logits are
    those of a softmax over the same outcomes. `forward` is KL(P‖Q), `reverse` KL(Q‖P), and
    `jsd` the generalized Jensen-Shannon divergence b KL(Q‖M) + (1-b) KL(P‖M) with M = (1-b) P
    + b Q and 0 < b < 1, the `mixture` (Agarwal et al. 2024, whose β is 1 - b). Divided by b it
    becomes `reverse` as b falls to 0, and divided by 1 - b `forward` as b rises to 1.
    """
    p, q = theirs.exp(), mine.exp()
    if kind == "forward":
        return (p * (theirs - mine)).sum(-1), q.sub_(p)
    if kind == "reverse":
        apart = mine - theirs
        value = (q * apart).sum(-1)
        return value, apart.sub_(value.unsqueeze(-1)).mul_(q)
    if kind == "jsd":
        middle = torch.logaddexp(theirs + math.log1p(-mixture), mine + math.log(mixture))
        apart = mine - middle
        value = (q * apart).sum(-1)
        other = (p * (theirs - middle)).sum(-1)
        slope = apart.sub_(value.unsqueeze(-1)).mul_(q).mul_(mixture)
        return mixture * value + (1 - mixture) * other, slope
    raise ValueError(f"no divergence is called {kind!r}")
