"""What the parts of a trained phase model do on text: numbers, and what is drawn of them."""

import copy
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from effcli.engine.data.tokenizers import SEPARATOR, Tokenizer
from effcli.engine.models.interference import SMALLEST, retrieval
from effcli.engine.models.mixers import Interference, PhaseMixer
from effcli.engine.models.phase import Phase
from effcli.engine.objectives.cross_entropy import head_loss
from effcli.engine.phase.coherence import mean_coherence
from effcli.engine.phase.concepts import strongest
from effcli.engine.phase.listening import Heard
from effcli.engine.phase.looking import hear, state_floats
from effcli.engine.phase.widths import nested

KINDS = ("lowercase", "uppercase", "digits", "punctuation", "whitespace", "other")
MOST_TOKENS = 1500  # of a portrait
MOST_CODES, MOST_OF_A_CODE = 16, 8
OCTAVES = (-2, 18)  # of the half-lives that are told apart
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Portrait:
    """Where tokens are, seen along the two directions in which their phases differ most."""

    places: Float[Tensor, "tokens 2"]
    kinds: list[str]
    """Of each token, among the KINDS."""
    explained: float
    """Share of the variance of all phasors."""
    coherence: dict[str, float]
    """Mean cosine of the differences of phases within each kind, and of all tokens."""

    def told(self) -> dict[str, Any]:
        """Its numbers."""
        told = {"tokens": len(self.kinds), "kinds": dict(Counter(self.kinds))}
        return {**told, "explained": self.explained, "coherence": self.coherence}


@dataclass(frozen=True)
class Map:
    """What positions of a text read of each other, in one head of a layer."""

    layer: int
    head: int
    weights: Float[Tensor, "time time"]
    positive: float
    """Share of the weights above 0 in all absolute weights."""
    heads: list[float]
    """The same of every head of the layer."""

    def told(self) -> dict[str, Any]:
        """Its numbers."""
        shares = {"positive": self.positive, "negative": 1 - self.positive}
        return {"layer": self.layer, "head": self.head, **shares, "positive_by_head": self.heads}


def label(tokenizer: Tokenizer, token: int) -> str:
    """A token for readers; bytes that are no text are told by their numbers."""
    if token == tokenizer.separator:
        return SEPARATOR
    if token >= tokenizer.unmarked:
        return f"<|{tokenizer.marks[(token - tokenizer.unmarked) % len(tokenizer.marks)]}|>"
    return tokenizer.decode_bytes([token]).decode("utf8", errors="backslashreplace")


def kind(token: bytes) -> str:
    """Which of the KINDS a token is; spaces around it do not count."""
    try:
        text = token.decode("utf8")
    except UnicodeDecodeError:
        return "other"
    bare = text.strip()
    if not bare:
        return "whitespace" if text else "other"
    if bare.isalpha():
        return "uppercase" if bare[0].isupper() else "lowercase"
    if bare.isdecimal():
        return "digits"
    is_mark = all(unicodedata.category(character)[0] in "PS" for character in bare)
    return "punctuation" if is_mark else "other"


@torch.no_grad()
def portrait(model: Phase, tokenizer: Tokenizer, seen: Int[Tensor, "batch time"]) -> Portrait:
    """The phases of the tokens that occur most in a text, by their main components."""
    counts = torch.bincount(seen.flatten(), minlength=model.vocab_size)
    order = counts.argsort(descending=True, stable=True)[:MOST_TOKENS]
    chosen = order[counts[order] > 0]
    kinds = [kind(tokenizer.decode_bytes([token])) for token in chosen.tolist()]
    phasors = model.phases[chosen].double()
    x = phasors - phasors.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x)
    main = vectors[:, -2:].flip(1)
    largest = main.gather(0, main.abs().argmax(0, keepdim=True))
    places = x @ (main * largest.sign())  # of two opposite directions, always the same one
    explained = (values[-2:].sum() / values.sum().clamp(min=1e-30)).item()
    coherence = {"all": mean_coherence(phasors).item()}
    for name in KINDS:
        rows = [row for row, own in enumerate(kinds) if own == name]
        if len(rows) > 1:
            coherence[name] = mean_coherence(phasors[rows]).item()
    return Portrait(places, kinds, explained, coherence)


@torch.no_grad()
def maps(model: Phase, tokens: Int[Tensor, " time"]) -> list[Map]:
    """Of each layer with memories, the head that reads most of what is not its own position."""
    told, found = hear(model, tokens.unsqueeze(0)).told, []
    for (layer, memory), said in zip(_memories(model), told, strict=True):
        weights = retrieval(said, memory.shares)[0]
        sizes = weights.abs().sum((1, 2)).clamp(min=1e-30)
        earlier = weights.tril(-1).abs().sum((1, 2)) / sizes
        shares = (weights.clamp(min=0).sum((1, 2)) / sizes).tolist()
        head = int(earlier.argmax())
        found.append(Map(layer, head, weights[head], shares[head], shares))
    return found


def half_lives(heard: Heard) -> list[Float[Tensor, "heads states positions"]]:
    """Of each layer with memories, how long what is written stays, in positions, as read.

    Where a document ends all memories, none of them says so of itself.
    """
    found = []
    for told in heard.told:
        decays = told.decays.movedim(0, 2).flatten(2)
        ends = (decays <= SMALLEST).all(0).all(0)
        found.append(math.log(2) / (-decays[..., ~ends]).clamp(min=1e-30))
    return found


def memories(model: Phase, heard: Heard) -> list[dict[str, Any]]:
    """Half-lives of each layer with memories, over all positions, and the median of each head."""
    return [
        {
            "layer": layer,
            **_quantiles(lives),
            "heads": lives.flatten(1).median(1).values.tolist(),
        }
        for (layer, _), lives in zip(_memories(model), half_lives(heard), strict=True)
    ]


def histograms(model: Phase, heard: Heard) -> dict[str, list[tuple[float, float]]]:
    """Of each layer with memories, the share of half-lives in each half octave that has some."""
    low, high = OCTAVES
    bins, layers = 2 * (high - low), [layer for layer, _ in _memories(model)]
    centers = 2.0 ** (low + (np.arange(bins) + 0.5) / 2)
    counts = [x.log2().clamp(low, high).flatten().histc(bins, low, high) for x in half_lives(heard)]
    if not counts:
        return {}
    used = np.flatnonzero(torch.stack(counts).sum(0).numpy())
    span = slice(max(0, used[0] - 1), used[-1] + 2)
    shares = [(count / count.sum()).tolist()[span] for count in counts]
    return {
        f"layer {layer}": list(zip(centers[span].tolist(), own, strict=True))
        for layer, own in zip(layers, shares, strict=True)
    }


def rotations(model: Phase, heard: Heard) -> list[dict[str, Any]]:
    """How far phases turn from one position to the next, in radians, by layers that turn."""
    blocks = [(number, block.attention) for number, block in enumerate(model.trunk.blocks)]
    turning = [n for n, one in blocks if isinstance(one, PhaseMixer) and one.phases.way != "none"]
    steps = [angles.diff(dim=2) for angles in heard.angles]
    return [
        {"layer": layer, **_quantiles(step), "std": step.std().item()}
        for layer, step in zip(turning, steps, strict=True)
    ]


def concepts(
    model: Phase, heard: Heard, tokens: Int[Tensor, "batch time"], tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """The codes that text uses most, and the tokens where each counts most; none without them."""
    if not model.concepts:
        return []
    weights = strongest(heard.probable[0], model.concepts[0].top).flatten(0, 1)
    usage = weights.mean(0)
    codes = usage.argsort(descending=True, stable=True)[:MOST_CODES]
    by_token = weights.new_zeros(model.vocab_size, len(codes))
    by_token.index_add_(0, tokens.flatten(), weights[:, codes])
    found = []
    for code, column in zip(codes.tolist(), by_token.T, strict=True):
        top = [i for i in column.argsort(descending=True, stable=True).tolist() if column[i] > 0]
        names = [label(tokenizer, token) for token in top[:MOST_OF_A_CODE]]
        if names:
            found.append({"code": code, "share": usage[code].item(), "tokens": names})
    return found


@torch.no_grad()
def widths(model: Phase, tokens: Int[Tensor, "batch time"]) -> list[dict[str, Any]]:
    """What a model is that is cut to a quarter, half, three quarters and all of its phases.

    Phases of each head, nats per token, numbers kept of a text, products of a written token.
    """
    found = []
    for pairs in dict.fromkeys(nested(model.pairs)):
        cut = copy.deepcopy(model).eval()
        cut.keep(pairs)
        loss, _ = head_loss(cut, cut.features(tokens[:, :-1]), tokens[:, 1:])
        kept = {"pairs": pairs, "loss": loss.item(), "state_floats": state_floats(cut)}
        found.append({**kept, "flops": cut.step_flops()})
    return found


def _memories(model: Phase) -> Sequence[tuple[int, Interference]]:
    blocks = enumerate(model.trunk.blocks)
    return [(n, b.attention) for n, b in blocks if isinstance(b.attention, Interference)]


def _quantiles(values: Tensor) -> dict[str, float]:
    """By name; NumPy's are of any number of values."""
    found = np.quantile(values.cpu().numpy(), QUANTILES).tolist()
    return {f"p{100 * share:.0f}": value for share, value in zip(QUANTILES, found, strict=True)}
