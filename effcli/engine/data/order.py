"""The order of training data: a permutation that needs no memory.

`permuted(i)` is a bijection of 0..n-1 for every key, made of a Feistel network and
walked along its cycle until the result is inside the range (Black & Rogaway 2002). So
any process can compute any part of the order, and the state of a run is one integer.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_ROUNDS = 4


def mix64(value: int) -> int:
    """Scramble 64 bits (splitmix64, Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def mix64_array(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble each number as `mix64` does."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permuted(indices: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """Where a permutation of 0..size-1, chosen by `key`, sends each index."""
    half = max(1, -(-(size - 1).bit_length() // 2))
    low = np.uint64((1 << half) - 1)
    keys = [np.uint64(mix64(key ^ mix64(number))) for number in range(_ROUNDS)]
    result = indices.astype(np.uint64)
    outside = np.ones(result.shape, dtype=bool)
    while outside.any():
        left, right = result[outside] >> np.uint64(half), result[outside] & low
        for round_key in keys:
            left, right = right, left ^ (mix64_array(right ^ round_key) & low)
        result[outside] = (left << np.uint64(half)) | right
        outside[outside] = result[outside] >= np.uint64(size)
    return result.astype(np.int64)


def training_order(start: int, count: int, size: int, seed: int) -> NDArray[np.int64]:
    """The windows with numbers start..start+count-1 of an endless order: each epoch its own."""
    numbers = np.arange(start, start + count, dtype=np.int64)
    epochs, indices = np.divmod(numbers, size)
    order = np.empty(count, dtype=np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        order[chosen] = permuted(indices[chosen], size, mix64(mix64(seed) + int(epoch)))
    return order


def dealt(
    numbers: NDArray[np.int64], sizes: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whose turn has each number of an endless order, and which of its own turns that is.

    Turns of each are `sizes` in every epoch, none of them 0, spread evenly: the first has them
    where its share of the numbers passes a whole one and a half, the next where its share of
    what is left does, and so on.
    """
    epochs, places = np.divmod(numbers, sum(sizes))
    owners, turns, left = np.full_like(numbers, -1), np.empty_like(numbers), sum(sizes)
    for owner, size in enumerate(sizes):
        before, after = ((at * size + left // 2) // left for at in (places, places + 1))
        mine = (owners < 0) & (after > before)
        owners[mine], turns[mine] = owner, (epochs * size + before)[mine]
        places, left = places - before, left - size
    return owners, turns
