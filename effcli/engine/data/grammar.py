"""Text of exactly known entropy: a yardstick that no natural text can be.

The grammar is unambiguous (the next word always tells which rule was used), so the
entropy of its sentences is the sum of the entropies of its choices. A held-out loss
below it is a leak or a bug. Only `random.Random.random` is used, whose sequence is
guaranteed, so a seed gives the same bytes on every machine.
"""

import math
from collections.abc import Iterator
from random import Random
from typing import Any, ClassVar

from effcli.engine.data.source import SPLITS, Row
from effcli.errors import InputError

# A rule is (weight, symbols); a symbol that is not a key of the grammar is printed as it is.
Rules = dict[str, list[tuple[float, tuple[str, ...]]]]


def _words(*words: str) -> list[tuple[float, tuple[str, ...]]]:
    """Words with Zipf's weights: the k-th is 1/k as frequent as the first."""
    return [(1 / rank, (word,)) for rank, word in enumerate(words, start=1)]


# Verbs agree with their subject, also across a relative clause: that takes memory to learn.
RULES: Rules = {
    "sentence": [(0.6, ("one", "does", ".\n")), (0.4, ("many", "do", ".\n"))],
    "one": [(0.75, ("det1", "noun1")), (0.25, ("det1", "noun1", " which", "does", ","))],
    "many": [(0.75, ("det2", "noun2")), (0.25, ("det2", "noun2", " which", "do", ","))],
    "does": [(0.4, ("verb1",)), (0.6, ("verb3", "object"))],
    "do": [(0.4, ("verb2",)), (0.6, ("verb4", "object"))],
    "object": [(0.7, ("one",)), (0.3, ("many",))],
    "det1": [(0.6, ("the",)), (0.4, ("a",))],
    "det2": [(0.5, ("some",)), (0.3, ("all",)), (0.2, ("few",))],
    "noun1": _words(" fox", " crow", " miller", " king", " goose", " wolf", " tailor", " river"),
    "noun2": _words(" foxes", " crows", " sisters", " kings", " geese", " stones", " lanterns"),
    "verb1": _words(" sleeps", " sings", " waits", " wanders", " laughs"),
    "verb2": _words(" sleep", " sing", " wait", " wander", " laugh"),
    "verb3": _words(" sees ", " follows ", " fears ", " finds ", " praises ", " forgets "),
    "verb4": _words(" see ", " follow ", " fear ", " find ", " praise ", " forget "),
    # Hard sentences open with a word of their own, so the kind of a document is never in doubt.
    "hard": [(1.0, ("opener", "clause", "then", "clause", ".\n"))],
    "opener": [(0.5, ("if ",)), (0.3, ("while ",)), (0.2, ("unless ",))],
    "then": [(0.7, (", then ",)), (0.3, (", even so ",))],
    "clause": [(0.6, ("one2", "does2")), (0.4, ("many2", "do2"))],
    "one2": [(0.5, ("det1", "noun1")), (0.5, ("det1", "noun1", " which", "does2", ","))],
    "many2": [(0.5, ("det2", "noun2")), (0.5, ("det2", "noun2", " which", "do2", ","))],
    "does2": [(0.3, ("verb1",)), (0.7, ("verb3", "object2"))],
    "do2": [(0.3, ("verb2",)), (0.7, ("verb4", "object2"))],
    "object2": [(0.7, ("one2",)), (0.3, ("many2",))],
}
STOP = 0.05  # chance that a document ends after a sentence


def _normalized(rules: Rules) -> Rules:
    return {
        symbol: [(weight / sum(w for w, _ in choices), parts) for weight, parts in choices]
        for symbol, choices in rules.items()
    }


_GRAMMAR = _normalized(RULES)


def expected(symbol: str) -> tuple[float, float]:
    """Entropy in bits and length in bytes of what `symbol` becomes, on average."""
    bits = dict.fromkeys(_GRAMMAR, 0.0)
    size = dict.fromkeys(_GRAMMAR, 0.0)
    change = 1.0
    while change > 1e-15:  # recursion is rarer than certain, so this converges geometrically
        change = 0.0
        for name, choices in _GRAMMAR.items():
            new_bits = sum(
                p * (-math.log2(p) + sum(bits.get(s, 0.0) for s in parts)) for p, parts in choices
            )
            new_size = sum(p * sum(size.get(s, len(s)) for s in parts) for p, parts in choices)
            change = max(change, abs(new_bits - bits[name]) / 50, abs(new_size - size[name]) / 500)
            bits[name], size[name] = new_bits, new_size
    return bits[symbol], size[symbol]


def document_entropy(symbol: str) -> tuple[float, float]:
    """Entropy in bits and bytes of a document of sentences of one kind, its end included."""
    bits, size = expected(symbol)
    stop = -(STOP * math.log2(STOP) + (1 - STOP) * math.log2(1 - STOP))
    return (bits + stop) / STOP, size / STOP


def write(symbol: str, random: Random) -> str:
    """A random document of sentences of one kind."""
    parts: list[str] = []
    while True:
        stack = [symbol]
        while stack:
            top = stack.pop()
            choices = _GRAMMAR.get(top)
            if choices is None:
                parts.append(top)
                continue
            at = random.random()
            for p, symbols in choices:
                at -= p
                if at < 0:
                    break
            stack.extend(reversed(symbols))
        if random.random() < STOP:
            return "".join(parts)


class Grammar:
    """`grammar:SEED`: about 8 MB of sentences, 15 bits of surprise in each."""

    kind: ClassVar[str] = "grammar"
    splits = frozenset(SPLITS)
    tokenizer = "bytes"
    held_out_share = 0.0
    used: ClassVar[frozenset[str]] = frozenset()
    DOCUMENTS: ClassVar[dict[str, int]] = {"train": 13_500, "val": 700, "test": 700}

    def __init__(self, seed: str) -> None:
        if not seed.isdecimal() or int(seed) >= 2**31:
            message = f"{self.kind}:{seed}: the seed must be a whole number below 2^31"
            raise InputError(message, f"as in {self.kind}:1")
        self.seed = int(seed)
        self.name = f"{self.kind}-{self.seed}"
        self._at = 0
        self._total = 1

    def rows(self, split: str) -> Iterator[Row]:
        """Documents, each from a generator of its own."""
        self._total = self.DOCUMENTS[split]
        for index in range(self._total):
            self._at = index
            yield self.row(split, index)

    def row(self, split: str, index: int) -> Row:
        """The document at a place, independent of all others."""
        return Row(write("sentence", self.random(split, index)))

    def random(self, split: str, index: int) -> Random:
        """The generator of one document."""
        return Random((self.seed << 34) | (SPLITS.index(split) << 32) | index)

    def share_read(self) -> float | None:
        """How much of the current split has been written."""
        return self._at / self._total

    def entropy_bits_per_byte(self) -> float:
        """The least that any model can reach on the held-out splits."""
        bits, size = document_entropy("sentence")
        return bits / size

    def stamp(self) -> None:
        """Nothing can change."""

    def describe(self) -> dict[str, Any]:
        """The seed says it all."""
        entropy = self.entropy_bits_per_byte()
        return {"kind": self.kind, "seed": self.seed, "entropy_bits_per_byte": entropy}


class NoisyGrammar(Grammar):
    """`grammar-noisy:SEED`: labeled training documents; held out are clean ones only.

    Easy and hard documents are worth reading, duplicates were read before, and noise
    cannot be learned. So what a selection buys can be counted, not argued about.
    """

    kind: ClassVar[str] = "grammar-noisy"
    LABELS: ClassVar[tuple[str, ...]] = ("easy", "hard", "duplicate", "noise")
    SHARES: ClassVar[tuple[float, ...]] = (0.40, 0.25, 0.20, 0.15)
    ORIGINALS: ClassVar[int] = 20
    ALPHABET: ClassVar[str] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/"

    def row(self, split: str, index: int) -> Row:
        """A document and its label."""
        random = self.random(split, index)
        shares = self.SHARES if split == "train" else self.SHARES[:2]
        at = random.random() * sum(shares)
        label = 0
        while label + 1 < len(shares) and at >= shares[label]:
            at -= shares[label]
            label += 1
        if self.LABELS[label] == "duplicate":
            original = 2**31 + int(random.random() * self.ORIGINALS)
            return Row(write("sentence", self.random(split, original)), label)
        if self.LABELS[label] == "noise":
            length = 200 + int(random.random() * 1400)
            noise = (self.ALPHABET[int(random.random() * 64)] for _ in range(length))
            return Row("".join(noise), label)
        return Row(write("hard" if label else "sentence", random), label)

    def entropy_bits_per_byte(self) -> float:
        """Of the held-out mixture of easy and hard documents; which one it is counts once."""
        easy = self.SHARES[0] / (self.SHARES[0] + self.SHARES[1])
        choice = -(easy * math.log2(easy) + (1 - easy) * math.log2(1 - easy))
        (bits1, size1), (bits2, size2) = document_entropy("sentence"), document_entropy("hard")
        return (choice + easy * bits1 + (1 - easy) * bits2) / (easy * size1 + (1 - easy) * size2)

    def describe(self) -> dict[str, Any]:
        """The seed, and what the labels mean."""
        return {**super().describe(), "labels": list(self.LABELS)}
