"""What is known of a stream between two rounds: windows in memory, and documents that came by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from effcli.engine.selection.passages import Ids
from effcli.engine.selection.reopened import Cursor

REMEMBERED = 2**20  # digests of documents; then those before are forgotten
Digests = NDArray[np.uint64]


@dataclass(frozen=True)
class Held:
    """Windows in memory, in the order of the stream."""

    columns: Mapping[str, NDArray[Any]]
    """Scores, `id`, `length`, and `span`: the windows that came by with each."""
    tokens: NDArray[np.uint32]
    """Of shape (windows, context + 1)."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def part(self, places: Ids | NDArray[np.bool_]) -> "Held":
        """Some of them."""
        columns = {name: column[places] for name, column in self.columns.items()}
        return Held(columns, self.tokens[places])

    @classmethod
    def joined(cls, parts: list["Held"]) -> "Held":
        """Several, one after the other."""
        columns = {name: np.concatenate([one[name] for one in parts]) for name in parts[0].columns}
        return cls(columns, np.concatenate([one.tokens for one in parts]))


@dataclass(frozen=True)
class Seen:
    """Digests of the last documents, between REMEMBERED and twice as many."""

    older: Digests
    newer: Digests

    @classmethod
    def nothing(cls) -> "Seen":
        """Before the first document."""
        return cls(np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint64))

    def add(self, digests: Digests, copies: int) -> tuple[Ids, "Seen"]:
        """How often each document came before, at most `copies` times; and it is seen now."""
        order = np.argsort(digests, kind="stable")
        ranked = digests[order]
        number = np.empty(len(digests), dtype=np.int64)
        number[order] = np.arange(len(digests)) - np.searchsorted(ranked, ranked)
        for known in (self.older, self.newer):
            number += np.searchsorted(known, digests, side="right")
            number -= np.searchsorted(known, digests, side="left")
        fresh = digests[number < copies]
        newer = np.sort(np.concatenate([self.newer, fresh]), kind="stable")
        is_full = len(newer) >= REMEMBERED
        return number, Seen(newer, newer[:0]) if is_full else Seen(self.older, newer)


@dataclass(frozen=True)
class Standing:
    """Where a stream stands between two rounds; never changed, only replaced."""

    at: Cursor
    now: Held
    """The candidates of the round."""
    waiting: Held
    """What was read and not looked at yet."""
    seen: Seen
    blocks: tuple[Cursor, ...] = ()
    """Where the blocks begin that may have windows in memory."""
    tokens: int = 0
    """That came by."""

    def state_dict(self) -> dict[str, Any]:
        """From where to read again, and which windows were in memory."""
        seen = (self.seen.older, self.seen.newer)
        older, newer = (torch.from_numpy(digests.view(np.int64)) for digests in seen)
        return {
            "at": self.at.numbers(),
            "blocks": [block.numbers() for block in self.blocks],
            "now": torch.from_numpy(self.now["id"]),
            "waiting": torch.from_numpy(self.waiting["id"]),
            "spans": torch.from_numpy(self.waiting["span"]),
            "older": older,
            "newer": newer,
            "tokens": self.tokens,
        }

    def is_of(self, state: dict[str, Any]) -> bool:
        """Whether a state is the one of this."""
        return self.at == Cursor.of(state["at"]) and all(
            np.array_equal(getattr(self, name)["id"], state[name].numpy())
            for name in ("now", "waiting")
        )
