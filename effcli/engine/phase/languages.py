"""What a model of several languages knows of each: how far it turns what all of them share."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from effcli.engine.models.layers import Cache


class LanguagePhases(nn.Module):
    """An angle for each pair of channels, for each language: a unitary map, none at first."""

    def __init__(self, languages: int, pairs: int, vocab_size: int) -> None:
        super().__init__()
        self.first = vocab_size - 2 * languages  # the marks are the last ids, two of each
        self.angles_embedding = nn.Parameter(torch.zeros(languages, pairs))

    def forward(
        self, tokens: Int[Tensor, "batch time"], cache: Cache | None = None
    ) -> Float[Tensor, "batch time pairs"]:
        """By how much each position is turned; not at all before a text's first mark."""
        return pad(self.angles_embedding, (0, 0, 1, 0))[self.heard(tokens, cache)]

    def heard(
        self, tokens: Int[Tensor, "batch time"], cache: Cache | None = None
    ) -> Int[Tensor, "batch time"]:
        """The language at every position, from 1, by the last mark so far; 0 before any."""
        before = tokens.new_zeros(len(tokens), 1)
        if cache is not None:
            before = cache.past.get("languages", before)
        marks = torch.cat((before, (tokens - self.first + 1).clamp(min=0)), dim=1)
        places = torch.arange(marks.shape[1], device=tokens.device)
        last = torch.where(marks > 0, places, 0).cummax(1).values
        found = marks.gather(1, last)[:, 1:]
        found = torch.where(found > 0, (found - 1) % len(self.angles_embedding) + 1, 0)
        if cache is not None:
            cache.past["languages"] = found[:, -1:].clone()
        return found
