"""What is known of the positions of a text before the first layer."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from effcli.engine.models.layers import Cache


class Positions(NamedTuple):
    """Of the tokens of one forward pass."""

    tokens: Int[Tensor, "batch time"]
    channels: Tensor | None
    """Which channels of keys and queries count; none where all do."""
    angles: Float[Tensor, "batch time pairs"] | None
    """By how much each is turned into its language; none where there is one alone."""
    since: Int[Tensor, "batch time"] | None
    """How many positions of its own document are before each; none where documents do not end
    what is remembered."""
    is_padded: bool = False
    """Whether some are no text, so that nothing is to be counted over all of them."""


def since_begin(
    begins: Bool[Tensor, "batch time"], cache: Cache | None
) -> Int[Tensor, "batch time"]:
    """How many positions are between each and the last one that began a document, or the text."""
    at = torch.arange(begins.shape[1], device=begins.device).expand(begins.shape)
    before = at.new_full((len(at), 1), -1)
    if cache is not None:
        before = cache.past.get("since", before)
    # As if the document that goes on had begun so many positions before these.
    began = torch.where(begins, at, -1 - before).cummax(1).values
    found = at - began
    if cache is not None:
        cache.past["since"] = found[:, -1:].clone()
    return found
