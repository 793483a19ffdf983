"""Copies in a text: documents that are the same, or nearly.

The same: equal hashes of all tokens. Nearly: the sets of their 5-grams have a Jaccard
similarity of at least 0.8, estimated from 128 minima (Broder 1997) of pairs of documents
that agree in a band of these (Leskovec et al. 2014, section 3.4).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from effcli.engine.selection.passages import Ids, Text

Hashes = NDArray[np.uint64]
Signatures = NDArray[np.uint32]
WIDTH = 5  # tokens of a shingle; documents of fewer can only be the same
BYTES = 18  # that five tokens have, roughly: where they are short, all texts share them
PERMUTATIONS, BANDS = 128, 32  # two documents of similarity 0.8 share a band but once in 10^7
SIMILAR = 0.8
CHUNK = 2**19  # tokens; what is made of them stays in the cache of a processor
_SEED = 1
_FACTOR, _MIXER = np.uint64(0xD1342543DE82EF95), np.uint64(0x9E3779B97F4A7C15)
_PAIRS = 2**12  # compared at one time
_NEIGHBORS = 8


@dataclass(frozen=True)
class Duplicates:
    """Which documents are copies of each other."""

    group: Ids
    """Of each document; groups are numbered by their first document."""
    copy: Ids
    """Of each document: how many of its group come before it."""


def shingle(tokens: int, size: int) -> int:
    """Tokens of a shingle, for a text of so many tokens and bytes: as long as five usual ones."""
    return max(WIDTH, round(BYTES * tokens / max(1, size)))


def contents(tokens: Text | Ids, starts: Ids, lengths: Ids, chunk: int = CHUNK) -> Hashes:
    """A hash of the tokens of each document."""
    hashes = np.empty(len(starts), dtype=np.uint64)
    for part, row, edges in chunks(tokens, starts, lengths, chunk):
        hashes[part] = _hashes(row, edges)
    return hashes


def copies(
    tokens: Text | Ids,
    starts: Ids,
    lengths: Ids,
    *,
    similar: float = SIMILAR,
    width: int = WIDTH,
    chunk: int = CHUNK,
) -> Duplicates:
    """Find the documents that are the same or nearly, whatever lies between them.

    Starts ascend and documents do not overlap. Whoever is similar to a member of a group
    belongs to it, so its ends may differ more. `chunk`, or the longest document if that is
    more, bounds the memory for tokens, and does not change the result. A similarity of 0.8
    is estimated to ±0.035. A replaced token spoils five shingles, so a document with 3 % of
    its tokens replaced here and there has 0.75, and is found with `similar` at 0.6.
    """
    if not len(starts):
        return _numbered(np.empty(0, dtype=np.int64))
    hashes = np.empty(len(starts), dtype=np.uint64)
    signatures = np.empty((len(starts), PERMUTATIONS), dtype=np.uint32)
    for part, row, edges in chunks(tokens, starts, lengths, chunk):
        hashes[part] = _hashes(row, edges)
        signatures[part] = _signatures(row, edges, width)
    same = _numbered(hashes)
    first = np.flatnonzero(same.copy == 0)
    long = np.flatnonzero(lengths[first] >= width)
    pairs = long[_near(signatures[first[long]], similar)]
    return _numbered(_joined(pairs, len(first))[same.group])


def chunks(
    tokens: Text | Ids, starts: Ids, lengths: Ids, size: int
) -> Iterator[tuple[slice, Ids, Ids]]:
    """Read stretches of a text a few at a time: which, their tokens, and where each one ends there.

    Starts ascend and stretches do not overlap. At most `size` tokens are read at one time,
    unless a stretch is longer. The edges begin with 0, so there is one more of them.
    """
    ends, first = starts + lengths, 0
    while first < len(starts):
        begin = int(starts[first])
        last = max(first + 1, int(np.searchsorted(ends, begin + size, side="right")))
        count = int(ends[last - 1]) - begin
        if isinstance(tokens, np.ndarray):
            row = tokens[begin : begin + count]
        else:
            row = tokens.read([begin], count)[0]
        part = slice(first, last)
        edges = np.concatenate(([0], np.cumsum(lengths[part])))
        gaps = starts[part] - begin - edges[:-1]
        if gaps.any():
            row = row[np.arange(edges[-1]) + np.repeat(gaps, lengths[part])]
        yield part, row, edges
        first = last


def _hashes(tokens: Ids, edges: Ids) -> Hashes:
    data = tokens.astype("<u4")
    digests = b"".join(
        hashlib.blake2b(data[start:stop].tobytes(), digest_size=8).digest()
        for start, stop in pairwise(edges)
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _signatures(tokens: Ids, edges: Ids, width: int) -> Signatures:
    """The minima of each document's shingles; those of a document without any mean nothing."""
    from rensa import RMinHash

    counts = np.maximum(0, np.diff(edges) - width + 1)
    if not counts.any():
        return np.zeros((len(counts), PERMUTATIONS), dtype=np.uint32)
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.uint64)
    shingles = _shingles(tokens, edges, width)
    rows = RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets, PERMUTATIONS, _SEED)
    return np.array(rows.to_rows(), dtype=np.uint32)


def _shingles(tokens: Ids, edges: Ids, width: int) -> Hashes:
    """Hashes of all runs of `width` tokens that lie in one document."""
    ids = tokens.astype(np.uint64)
    count = len(ids) - width + 1
    hashes = ids[:count].copy()
    for place in range(1, width):
        hashes *= _FACTOR
        hashes += ids[place : place + count]
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MIXER
    hashes ^= hashes >> np.uint64(29)
    across = (edges[:, None] - np.arange(1, width)).ravel()
    is_inside = np.ones(count, dtype=bool)
    is_inside[across[(across >= 0) & (across < count)]] = False
    return hashes[is_inside]


def _near(signatures: Signatures, similar: float) -> Ids:
    """Pairs of similar rows, of shape (pairs, 2), enough to connect them.

    Of all rows that agree in a band, each is compared with the first one and the _NEIGHBORS
    before it: the work stays linear where thousands of documents share a template.
    """
    count = len(signatures)
    bands = signatures.reshape(count, BANDS, PERMUTATIONS // BANDS).astype(np.uint64)
    found = [np.empty(0, dtype=np.int64)]
    for band in range(BANDS):
        keys = bands[:, band] @ _FACTOR ** np.arange(bands.shape[2], dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        found.append(order[np.searchsorted(keys, keys)] * count + order)
        for distance in range(1, min(count, 1 + _NEIGHBORS)):
            earlier = np.flatnonzero(keys[distance:] == keys[:-distance])
            found.append(order[earlier] * count + order[earlier + distance])
    codes = np.sort(np.concatenate(found))
    codes = codes[np.diff(codes, prepend=-1) > 0]  # np.unique hashes, which takes ten times as long
    pairs = np.stack(np.divmod(codes, max(1, count)), axis=1)
    blocks = np.split(pairs, range(_PAIRS, len(pairs), _PAIRS))
    alike = [(signatures[a] == signatures[b]).mean(1) >= similar for a, b in (k.T for k in blocks)]
    near: Ids = pairs[np.concatenate(alike)]
    return near


def _joined(pairs: Ids, count: int) -> Ids:
    """A label for each of `count` things that are connected by pairs."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs), dtype=bool), pairs.T), shape=(count, count))
    _, labels = connected_components(links, directed=False)
    numbers: Ids = labels.astype(np.int64)
    return numbers


def _numbered(labels: Ids | Hashes) -> Duplicates:
    """Groups in the order of their first members, and members in theirs."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    group = np.argsort(np.argsort(first))[inverse]
    order = np.argsort(group, kind="stable")
    begins = np.searchsorted(group[order], np.arange(len(first)))
    copy = np.empty(len(labels), dtype=np.int64)
    copy[order] = np.arange(len(labels)) - begins[group[order]]
    return Duplicates(group, copy)
