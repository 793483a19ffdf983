"""Tables that are looked up by tokens: they cost memory, and no products.

A step reads few of their rows, so their gradients are sparse.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from effcli.engine.models.layers import Cache, before
from effcli.settings.model import GPTSettings


class Tables(nn.Module):
    """What the tokens add to the residual stream, and to the values of each layer."""

    def __init__(self, s: GPTSettings, vocab_size: int) -> None:
        super().__init__()
        if s.pair_rows:
            self.pair_table = nn.Embedding(s.pair_rows, s.width, sparse=True)
        count = s.layers if s.value_tables else 0
        tables = (nn.Embedding(vocab_size, s.width, sparse=True) for _ in range(count))
        self.value_tables = nn.ModuleList(tables)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # compiled, gradients are dense
    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        tokens: Int[Tensor, "batch time"],
        cache: Cache | None,
        since: Int[Tensor, "batch time"] | None = None,
    ) -> tuple[Float[Tensor, "batch time width"], list[Tensor]]:
        """`x` with what the pairs of tokens add to it, and what to add to each layer's values.

        A token that is 0 `since` its document began has none before it.
        """
        if hasattr(self, "pair_table"):
            both = before(tokens + 1, 1, cache, "tokens")
            first = both[:, :-1] if since is None else both[:, :-1] * (since > 0)
            x = x + self.pair_table(hashed(first, both[:, 1:], self.pair_table.num_embeddings))
        return x, [table(tokens) for table in self.value_tables]


def hashed(
    first: Int[Tensor, "*any"], second: Int[Tensor, "*any"], rows: int
) -> Int[Tensor, "*any"]:
    """A row for each token and the one before it: the mixing of murmur3, in 32 bits."""
    mask = 2**32 - 1
    row = (second * 0x85EBCA6B + first * 0x9E3779B1) & mask
    row = ((row ^ (row >> 15)) * 0x2C1B3C6D) & mask
    return (row ^ (row >> 12)) % rows
