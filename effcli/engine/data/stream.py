"""Documents from several sources become one stream of tokenized documents, always the same."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from effcli.engine.data.order import mix64
from effcli.engine.data.source import Item, Source, items
from effcli.engine.data.tokenizers import Tokenizer

BATCH_BYTES = 2**22
BATCH_ITEMS = 2**12
TASK_CHARACTERS = 2**16
MIX_PIECE = 2**13  # bytes; parts this small keep the shares of a mix within a percent
ELSEWHERE = "elsewhere"  # belongs to a split that another pass writes


class Flowing(NamedTuple):
    """A document with its ids, and the number of its source."""

    source: int
    item: Item
    ids: NDArray[np.uint32]


class Router:
    """Sends every document to its split, and keeps held-out text out of training text."""

    def __init__(self, seed: int, share: float | None) -> None:
        self._salt = mix64(seed)
        self._share = share
        self.held_out: set[int] = set()

    def rows(self, source: Source, targets: frozenset[str]) -> Iterator[Any]:
        """The rows of a source that may belong to the splits being written."""
        (target, *others) = sorted(targets)
        own = not others and target in source.splits
        return source.rows(target if own else "train")

    def route(self, source: Source, targets: frozenset[str], item: Item) -> Item:
        """Decide the split, or why the document is left out."""
        if item.rejected:
            return item
        (target, *others) = sorted(targets)
        if not others and target in source.splits and target != "train":
            item.split = target
            return item
        item.split = self._by_hash(source, item.document)
        if item.split not in targets:
            item.rejected = ELSEWHERE
        elif item.split == "train" and item.digest in self.held_out:
            item.rejected = "duplicate"
        return item

    def is_home(self, source: Source, targets: frozenset[str]) -> bool:
        """Whether the rows that a pass reads are counted in it; each is in just one."""
        return "train" in targets or targets <= source.splits

    def _by_hash(self, source: Source, digest: int) -> str:
        share = source.held_out_share if self._share is None else self._share
        at = mix64(digest ^ self._salt) / 2**64
        for split in ("val", "test"):
            if split not in source.splits:
                if at < share:
                    return split
                at -= share
        return "train"


def tokenized(
    number: int,
    source: Source,
    targets: frozenset[str],
    router: Router,
    tokenizer: Tokenizer,
    piece: int | None,
    skip: int,
) -> Iterator[Flowing]:
    """The documents of one source from number `skip` on, with their ids, rejected ones too."""
    rows = islice(items(router.rows(source, targets), piece), skip, None)
    stream = (router.route(source, targets, item) for item in rows)
    tokenizer.encode("")  # what is built at first use is built before the threads ask for it
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        ahead: deque[_Encoding] = deque()
        while batch := list(_batch(stream)):
            ahead.append(_Encoding(batch, pool, tokenizer))
            if len(ahead) > 1:  # one batch is encoded while the next is read
                yield from ahead.popleft().flow(number)
        for encoding in ahead:
            yield from encoding.flow(number)


class _Encoding:
    """A batch whose texts are being encoded."""

    def __init__(self, batch: list[Item], pool: ThreadPoolExecutor, tokenizer: Tokenizer) -> None:
        self._batch = batch
        texts = (item.text for item in batch if not item.rejected)
        self._tasks = [pool.submit(tokenizer.encode_several, part) for part in _parts(texts)]

    def flow(self, number: int) -> Iterator[Flowing]:
        encoded = (ids for task in self._tasks for ids in task.result())
        for item in self._batch:
            ids = None if item.rejected else next(encoded)
            if ids is None and not item.rejected:
                item.rejected = "tokenizer"
            yield Flowing(number, item, _EMPTY if ids is None else ids)


_EMPTY = np.empty(0, dtype=np.uint32)


def _parts(texts: Iterator[str]) -> Iterator[list[str]]:
    """Enough texts at a time that handing them to a thread is not the work."""
    part: list[str] = []
    size = 0
    for text in texts:
        part.append(text)
        if (size := size + len(text)) > TASK_CHARACTERS:
            yield part
            part, size = [], 0
    if part:
        yield part


def _batch(stream: Iterator[Item]) -> Iterator[Item]:
    size = 0
    for item in islice(stream, BATCH_ITEMS):
        yield item
        size += len(item.data)
        if size > BATCH_BYTES:
            return


class Mixer:
    """Draws from streams so that each gets its share of the tokens, exactly enough.

    Only a stream at or below its share can be drawn, so none is ever ahead by more
    than one document. Which of them is drawn is a function of the seed and the number
    of the draw: the state is a few integers.
    """

    def __init__(
        self, shares: tuple[float, ...], seed: int, tokens: list[int], restart: Callable[[int], Any]
    ) -> None:
        self._shares = shares
        self._salt = mix64(seed ^ 0x6D69783A)
        self.tokens = tokens
        self._restart = restart

    def flow(self, streams: list[Iterator[Flowing]], drawn: int) -> Iterator[Flowing]:
        """Documents until a stream ends that may not be read again."""
        while True:
            number = self._draw(drawn)
            while (flowing := next(streams[number], None)) is None:
                again = self._restart(number)
                if again is None:
                    return
                streams[number] = again
            drawn += 1
            if not flowing.item.rejected:
                self.tokens[number] += len(flowing.ids) + 1
            yield flowing

    def _draw(self, drawn: int) -> int:
        total = sum(self.tokens)
        behind = [
            (number, share)
            for number, share in enumerate(self._shares)
            if self.tokens[number] <= share * total + 1
        ]
        at = mix64(drawn ^ self._salt) / 2**64 * sum(share for _, share in behind)
        for number, share in behind:
            at -= share
            if at < 0:
                return number
        return behind[-1][0]
