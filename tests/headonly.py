"""A model that is nothing but a head, for what works on features and logits."""

import torch

from effcli.engine.protocols import LanguageModel


class HeadOnly(LanguageModel):
    """Rows of the table beyond the vocabulary pad it."""

    context = 64

    def __init__(
        self, table: torch.Tensor, soft_cap: float = 0.0, vocab_size: int | None = None
    ) -> None:
        super().__init__()
        self.vocab_size, self.soft_cap = vocab_size or len(table), soft_cap
        self.table = torch.nn.Parameter(table)

    @property
    def head(self) -> torch.Tensor:
        return self.table

    def new_cache(self, batch: int) -> None:
        return None

    def forward_flops(self, batch: int, time: int, *, dense: bool = False) -> float:
        return 2.0 * batch * time * self.table.numel()

    def parameter_count(self) -> int:
        return self.table.numel()
