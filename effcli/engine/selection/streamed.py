"""A pool that is read as it goes by: larger than memory and disk, and never kept.

Whatever its length, there is memory for a few rounds of windows and for the digests of so many
documents. So copies are found where they are exact and not too far apart; near-duplicates are not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from effcli.engine.data.corpus import Corpus
from effcli.engine.records import Stop, Watch
from effcli.engine.selection import sidecar
from effcli.engine.selection.holdout import Row
from effcli.engine.selection.passages import Ids, passages_of
from effcli.engine.selection.pool import Candidates, Floats
from effcli.engine.selection.prep import Preparation, request_of
from effcli.engine.selection.reopened import Block, Cursor, Documents
from effcli.engine.selection.sidecar import Scores
from effcli.engine.selection.standing import Held, Seen, Standing
from effcli.engine.selection.yardstick import Yardstick
from effcli.errors import InputError
from effcli.settings.aql import PreparationSettings

BLOCK = 2**17  # tokens that are read and scored at one time
WAITING = 4  # rounds of windows that are still too hard; the oldest are dropped
AHEAD = 8  # rounds that are read at most to find one of easy windows
SAMPLE = 2**15  # passages of the prepared corpus that windows are ranked among
_RANKED = ("loss", "rarity", "compression")


def measured(
    corpus: Corpus, settings: PreparationSettings, watch: Watch, stop: Stop
) -> tuple[Scores, Yardstick]:
    """The scores of a corpus, and what they were made with: that is not kept, but made again."""
    request = request_of(corpus, settings)
    folder = sidecar.place(corpus, request)
    preparation = Preparation(corpus, settings, watch, stop)
    columns, facts = preparation.run()
    if (folder / sidecar.MANIFEST).exists():
        return sidecar.read(folder, corpus), preparation.yardstick
    return sidecar.write(folder, columns, {**request, **facts}), preparation.yardstick


class Scale:
    """How difficult windows are among the passages of the prepared corpus."""

    def __init__(self, scores: Scores, eligible: NDArray[np.bool_]) -> None:
        places = np.flatnonzero(eligible)
        some = places[:: max(1, len(places) // SAMPLE)]
        self._known = {name: scores[name][some] for name in (*_RANKED, "cluster")}

    def difficulty(self, windows: Held, harder: Mapping[str, Floats]) -> Floats:
        """Percentiles by the mean rank in all columns, as of shards; NaN is the largest number."""
        known = self._known
        pairs = [(known[name], windows[name]) for name in _RANKED]
        pairs += [(one[known["cluster"]], one[windows["cluster"]]) for one in harder.values()]
        theirs = sum(_percentiles(old, old) for old, _ in pairs)
        mine = sum(_percentiles(old, new) for old, new in pairs)
        places: Floats = np.searchsorted(np.sort(theirs), mine, side="right") / len(
            known["cluster"]
        )
        return places


def _percentiles(known: Floats, values: Floats) -> Floats:
    ranked = np.sort(known)
    sides = (np.searchsorted(ranked, values, side=side) for side in ("left", "right"))
    places: Floats = np.mean(list(sides), axis=0) / len(known)
    return places


@dataclass(frozen=True)
class Terms:
    """What is read of a stream, and in which pieces."""

    ratio: float
    """Share of what comes by."""
    context: int
    passage: int
    """Longest passage, in tokens."""
    copies: int
    """Of a document, itself included."""
    good: tuple[int, ...] = ()
    """Labels of documents that are worth reading; none where they are not known."""


class Streamed:
    """Windows of a corpus's own sources, each looked at once, in the order of the sources.

    A window has the scores of the passage that its middle is in, as in shards.
    """

    repeats: ClassVar[bool] = False

    def __init__(
        self, documents: Documents, yardstick: Yardstick, scale: Scale, terms: Terms
    ) -> None:
        self._documents, self._yardstick = documents, yardstick
        self._scale, self._terms = scale, terms
        zeros = np.zeros(terms.context + 1, dtype=np.int64)
        one = Block(Row([zeros]), zeros[:1].astype(np.uint64), zeros[:1], 0)
        nothing = self._scored(one).part(zeros[:0])
        self._start = Standing(documents.start, nothing, nothing, Seen.nothing())
        self._standings = [self._start]

    @property
    def spent(self) -> float:
        """FLOPs of scoring what came by."""
        return self._yardstick.flops_per_token * self._standings[-1].tokens

    def begin(self, epoch: int, chosen: Ids) -> None:
        """Start from the beginning; a stream is read once, so whatever was chosen is gone."""
        del epoch, chosen
        self._standings = [self._start]

    def to_look_at(self, wanted: int, left: int) -> int:
        """Tokens that come by for so many that are read, whatever is left of a budget."""
        del left
        return math.ceil(wanted / self._terms.ratio)

    def candidates(self, tokens: int, admitted: float, harder: Mapping[str, Floats]) -> Candidates:
        """The next windows that are easy enough; those that are not wait.

        Where easy ones are so rare that too much would be read, the easiest of the others.
        """
        last, context = self._standings[-1], self._terms.context
        large, wanted = max(tokens, BLOCK), -(-tokens // context)
        self._documents.go(last.at)
        held, ranks = [last.waiting], [self._ranks(last.waiting, admitted, harder)]
        seen, blocks, easy, came = last.seen, last.blocks, 0, 0
        while True:
            easy += int(held[-1]["span"][ranks[-1] == 0].sum())
            if easy >= wanted or (came >= AHEAD * large and any(map(len, held))):
                break
            blocks = (*blocks, self._documents.at)
            if (block := self._documents.read(BLOCK)) is None:
                break
            came += block.row.tokens
            copy, seen = seen.add(block.digests, self._terms.copies)
            held.append(self._eligible(self._scored(block), copy))
            ranks.append(self._ranks(held[-1], admitted, harder))
        everything, rank = Held.joined(held), np.concatenate(ranks)
        if not len(everything):
            raise _ended(last.tokens + came)
        turn = np.argsort(rank, kind="stable")
        count = int(np.searchsorted(np.cumsum(everything["span"][turn]), wanted)) + 1
        now, rest = np.sort(turn[:count]), np.sort(turn[count:])
        too_hard = np.where(rank[rest] > 0, everything["span"][rest], 0)
        rest = rest[np.cumsum(too_hard[::-1])[::-1] * context <= WAITING * large]
        after = replace(last, at=self._documents.at, seen=seen, tokens=last.tokens + came)
        after = replace(after, now=everything.part(now), waiting=everything.part(rest))
        self._standings = [last, replace(after, blocks=_needed(blocks, after))]
        return Candidates(after.now["id"], after.now.columns)

    def fetch(self, ids: Ids) -> Ids:
        """The tokens of this round's windows, and the one behind each: (windows, context + 1)."""
        now = self._standings[-1].now
        return now.tokens[np.searchsorted(now["id"], ids)].astype(np.int64)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands; its text is read again."""
        return self._standings[-1].state_dict()

    def load_state_dict(self, state: dict[str, Any], chosen: Ids) -> None:
        """Go on from a state: at once if it is of this round or the last one."""
        del chosen
        known = [one for one in self._standings if one.is_of(state)]
        self._standings = [known[-1] if known else self._read_again(state)]

    def _read_again(self, state: dict[str, Any]) -> Standing:
        at, blocks = Cursor.of(state["at"]), tuple(map(Cursor.of, state["blocks"]))
        now, waiting = (state[name].numpy() for name in ("now", "waiting"))
        self._documents.go((*blocks, at)[0])
        parts = [self._start.now]
        while self._documents.at.drawn < at.drawn:
            if (block := self._documents.read(BLOCK)) is None:
                break
            scored = self._scored(block)
            parts.append(scored.part(np.isin(scored["id"], np.concatenate([now, waiting]))))
        held = Held.joined(parts)
        kept = [held.part(np.isin(held["id"], ids)) for ids in (now, waiting)]
        if list(map(len, kept)) != [len(now), len(waiting)] or self._documents.at != at:
            hint = "its sources must be what they were"
            raise InputError("the stream is not the one that the run began with", hint)
        later = replace(kept[1], columns={**kept[1].columns, "span": state["spans"].numpy()})
        older, newer = (state[name].numpy().view(np.uint64) for name in ("older", "newer"))
        return Standing(at, kept[0], later, Seen(older, newer), blocks, int(state["tokens"]))

    def _scored(self, block: Block) -> Held:
        """All windows of a block."""
        row, context = block.row, self._terms.context
        passages = passages_of(row, self._terms.passage)
        starts = np.arange((row.tokens - 1) // context) * context
        owners = passages.at(starts + context // 2)
        columns = {**self._yardstick.columns(row, passages), "document": passages.documents}
        if self._terms.good:
            columns["good"] = np.isin(block.labels, self._terms.good)[passages.documents]
        columns = {name: column[owners] for name, column in columns.items()}
        columns |= {"id": block.first + np.arange(len(starts)), "span": np.ones_like(starts)}
        columns["length"] = np.full(len(starts), context)
        return Held(columns, row.read(starts, context + 1).astype(np.uint32))

    def _eligible(self, block: Held, copy: Ids) -> Held:
        """Windows that may be read; the others came by with the one behind them."""
        sound = sidecar.readable(block.columns)
        places = np.flatnonzero(sound & (copy[block["document"]] < self._terms.copies))
        kept, ends = block.part(places), np.append(places[:-1] + 1, len(block))
        return replace(
            kept, columns={**kept.columns, "span": np.diff(ends[: len(places)], prepend=0)}
        )

    def _ranks(self, windows: Held, admitted: float, harder: Mapping[str, Floats]) -> Floats:
        """The difficulty of windows; 0 where they are easy enough."""
        if admitted >= 1:
            return np.zeros(len(windows))
        difficulty = self._scale.difficulty(windows, harder)
        return np.where(difficulty <= admitted, 0.0, difficulty)


def streamed(
    corpus: Corpus,
    scores: Scores,
    eligible: NDArray[np.bool_],
    yardstick: Yardstick,
    terms: Terms,
) -> Streamed:
    """The windows of a corpus's sources, ranked among its passages that are eligible."""
    documents = Documents(corpus, terms.context)
    return Streamed(documents, yardstick, Scale(scores, eligible), terms)


def _ended(tokens: int) -> InputError:
    message = f"the stream ended after {tokens:,} tokens, before the budget was spent"
    return InputError(message, "a smaller budget, or a larger --ratio")


def _needed(blocks: tuple[Cursor, ...], standing: Standing) -> tuple[Cursor, ...]:
    """Those from the first window in memory on."""
    first = min(int(one["id"].min(initial=2**62)) for one in (standing.now, standing.waiting))
    before = sum(block.windows <= first for block in blocks)
    return blocks[max(0, before - 1) :]
