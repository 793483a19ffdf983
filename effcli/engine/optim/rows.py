"""AdaGrad for tables of which a step reads few rows: the others cost nothing."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

EPS = 1e-10


class RowAdaGrad(torch.optim.Optimizer):
    """AdaGrad with one rate for each row (Duchi et al. 2011).

    A row moves by its gradient over the root of the sum of all its mean squares so far. A
    row without a gradient neither moves nor forgets, so leaving it out is exact: the
    sparse gradient and the same one filled up with zeros give the same weights.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move the rows that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._move(table, group["lr"])

    def _move(self, table: nn.Parameter, lr: float) -> None:
        gradient, state = table.grad, self.state[table]
        assert gradient is not None
        if not state:
            state["squares"] = torch.zeros(len(table), device=table.device)
        gradient = gradient.coalesce() if gradient.is_sparse else gradient.to_sparse(1)
        rows, values = gradient.indices()[0], gradient.values()
        squares = state["squares"][rows] + values.square().mean(1)
        state["squares"][rows] = squares
        step = values / (squares.sqrt() + EPS).unsqueeze(1)
        table.index_add_(0, rows, step, alpha=-lr)
