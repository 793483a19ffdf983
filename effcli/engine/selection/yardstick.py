"""What passages are measured by before any training, the same for shards and for streams."""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effcli.engine.selection.clusters import Clusters, features
from effcli.engine.selection.ngrams import FLOPS_PER_TOKEN, NGrams, scored
from effcli.engine.selection.overlap import Grams
from effcli.engine.selection.passages import Passages, Text, flat
from effcli.engine.selection.ratio import Gate

Columns = dict[str, NDArray[np.generic]]
Floats = NDArray[np.float32]
COMPRESSED = 256  # tokens; more say the same and take longer


@dataclass(frozen=True)
class Yardstick:
    """Counts of a pool and of trusted text, clusters, and what held-out text must not be met."""

    warm: NGrams
    """Counts of a part of the pool."""
    reference: NGrams | None
    """Counts of trusted text."""
    gate: Gate | None
    clusters: Clusters
    held_out: Grams
    vocab_size: int

    def columns(self, text: Text, passages: Passages) -> Columns:
        """Scores of passages that were not seen before, but for the number of their copies."""
        placed = features(text, passages.starts, passages.lengths, vocab_size=self.vocab_size)
        plain = self.counted(text, passages)
        return {
            **plain,
            "ratio": self.ratios(plain),
            "cluster": self.clusters.assign(placed),
            "overlaps": self.held_out.passages_with(text, passages),
        }

    def counted(self, text: Text, passages: Passages) -> dict[str, Floats]:
        """What counting says: loss, rarity, compression, and the excess over trusted counts."""
        loss, rarity = scored(self.warm, text, passages)
        excess = np.zeros_like(loss)
        if self.reference is not None:
            excess = loss - scored(self.reference, text, passages)[0]
        small = compression(text, passages)
        return {"loss": loss, "rarity": rarity, "excess": excess, "compression": small}

    def ratios(self, scores: dict[str, Floats]) -> Floats:
        """How much more often trusted text is like a passage; 1 where there is none."""
        if self.gate is None:
            return np.ones_like(scores["loss"])
        return self.gate.ratios(evidence(scores))

    @property
    def flops_per_token(self) -> float:
        """Of arithmetic; hashes, lookups and sorting are none."""
        return FLOPS_PER_TOKEN * (1 if self.reference is None else 2)


def evidence(scores: dict[str, Floats]) -> Floats:
    """What a gate goes by, of shape (passages, 4)."""
    trusted = scores["loss"] - scores["excess"]
    return np.stack([trusted, scores["excess"], scores["rarity"], scores["compression"]], axis=1)


def compression(text: Text, passages: Passages) -> Floats:
    """How small the middle of each passage becomes: bytes after and before (zlib, fastest)."""
    out = np.empty(len(passages), dtype=np.float32)
    for part in passages.stretches():
        some = passages.part(part)
        tokens = flat(text, some)
        small = tokens.astype(np.uint16 if tokens.max(initial=0) < 2**16 else np.uint32)
        data, size = memoryview(small.view(np.uint8).data), small.itemsize
        middles = np.cumsum(some.lengths) - (some.lengths + 1) // 2
        counts = np.minimum(some.lengths, COMPRESSED)
        starts = size * (middles - (counts - 1) // 2)
        for at, (start, count) in enumerate(zip(starts, size * counts, strict=True), part.start):
            out[at] = len(zlib.compress(data[start : start + count], 1)) / count
    return out
