"""What a text is like, beside its loss: does it repeat itself, as no text of its corpus does?

Pure functions of ids, and of bytes where they are compressed. No figure says much alone:
texts of a model are judged by windows of held-out text of the same length, measured by the
same code. Everything is in 0..1 but Zipf's slope.
"""

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from effcli.engine.runs.pieces import Spread

WINDOWS = 256  # of held-out text: enough for a 99th percentile
LEAST_GZIP = 0.75
"""Of the 5th percentile of the corpus: what compresses better has collapsed."""
MARGINS = {"rep_16": 0.05, "loop_fraction": 0.10, "top_1": 0.10}
"""Above the 99th percentile of the corpus: what is beyond has collapsed."""


def distinct(ids: Sequence[int], n: int) -> float:
    """Share of the n-grams that are different ones (Li et al. 2016); 1 where there are none."""
    grams = list(zip(*(ids[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


def repetition(ids: Sequence[int], n: int) -> float:
    """rep-n: share of the n-grams that stood there before (Welleck et al. 2020)."""
    return 1.0 - distinct(ids, n)


def loop_fraction(ids: Sequence[int]) -> float:
    """Length of the longest stretch with a period, as a share of the text.

    It has gone through at least two periods; 0 where no token follows itself and nothing
    longer does.
    """
    text, longest = np.asarray(ids), 0
    for period in range(1, len(text) // 2 + 1):
        differs = np.flatnonzero(text[period:] != text[:-period])
        run = int(np.diff(differs, prepend=-1, append=len(text) - period).max()) - 1
        if run >= period:
            longest = max(longest, run + period)
    return longest / len(text) if longest else 0.0


def top_share(ids: Sequence[int]) -> float:
    """Share of the most frequent token."""
    return max(Counter(ids).values()) / len(ids) if ids else 0.0


def zipf_slope(ids: Sequence[int]) -> float:
    """Slope of log frequency over log rank, by least squares; 0 for fewer than two tokens."""
    counts = np.sort(list(Counter(ids).values()))[::-1]
    if len(counts) < 2:
        return 0.0
    rank, frequency = np.log(np.arange(1, len(counts) + 1)), np.log(counts)
    rank -= rank.mean()
    return float(rank @ frequency / (rank @ rank))


def gzip_ratio(data: bytes) -> float:
    """Bytes after DEFLATE over bytes before, at most 1, which it is for no bytes."""
    return min(1.0, len(zlib.compress(data, 9)) / len(data)) if data else 1.0


def self_bleu(texts: Sequence[Sequence[int]], order: int = 4) -> float:
    """Mean BLEU of each text against all others: high where all say the same.

    Zhu et al. 2018; n-grams up to `order`, clipped by the reference that has most of them, with
    the brevity penalty of the nearest length and without smoothing. 0 for fewer than two texts.
    """
    if len(texts) < 2:
        return 0.0
    logs = np.zeros(len(texts))
    for n in range(1, order + 1):
        grams = [Counter(zip(*(t[i:] for i in range(n)), strict=False)) for t in texts]
        most: dict[Any, tuple[int, int]] = {}  # of each n-gram, the two highest counts
        for counts in grams:
            for gram, count in counts.items():
                first, second = most.get(gram, (0, 0))
                most[gram] = (max(first, count), max(min(first, count), second))
        for row, counts in enumerate(grams):
            others = ((c, most[gram][c == most[gram][0]]) for gram, c in counts.items())
            clipped = sum(min(count, limit) for count, limit in others)
            precision = clipped / max(1, counts.total())
            logs[row] += np.log(precision) / order if precision else -np.inf
    return float(np.mean(np.exp(logs) * [_brevity(texts, row) for row in range(len(texts))]))


def _brevity(texts: Sequence[Sequence[int]], row: int) -> float:
    own = len(texts[row])
    others = [len(text) for other, text in enumerate(texts) if other != row]
    nearest = min(others, key=lambda length: (abs(length - own), length))
    return 1.0 if own >= nearest else float(np.exp(1 - nearest / max(1, own)))


@dataclass(frozen=True, slots=True)
class TextQuality:
    """What a text is like; of several texts, the means."""

    rep_4: float
    rep_16: float
    loop_fraction: float
    top_1: float
    distinct_2: float
    gzip_ratio: float
    zipf: float

    @classmethod
    def of(cls, ids: Sequence[int], data: bytes) -> "TextQuality":
        """Of one text, given as ids and as bytes."""
        return cls(
            rep_4=repetition(ids, 4),
            rep_16=repetition(ids, 16),
            loop_fraction=loop_fraction(ids),
            top_1=top_share(ids),
            distinct_2=distinct(ids, 2),
            gzip_ratio=gzip_ratio(data),
            zipf=zipf_slope(ids),
        )

    @classmethod
    def mean(cls, each: Sequence["TextQuality"]) -> "TextQuality":
        """Of several texts."""
        return cls(*(float(np.mean([getattr(q, f.name) for q in each])) for f in fields(cls)))


def spreads(each: Sequence[TextQuality]) -> dict[str, Spread]:
    """The spread of every figure, by its name."""
    names = [f.name for f in fields(TextQuality)]
    return {name: _spread([getattr(one, name) for one in each]) for name in names}


def _spread(values: Sequence[float]) -> Spread:
    p5, p95, p99 = map(float, np.percentile(values, [5, 95, 99]))
    return Spread(mean=float(np.mean(values)), p5=p5, p95=p95, p99=p99)


def compared(
    texts: Sequence[tuple[Sequence[int], bytes]], windows: Sequence[tuple[Sequence[int], bytes]]
) -> dict[str, Any]:
    """Texts of a model beside windows of its corpus, as the report has it."""
    found = TextQuality.mean([TextQuality.of(*text) for text in texts])
    corpus = spreads([TextQuality.of(*window) for window in windows])
    spread = [windows[row * len(windows) // len(texts)][0] for row in range(len(texts))]
    return {
        "texts": len(texts),
        **asdict(found),
        "self_bleu": self_bleu([ids for ids, _ in texts]),
        "collapsed": is_collapsed(found, corpus),
        "corpus": {
            "windows": len(windows),
            **{name: one.model_dump() for name, one in corpus.items()},
            "self_bleu": self_bleu(spread),
        },
    }


def is_collapsed(found: TextQuality, corpus: dict[str, Spread]) -> bool:
    """Whether texts repeat themselves far beyond what their corpus does."""
    above = any(getattr(found, n) > corpus[n].p99 + more for n, more in MARGINS.items())
    return above or found.gzip_ratio < LEAST_GZIP * corpus["gzip_ratio"].p5
