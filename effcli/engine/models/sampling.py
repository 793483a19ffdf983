"""How the next token is chosen: the processors of Hugging Face in their order, and three by phase.

Every row is a text for itself: what it is given next depends on its own tokens, its copy
number and the seed, never on the other rows. What an option needs of the past is kept only
where it is on. The separator, with which a text begins, is no part of that past: no
penalty touches the end of a document.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from effcli.engine.protocols import LanguageModel
from effcli.engine.selection.keys import uniform
from effcli.errors import InputError
from effcli.settings.generate import SamplingSettings

BLOCK = 256  # positions whose noise is made at once
LONGEST_ECHO = 1024  # tokens; of a longer repetition no more is known
LARGEST_PENALTY = 1e9  # of a logit: finite, so that some token is always left
CANDIDATES = 64  # tokens whose phases are looked at
DECAY = 0.9  # of the mean phases, per token
RECENT = 1024  # tokens whose stability is compared with that of the last one
SETTLED = 32  # tokens until the mean says something, and again until its quantiles do
_SALT = 3


class Sampler:
    """Chooses the next token of several texts; `copies` are their copy numbers."""

    def __init__(self, model: LanguageModel, s: SamplingSettings, copies: Sequence[int]) -> None:
        self._settings, self._copies = s, copies
        self._device, rows = model.head.device, len(copies)
        self._noise, self._block = torch.empty(0), -1
        self._seen = self._echoes = self._harmony = None
        if s.repetition_penalty != 1.0:
            shape = (rows, model.vocab_size)
            self._seen = torch.zeros(shape, dtype=torch.bool, device=self._device)
        if s.no_repeat_ngram_size or s.dry_multiplier:
            self._echoes = Echoes(rows, self._device)
        if s.coherence or s.anneal:
            if (phases := model.phases) is None:
                name = "coherence" if s.coherence else "anneal"
                hint = f"leave out --{name}, or name a run of another model"
                raise InputError(f"the model has no phases: {name} needs a phase model", hint)
            self._harmony = Harmony(phases, rows)

    def read(self, tokens: Int[Tensor, "rows time"]) -> None:
        """Hear what comes next in the texts, separators at their beginnings left out."""
        if self._seen is not None:
            self._seen.scatter_(1, tokens, True)
        if self._echoes is not None:
            self._echoes.read(tokens)
        if self._harmony is not None:
            self._harmony.read(tokens)

    def choose(self, logits: Float[Tensor, "rows vocab"], at: int) -> Int[Tensor, " rows"]:
        """A token for position `at` of every text."""
        s, temperature = self._settings, self._temperature()
        logits = self._processed(logits)
        if s.temperature == 0:
            return logits.argmax(-1)
        return draw(keep((logits / temperature).softmax(-1), s), self._uniform(at))

    def _processed(self, logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
        s, agreement = self._settings, None
        if self._harmony is not None and s.coherence:
            agreement = self._harmony.agreement(logits)
        if self._seen is not None:
            logits = penalized(logits, self._seen, s.repetition_penalty)
        if self._echoes is not None:
            longest = self._echoes.longest(logits.shape[1])
            if s.dry_multiplier:
                penalty = dry(longest, s)
                if agreement is not None:
                    penalty = penalty * (1 + agreement.clamp(min=0))
                logits = logits - penalty
            if s.no_repeat_ngram_size:
                logits = logits.masked_fill(longest >= s.no_repeat_ngram_size - 1, float("-inf"))
        return logits if agreement is None else logits + s.coherence * agreement

    def _temperature(self) -> float | Float[Tensor, "rows 1"]:
        s = self._settings
        if self._harmony is None or not s.anneal:
            return s.temperature
        return s.temperature * (1 + s.anneal * self._harmony.surprise()).clamp(0.7, 1.5)

    def _uniform(self, at: int) -> Float[Tensor, " rows"]:
        """Numbers in (0, 1], hashes of seed, copy and position."""
        block, offset = divmod(at, BLOCK)
        if block != self._block:
            positions = np.arange(block * BLOCK, (block + 1) * BLOCK)
            known = {c: uniform(positions, self._settings.seed, c, _SALT) for c in {*self._copies}}
            rows = np.stack([known[copy] for copy in self._copies]).astype(np.float32)
            self._noise, self._block = torch.from_numpy(rows).to(self._device), block
        return self._noise[:, offset]


def penalized(
    logits: Float[Tensor, "rows vocab"], seen: Bool[Tensor, "rows vocab"], penalty: float
) -> Float[Tensor, "rows vocab"]:
    """Logits of tokens that occurred, once each divided or, below 0, multiplied by the penalty.

    Keskar et al. 2019; the branch on the sign is Hugging Face's: a penalty never helps.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def dry(longest: Int[Tensor, "rows vocab"], s: SamplingSettings) -> Float[Tensor, "rows vocab"]:
    """What DRY takes from each logit: multiplier · base^(repeated tokens - allowed length).

    `longest` are the last tokens of the text that each token would repeat once more.
    """
    above = longest - s.dry_allowed_length
    penalty = (s.dry_multiplier * s.dry_base ** above.float()).clamp(max=LARGEST_PENALTY)
    return penalty.masked_fill(above < 0, 0.0)


def keep(
    probabilities: Float[Tensor, "rows vocab"], s: SamplingSettings
) -> Float[Tensor, "rows vocab"]:
    """The probabilities of the tokens that may be drawn, not normalized; 0 for all others.

    top_k, top_p (Holtzman et al. 2020), min_p (Nguyen et al. 2024) and typical_p (Meister et
    al. 2023), each on what the one before has left.
    """
    p = probabilities
    if 0 < s.top_k < p.shape[1]:
        p = p.where(p >= p.topk(s.top_k).values[:, -1:], 0.0)
    if s.top_p < 1:
        p = _likeliest(p, p, s.top_p)
    if s.min_p:
        p = p.where(p >= s.min_p * p.amax(-1, keepdim=True), 0.0)
    if s.typical_p < 1:
        surprisal = -(p / p.sum(-1, keepdim=True)).log()
        entropy = torch.special.entr(p / p.sum(-1, keepdim=True)).sum(-1, keepdim=True)
        p = _likeliest(p, -(surprisal - entropy).abs(), s.typical_p)
    return p


def _likeliest(
    p: Float[Tensor, "rows vocab"], rank: Float[Tensor, "rows vocab"], mass: float
) -> Float[Tensor, "rows vocab"]:
    """The tokens of highest rank that together have this share of the probability.

    The token that crosses the line is kept, so there is always one.
    """
    order = rank.sort(stable=True, dim=-1, descending=True).indices
    ranked = p.gather(1, order)
    total = ranked.cumsum(-1)
    kept = ranked * (total - ranked < mass * total[:, -1:])
    return torch.zeros_like(p).scatter_(1, order, kept)


def draw(p: Float[Tensor, "rows vocab"], uniform: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """The token at which the sum of probabilities reaches that share of the whole.

    Numbers in (0, 1] never draw a token of probability 0.
    """
    total = p.cumsum(-1)
    return torch.searchsorted(total, uniform.unsqueeze(1) * total[:, -1:]).squeeze(1)


class Echoes:
    """Where texts repeat themselves, kept token by token."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self._text = torch.zeros(rows, 0, dtype=torch.long, device=device)
        self._runs = self._text  # how many tokens before each place are also the text's last ones

    def read(self, tokens: Int[Tensor, "rows time"]) -> None:
        """Add tokens to the texts."""
        known = max(0, tokens.shape[1] - LONGEST_ECHO)  # runs are begun so far back, and no longer
        self._text = torch.cat([self._text, tokens[:, :known]], dim=1)
        self._runs = F.pad(self._runs, (0, known))
        for token in torch.split(tokens[:, known:], 1, dim=1):
            longer = (self._runs + 1).clamp(max=LONGEST_ECHO)
            self._runs = F.pad(longer * (self._text == token), (1, 0))
            self._text = torch.cat([self._text, token], dim=1)

    def longest(self, vocab_size: int) -> Int[Tensor, "rows vocab"]:
        """How many of a text's last tokens stood before each token earlier; -1 for a new one."""
        none = self._text.new_full((len(self._text), vocab_size), -1)
        return none.scatter_reduce_(1, self._text, self._runs, "amax")


class Harmony:
    """An exponential mean of the phases of each text's last tokens, of shape (rows, 2·pairs).

    Phases are unit phasors, [re | im]. The mean's length, averaged over pairs, is in 0..1: the
    stability of phases. A text that goes in circles has a high one.
    """

    def __init__(self, phases: Float[Tensor, "vocab channels"], rows: int) -> None:
        self._phases = phases.float()
        self._mean = self._phases.new_zeros(rows, phases.shape[1])
        self._stability: list[Tensor] = []  # after each of the last tokens
        self._count = 0

    def read(self, tokens: Int[Tensor, "rows time"]) -> None:
        """Turn towards tokens; of long texts the last ones decide."""
        for token in tokens[:, -2 * RECENT :].T:
            self._mean = DECAY * self._mean + (1 - DECAY) * self._phases[token]
            real, imaginary = self._mean.chunk(2, dim=-1)
            self._count += 1
            if self._count > SETTLED:
                self._stability.append(torch.hypot(real, imaginary).mean(-1))
        del self._stability[:-RECENT]

    def agreement(self, logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
        """Re⟨u, m⟩, a mean over pairs, of the likeliest tokens with the mean phases; else 0."""
        candidates = logits.topk(min(CANDIDATES, logits.shape[1])).indices
        products = (self._phases[candidates] @ self._mean.unsqueeze(2)).squeeze(2)
        pairs = self._mean.shape[1] // 2
        return torch.zeros_like(logits).scatter_(1, candidates, products / pairs)

    def surprise(self) -> Float[Tensor, "rows 1"]:
        """(R - R_50) / (R_95 - R_5): the last stability among those of the text so far.

        0 while these are few. Positive where phases are more stable than is usual in this text.
        """
        if len(self._stability) < SETTLED:
            return self._mean.new_zeros(len(self._mean), 1)
        so_far = torch.stack(self._stability, dim=1)
        levels = so_far.new_tensor([0.05, 0.5, 0.95])
        low, middle, high = so_far.quantile(levels, dim=1, keepdim=True)
        found: Tensor = (so_far[:, -1:] - middle) / (high - low).clamp(min=1e-6)
        return found
