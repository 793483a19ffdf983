"""A corpus's sources, opened again: their training documents, as `eff prepare` would read them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from effcli.engine.data.corpus import Corpus, Split
from effcli.engine.data.hub import Hub
from effcli.engine.data.source import SPLITS, Source, digest
from effcli.engine.data.sources import open_source, plan
from effcli.engine.data.stream import MIX_PIECE, Flowing, Mixer, Router, tokenized
from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.selection.holdout import Row
from effcli.engine.selection.passages import Ids
from effcli.errors import InputError
from effcli.settings.corpora import CORPORA, MIXES
from effcli.settings.prepare import PrepareSettings


@dataclass(frozen=True)
class Cursor:
    """A place between two documents."""

    positions: tuple[int, ...]
    """Documents of each source that come before, those that were left out as well."""
    tokens: tuple[int, ...]
    """Of each source, without those."""
    windows: int = 0
    """That come before: the id of the next one."""

    @property
    def drawn(self) -> int:
        """Documents of all sources, those that were left out as well."""
        return sum(self.positions)

    def numbers(self) -> dict[str, Any]:
        """All of it, as lists and a number."""
        return {name: list(v) if name != "windows" else v for name, v in asdict(self).items()}

    @classmethod
    def of(cls, numbers: dict[str, Any]) -> "Cursor":
        """The same place again."""
        positions, tokens = (tuple(map(int, numbers[name])) for name in ("positions", "tokens"))
        return cls(positions, tokens, int(numbers["windows"]))


class Block(NamedTuple):
    """Documents that are read at one time."""

    row: Row
    digests: NDArray[np.uint64]
    """Of their texts."""
    labels: Ids
    first: int
    """The id of the first window."""


class Documents:
    """Training documents with their tokens; those that the corpus holds out never come.

    Sources come one after the other, or as a mix, which ends with its first source. They
    must be what the corpus was made of: files are compared, the hub is asked for the same
    revision, whose files are read while they come and not kept.
    """

    def __init__(self, corpus: Corpus, context: int) -> None:
        self._context = context
        self._settings = _asked(corpus)
        self._plan = plan(self._settings)
        self._tokenizer = corpus.tokenizer
        known = zip(corpus.manifest["sources"], corpus.manifest["stamps"], strict=True)
        self._sources = [
            _opened(name, self._settings, described, stamp, corpus.name)
            for name, (described, stamp) in zip(self._plan.names, known, strict=True)
        ]
        self._router = Router(self._settings.seed, self._settings.held_out_share)
        for split in SPLITS[:2]:
            self._router.held_out |= _digests(corpus.splits[split], corpus.tokenizer)
        nothing = (0,) * len(self._sources)
        self.start = self.at = Cursor(nothing, nothing)
        self._flow: Iterator[Flowing] | None = None

    def go(self, at: Cursor) -> None:
        """Read from another place next; whatever comes before is passed over."""
        if at != self.at:
            self.at, self._flow = at, None

    def read(self, tokens: int) -> Block | None:
        """The next documents, until they have so many tokens; none at the end.

        Every block has windows of its own: what is left over of it is in none.
        """
        rows: list[Ids] = []
        digests: list[int] = []
        labels: list[int] = []
        positions, sizes, count = list(self.at.positions), list(self.at.tokens), 0
        if self._flow is None:
            self._flow = self._flowing(self.at)
        for number, item, ids in self._flow:
            positions[number] += 1
            if item.rejected:
                continue
            rows.append(np.concatenate(([self._tokenizer.separator], ids)))
            digests.append(item.digest)
            labels.append(item.label)
            sizes[number] += len(rows[-1])
            if (count := count + len(rows[-1])) >= tokens:
                break
        first = self.at.windows
        windows = first + max(0, count - 1) // self._context
        self.at = Cursor(tuple(positions), tuple(sizes), windows)
        if not rows:
            return None
        return Block(Row(rows), np.array(digests, dtype=np.uint64), np.array(labels), first)

    def _flowing(self, at: Cursor) -> Iterator[Flowing]:
        streams = [self._stream(number, skip) for number, skip in enumerate(at.positions)]
        if self._plan.shares is None:
            return chain.from_iterable(streams)
        # Nothing is repeated: it would come as copies, for ever.
        mixer = Mixer(self._plan.shares, self._settings.seed, list(at.tokens), lambda _: None)
        return mixer.flow(streams, at.drawn)

    def _stream(self, number: int, skip: int) -> Iterator[Flowing]:
        source, targets = self._sources[number], frozenset({"train"})
        piece = MIX_PIECE if self._plan.is_mix else None
        return tokenized(number, source, targets, self._router, self._tokenizer, piece, skip)


def _asked(corpus: Corpus) -> PrepareSettings:
    """What `eff prepare` was told, as far as it says what is read."""
    request = corpus.manifest["request"]
    names = tuple(request["sources"])
    if request["mix"] is not None:
        names = ()
    elif corpus.manifest["mix"]:  # by the name of a mix, which became those of its sources
        names = tuple(title for title, mix in MIXES.items() if tuple(mix.shares) == names)[:1]
    return PrepareSettings.model_validate({**request, "sources": names})


def _opened(
    name: str, settings: PrepareSettings, described: dict[str, Any], stamp: Any, title: str
) -> Source:
    if name in CORPORA:
        return Hub(name, settings.text_column, streaming=True, revision=stamp)
    source = open_source(name, settings)
    if source.stamp() != stamp and source.describe() != described:
        message = f"{name} is not the text any more that {title} was prepared from"
        raise InputError(message, "prepare it again with --force")
    return source


def _digests(split: Split, tokenizer: Tokenizer) -> set[int]:
    """Of the documents of a split."""
    row, starts = split.read([0], split.tokens)[0], split.document_starts()
    documents = np.split(row, starts[1:]) if len(starts) else []
    return {digest(tokenizer.decode_bytes(ids[1:])) for ids in documents}
