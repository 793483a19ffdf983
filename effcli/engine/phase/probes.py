"""Sequences whose answers say what a model can keep: a count, what was told, an order.

A sequence of some length has a start before it, and is drawn from its generator alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Int
from torch import Tensor

MODULUS = 5
PAIRS, KEYS, VALUES = 8, 16, 16
SYMBOLS = 16


@dataclass(frozen=True)
class Drawn:
    """Sequences, what is to be said at each position, and where that counts."""

    tokens: Int[Tensor, "batch time"]
    targets: Int[Tensor, "batch time"]
    """0 where nothing counts."""
    scored: Bool[Tensor, "batch time"]


@dataclass(frozen=True)
class Probe:
    """A task: `draw(generator, batch, length)` makes sequences of `length` + 1 tokens."""

    vocab: int
    answers: int
    """As many answers are equally likely for whoever knows nothing."""
    shortest: int
    """The least length that asks for anything."""
    draw: Callable[[torch.Generator, int, int], Drawn]


def count(generator: torch.Generator, batch: int, length: int, modulus: int) -> Drawn:
    """At every position, the sum so far; with a modulus of 2, the parity of bits."""
    added = torch.randint(modulus, (batch, length), generator=generator)
    tokens = _begun(added, modulus)
    targets = _begun(added.cumsum(1) % modulus, 0)
    scored = torch.ones_like(tokens, dtype=torch.bool)
    scored[:, 0] = False
    return Drawn(tokens, targets, scored)


def recall(generator: torch.Generator, batch: int, length: int) -> Drawn:
    """Pairs of a key and a value, then each key once more, somewhere: which was its value?

    8 pairs of different keys, or a third of a length that is shorter than that.
    """
    pairs = min(PAIRS, length // 3)
    keys = torch.rand(batch, KEYS, generator=generator).argsort(1)[:, :pairs]
    values = torch.randint(VALUES, (batch, pairs), generator=generator)
    told = torch.stack((keys, KEYS + values), dim=2).flatten(1)
    rest = length - 2 * pairs
    places = torch.rand(batch, rest, generator=generator).argsort(1)[:, :pairs] + 2 * pairs + 1
    between = torch.full((batch, rest), KEYS + VALUES)
    tokens = _begun(torch.cat((told, between), dim=1), KEYS + VALUES + 1).scatter(1, places, keys)
    targets = torch.zeros_like(tokens).scatter(1, places, KEYS + values)
    scored = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, places, True)
    return Drawn(tokens, targets, scored)


def copy(generator: torch.Generator, batch: int, length: int) -> Drawn:
    """Symbols, a mark, and the same symbols again, each to be said before it is seen."""
    symbols = torch.randint(SYMBOLS, (batch, length // 2), generator=generator)
    mark = torch.full((batch, 1), SYMBOLS)
    tokens = torch.cat((symbols, mark, symbols[:, :-1]), dim=1)
    for _ in range(length + 1 - tokens.shape[1]):  # two starts where a length is odd
        tokens = _begun(tokens, SYMBOLS + 1)
    targets, scored = torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool)
    targets[:, -symbols.shape[1] :] = symbols
    scored[:, -symbols.shape[1] :] = True
    return Drawn(tokens, targets, scored)


def _begun(tokens: Tensor, start: int) -> Tensor:
    return torch.nn.functional.pad(tokens, (1, 0), value=start)


PROBES = {
    "parity": Probe(3, 2, 1, partial(count, modulus=2)),
    "modular": Probe(MODULUS + 1, MODULUS, 1, partial(count, modulus=MODULUS)),
    "recall": Probe(KEYS + VALUES + 2, VALUES, 3, recall),
    "copy": Probe(SYMBOLS + 2, SYMBOLS, 2, copy),
}
