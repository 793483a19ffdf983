"""Phases that tokens start with: similar tokens get similar phases.

What stands around a token is counted by offset and weighed by positive pointwise mutual
information, with smoothed contexts (Levy et al. 2015). Leading eigenvectors of the normalized
Laplacian of the tokens' cosines (Shi & Malik 2000) are their coordinates. Ranks along these fill
half a circle, harmonics of it tell near tokens apart, and golden offsets spread the pairs.
"""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from effcli.engine.data.marked import language_of
from effcli.engine.data.tokenizers import Tokenizer

Angles = NDArray[np.float32]
Coordinates = NDArray[np.float64]
How = Literal["semantic", "frequency", "golden", "random"]
TOKENS = 2_000_000  # counted; with eight times as many similarity is caught no better
CONTEXTS = 4096  # most frequent tokens that count as contexts
OFFSETS = (-3, -2, -1, 1, 2, 3)
SMOOTHING = 0.75
AXES = 8
LADDER = (8, 5, 3, 2, 1, 1)
"""Harmonics along the pairs: the last pairs turn slowest."""
GOLDEN = (math.sqrt(5) - 1) / 2
_DENSE = 1024  # tokens; for more of them a few singular vectors are found by iteration
_PART = 2**16  # tokens read in a row
_COMMON, _COMPARED = 10, 512  # tokens as frequent as this are compared; that many of them
_RATIO = 4  # of the shares that a token has in two languages which share it


def initial_phases(
    tokens: NDArray[Any],
    vocab_size: int,
    pairs: int,
    how: How,
    seed: int = 0,
    among: NDArray[np.int64] | None = None,
) -> Angles:
    """Angles in radians, of shape (vocab_size, pairs); the same for the same arguments.

    `semantic` follows what is found around each token of the text, `frequency` how often it
    occurs, `golden` nothing but its number; `random` is uniform, by `seed`. Tokens that the text
    does not have are spread over the circle by their numbers. What is found `among` counts alone,
    if it is given.
    """
    if how == "random":
        uniform = np.random.default_rng(seed).random((vocab_size, pairs))
        return (2 * math.pi * uniform).astype(np.float32)
    if how == "golden":
        return _ladder(_by_number(vocab_size)[:, None], pairs, 1.0)
    text = _spread(tokens)
    counts = np.bincount(text, minlength=vocab_size)
    known = counts > 0
    places = -counts[:, None].astype(float)
    if how == "semantic":
        places = spectral_coordinates(text, vocab_size, among=among)
        known = (places != 0).any(1)
    circle = np.repeat(_by_number(vocab_size)[:, None], places.shape[1], axis=1)
    order = places[known].argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    circle[known] = order / max(1, len(order))
    return _ladder(circle, pairs, 0.5)


def embedding(angles: Angles) -> Angles:
    """Phasors [cos | sin] with a mean square of 1, of shape (vocab, 2·pairs)."""
    both = np.concatenate((np.cos(angles), np.sin(angles)), axis=1) * math.sqrt(2)
    return both.astype(np.float32)


def spectral_coordinates(
    tokens: NDArray[Any],
    vocab_size: int,
    axes: int = AXES,
    among: NDArray[np.int64] | None = None,
) -> Coordinates:
    """Where tokens lie on the leading axes of similarity, of shape (vocab_size, axes).

    The largest value on each axis is positive. Tokens that are not known have zeros; so has
    an axis beyond the number of known tokens.
    """
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import svds
    from threadpoolctl import threadpool_limits

    rows, _ = _profiles(tokens, vocab_size, among)
    degrees = rows @ rows.sum(0)  # of the graph of cosines, all of which are positive
    known = degrees > 0
    found = np.zeros((vocab_size, axes))
    scaled = diags_array(1 / np.sqrt(degrees[known])) @ rows[known]
    count = scaled.shape[0]
    if count > axes + 1:
        with threadpool_limits(1):  # more threads would add in another order
            if count <= _DENSE:
                vectors = np.linalg.eigh((scaled @ scaled.T).toarray())[1]
            else:
                start = np.ones(min(scaled.shape))
                vectors, values, _ = svds(scaled, axes + 1, v0=start, return_singular_vectors="u")
                vectors = vectors[:, np.argsort(values)]
        vectors = vectors[:, -2 : -axes - 2 : -1]  # the first one is how central a token is
        strongest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], axis=0)
        found[known] = vectors * np.sign(strongest)
    return found


def shared_tokens(windows: NDArray[np.int64], tokenizer: Tokenizer) -> NDArray[np.int64] | None:
    """Tokens that text in several languages has: who stands beside these can be compared.

    At least `_COMMON` times in each of two, and in neither more than `_RATIO` times as often; none
    where these are too few to tell tokens apart.
    """
    languages, size = language_of(windows, tokenizer), tokenizer.vocab_size
    marks = range(len(tokenizer.marks))
    counts = np.array([np.bincount(windows[languages == n], minlength=size) for n in marks])
    shares = np.sort(counts / np.maximum(1, counts.sum(1, keepdims=True)), axis=0)
    is_common = np.sort(counts, axis=0)[-2] >= _COMMON
    is_alike = shares[-1] <= _RATIO * shares[-2]
    found = np.flatnonzero(is_common & is_alike & (np.arange(size) < tokenizer.unmarked))
    return found if len(found) > AXES else None


def agreement(angles: Angles, tokens: NDArray[Any]) -> float:
    """Spearman correlation of phase similarity with the cosine of what is around tokens.

    Over all pairs of up to 512 common tokens, always the same ones; in -1..1, and 0 where there
    are fewer than three.
    """
    from scipy.stats import spearmanr

    rows, counts = _profiles(tokens, len(angles))
    common = np.flatnonzero(counts >= _COMMON)
    drawn = np.sort(np.random.default_rng(0).permutation(common)[:_COMPARED])
    if len(drawn) < 3:
        return 0.0
    phasors, near = embedding(angles[drawn]), rows[drawn]
    upper = np.triu_indices(len(drawn), 1)
    similar, close = (phasors @ phasors.T)[upper], (near @ near.T).toarray()[upper]
    return float(spearmanr(similar, close).statistic)


def _by_number(count: int) -> Coordinates:
    return np.arange(count, dtype=np.float64) * GOLDEN % 1


def _ladder(circle: Coordinates, pairs: int, share: float) -> Angles:
    """Angles of pairs that take turns in the axes; a harmonic of 1 uses a `share` of a circle."""
    pair = np.arange(pairs)
    harmonics = np.array(LADDER)[pair * len(LADDER) // pairs]
    turns = share * harmonics * circle[:, pair % circle.shape[1]] + _by_number(pairs)
    return (2 * math.pi * (turns % 1)).astype(np.float32)


def _spread(tokens: NDArray[Any]) -> NDArray[np.int32]:
    """All of a text, or parts spread evenly over it."""
    if len(tokens) <= TOKENS:
        return tokens.astype(np.int32)
    parts = TOKENS // _PART
    starts = [(len(tokens) - _PART) * part // (parts - 1) for part in range(parts)]
    return np.concatenate([tokens[start : start + _PART] for start in starts]).astype(np.int32)


def _profiles(
    tokens: NDArray[Any], vocab_size: int, among: NDArray[np.int64] | None = None
) -> tuple[Any, NDArray[np.int64]]:
    """What is around each token, in sparse rows of length 1, and how often it occurs."""
    from scipy.sparse import coo_array, csr_array, diags_array, hstack

    text = _spread(tokens)
    counts = np.bincount(text, minlength=vocab_size)
    contexts = np.argsort(-counts, kind="stable")[:CONTEXTS] if among is None else among
    place = np.full(vocab_size, -1, dtype=np.int32)
    place[contexts] = np.arange(len(contexts))
    shape, parts = (vocab_size, len(contexts)), []
    for offset in OFFSETS:
        first, second = max(0, -offset), max(0, offset)
        size = max(0, len(text) - abs(offset))
        token, context = text[first : first + size], place[text[second : second + size]]
        pair = (token[context >= 0], context[context >= 0])
        ones = np.ones(len(pair[0]), dtype=np.int32)
        parts.append(coo_array((ones, pair), shape=shape).tocsr())  # which adds up the ones
    both = hstack(parts, format="coo")
    expected = counts**SMOOTHING / max(1.0, (counts**SMOOTHING).sum())
    column = contexts[both.col % len(contexts)]
    information = np.log(both.data / (counts[both.row] * expected[column]))
    kept = information > 0
    rows = csr_array((information[kept], (both.row[kept], both.col[kept])), shape=both.shape)
    lengths = np.sqrt((rows * rows).sum(1))
    return diags_array(1 / np.maximum(lengths, 1e-12)) @ rows, counts
