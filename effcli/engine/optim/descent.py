"""Gradient descent with momentum."""

from typing import Any

import torch


class SGD(torch.optim.SGD):
    """PyTorch's, with weight decay beside the momentum, as in AdamW (Loshchilov & Hutter 2019)."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Shrink the tensors that decay, and move all."""
        (group,) = self.param_groups
        decay = group["weight_decay"]
        moved = [tensor for tensor in group["params"] if tensor.grad is not None]
        if decay:
            torch._foreach_mul_(moved, 1 - group["lr"] * decay)
        group["weight_decay"] = 0.0
        try:
            return super().step(closure)
        finally:
            group["weight_decay"] = decay
