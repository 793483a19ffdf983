"""Nested widths: keys and queries of which only the first pairs of each head count.

Of P pairs a width keeps the first P/4, P/2, 3P/4 or all, rounded up, so each is within the next
(Kusupati et al. 2022). What is left out is left out before phasors are scaled to length 1: every
width is a whole model, and one that is cut to it computes the same.

In training half of the sequences have a width for each position, by how surprising the last
tokens were; a quarter have one at random, a quarter all pairs (the sandwich rule of Yu & Huang
2019).

Surprise is that of pairs of tokens, counted in training. The model's own would need its logits
before its first layer, so a second pass; this one is known as soon as a token is read, by one look
into a table. It is a cheaper judge of text than the model itself, and as honest about the past.
"""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from effcli.engine.data.around import Around
from effcli.engine.models.layers import Cache, before
from effcli.engine.models.tables import hashed
from effcli.engine.protocols import Batch, BatchSource, sent

LEVELS = 4
AUTO, ANY = 0.5, 0.25  # shares of sequences by surprise and by chance; the rest have all pairs
ROWS = 2**16  # of the table of pairs of tokens
KEPT = 0.999  # of the counts, from step to step
PRIOR = 8.0  # observations that a token's own frequency counts for
GRAIN = 64  # parts of a nat: sums of so few whole parts are exact in every order
WINDOW = 16  # tokens whose surprise is averaged
SLOWEST = 0.05  # of the moving mean of thresholds

Width = Literal["full", "auto"] | int


def nested(pairs: int) -> list[int]:
    """The widths of a head, in pairs, rising; the last has all."""
    return [-(-pairs * level // LEVELS) for level in range(1, LEVELS + 1)]


class Widths(nn.Module):
    """Decides how many pairs of keys and queries count at each position."""

    way: Width = "full"
    """Of a model that is not being trained; a number of pairs is the same at all positions."""
    singles: Tensor
    """How often each token was read, a place further on: the first is before every text."""
    pairs: Tensor
    """How often each two tokens were read one after the other, by their hash."""
    thresholds: Tensor
    """Quartiles of surprise, in nats."""
    steps: Tensor

    def __init__(self, pairs: int, vocab_size: int) -> None:
        super().__init__()
        self.count = pairs
        self.register_buffer("widths", torch.tensor(nested(pairs)), persistent=False)
        self.register_buffer("singles", torch.zeros(vocab_size + 1))
        self.register_buffer("pairs", torch.zeros(ROWS))
        self.register_buffer("thresholds", torch.zeros(LEVELS - 1))
        self.register_buffer("steps", torch.zeros(()))

    def forward(
        self, tokens: Int[Tensor, "batch time"], start: int, cache: Cache | None
    ) -> Bool[Tensor, "batch 1 #time channels"] | None:
        """Which channels count, [re | im]; none where all do."""
        if not self.training and self.way == "full":
            return None
        widths = self.get_buffer("widths")
        if self.training:
            width = widths[self._drawn(self.levels(tokens, start, cache))]
        elif self.way == "auto":
            width = widths[self.levels(tokens, start, cache)]
        else:
            width = tokens.new_full((len(tokens), 1), int(self.way))
        counts = torch.arange(self.count, device=tokens.device) < width[:, None, :, None]
        return torch.cat((counts, counts), dim=-1)

    def _drawn(self, levels: Tensor) -> Tensor:
        """One rule for each sequence, from the generator that dropout draws from, too."""
        shape, device = (len(levels), 1), levels.device
        rule = torch.rand(shape, device=device)
        fixed = torch.randint(LEVELS, shape, device=device)
        fixed = torch.where(rule < AUTO + ANY, fixed, LEVELS - 1)
        return torch.where(rule < AUTO, levels, fixed)

    def levels(
        self, tokens: Int[Tensor, "batch time"], start: int = 0, cache: Cache | None = None
    ) -> Int[Tensor, "batch time"]:
        """The quarter, 0..3, that the mean surprise of the last tokens is in."""
        mean = self.surprise(tokens, start, cache)
        return (mean.unsqueeze(-1) >= self.thresholds).sum(-1)

    @torch.no_grad()
    def surprise(
        self, tokens: Int[Tensor, "batch time"], start: int = 0, cache: Cache | None = None
    ) -> Float[Tensor, "batch time"]:
        """-ln p(token | the one before), a mean over the last tokens, this one among them.

        p = (n_ab + m p_b) / (n_a + m), with p_b = (n_b + 1) / (n + V). In the same bits for
        any parts that a text is read in: a difference of rounding could change a width.
        """
        both = before(tokens + 1, 1, cache, "widths.tokens")
        first, second = self.singles[both[:, :-1]], self.singles[both[:, 1:]]
        alone = (second + 1) / (self.singles.sum() + len(self.singles))
        # A row may be shared by others, but no pair is more frequent than its first token.
        together = torch.minimum(self.pairs[hashed(both[:, :-1], both[:, 1:], ROWS)], first)
        nats = -((together + PRIOR * alone) / (first + PRIOR)).log()
        nats = (nats * GRAIN).round() / GRAIN
        longer = before(nats, WINDOW - 1, cache, "widths.surprise")
        at = torch.arange(start + 1, start + tokens.shape[1] + 1, device=tokens.device)
        return longer.unfold(1, WINDOW, 1).sum(-1) / at.clamp(max=WINDOW)

    @torch.no_grad()
    def observe(self, tokens: Int[Tensor, "batch time"]) -> None:
        """Count a step's text, after its surprise has moved the thresholds."""
        levels = torch.arange(1, LEVELS, device=tokens.device) / LEVELS
        found = self.surprise(tokens).flatten().quantile(levels)
        self.steps.add_(1)
        self.thresholds.lerp_(found, (1 / self.steps).clamp(min=SLOWEST))
        # Whole numbers below 2^24 add up to the same on every device, in any order.
        pairs = hashed(tokens[:, :-1] + 1, tokens[:, 1:] + 1, ROWS)
        for counts, read in ((self.singles, tokens + 1), (self.pairs, pairs)):
            ones = torch.ones(read.numel(), device=read.device)
            counts.mul_(KEPT).add_(torch.zeros_like(counts).index_add_(0, read.flatten(), ones))


class Counting(Around):
    """Has the tokens of every step counted once the next is drawn, so that none tells its future.

    Every process draws all of a step, so all count the same.
    """

    def __init__(self, batches: BatchSource, widths: Widths) -> None:
        super().__init__(batches)
        self._widths = widths
        self._read = torch.zeros(0, 0, dtype=torch.long)

    def draw(self, progress: float) -> Batch:
        """The next batch."""
        if len(self._read):
            self._widths.observe(sent(self._read, self._widths.singles.device))
        batch = super().draw(progress)
        self._read = batch.inputs
        return batch

    def state_dict(self) -> dict[str, Any]:
        """With what is to be counted, and all counts: a step that is cut short is taken back."""
        counts = {name: kept.clone() for name, kept in self._widths.state_dict().items()}
        return {**super().state_dict(), "read": self._read, "counts": counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        super().load_state_dict(state)
        self._read = state["read"]
        self._widths.load_state_dict(state["counts"])
