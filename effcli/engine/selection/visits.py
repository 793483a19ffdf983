"""What a run found out about the windows it read, kept for later runs beside the scores."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effcli.engine.data.columns import packed, unpacked
from effcli.engine.runs.files import write_bytes
from effcli.engine.selection.passages import Ids
from effcli.errors import InputError

Floats = NDArray[np.float64]
VISITS = "visits-{}.parquet"  # by the context, which decides what the windows are
COLUMNS = ("id", "z", "loss", "step")
_MOST_PARTS = 256  # that are kept apart before they are put together


class Visits:
    """The last uncertainty and loss of each window that was read, and those of earlier runs."""

    def __init__(self, *, is_kept: bool, earlier: Tensor | None = None) -> None:
        """`earlier` has one uncertainty for each window of the corpus, NaN where none is known."""
        self._is_kept, self._earlier = is_kept, earlier
        self._whole = torch.zeros(len(COLUMNS), 0, dtype=torch.float64)
        self._parts: list[Tensor] = []  # newer
        self.reused = 0
        """Candidates whose uncertainty was known from an earlier run."""

    @property
    def is_reusing(self) -> bool:
        """Whether an earlier run is gone by."""
        return self._earlier is not None

    def hear(self, ids: Tensor, told: Tensor | None, step: int) -> None:
        """Take in uncertainty and loss, of shape (2, windows)."""
        if not self._is_kept or told is None:
            return
        steps = torch.full((1, len(ids)), float(step), dtype=torch.float64)
        self._parts = [*self._parts, torch.cat([ids[None].double().cpu(), told, steps])]
        if len(self._parts) == _MOST_PARTS:
            self._whole, self._parts = self.table(), []

    def scores(self, ids: Ids) -> Floats:
        """What earlier runs say about candidates; NaN where nothing is known."""
        if self._earlier is None:
            return np.full(len(ids), np.nan)
        known: Floats = self._earlier.numpy()[ids].astype(np.float64)
        self.reused += int(np.isfinite(known).sum())
        return known

    def table(self) -> Tensor:
        """The last visit of every window, in the order of ids: one row for each of COLUMNS."""
        return newest(torch.cat([self._whole, *self._parts], dim=1))

    def state_dict(self) -> dict[str, Any]:
        """All that was heard; tensors are replaced, never written to."""
        state: dict[str, Any] = {"whole": self._whole, "reused": self.reused}
        state["parts"] = {str(number): part for number, part in enumerate(self._parts)}
        if self._earlier is not None:
            state["earlier"] = self._earlier
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state: with the earlier runs that were there when the run began."""
        self._whole, self._earlier = state["whole"], state.get("earlier")
        self._parts, self.reused = list(state["parts"].values()), int(state["reused"])


def newest(table: Tensor) -> Tensor:
    """Of several columns with the same id, the last."""
    backwards = table.flip(1)
    _, first = np.unique(backwards[0].numpy(), return_index=True)
    return backwards[:, torch.from_numpy(first)]


def write(folder: Path, context: int, table: Tensor) -> None:
    """Keep visits, and those of earlier runs to other windows; whole or not at all."""
    if not table.shape[1]:
        return
    with suppress(InputError):  # nothing, or nothing of use, is there
        table = newest(torch.cat([_read(folder, context), table], dim=1))
    kinds = (np.int64, np.float32, np.float32, np.int64)
    rows = zip(COLUMNS, table.numpy(), kinds, strict=True)
    columns = {name: row.astype(kind) for name, row, kind in rows}
    write_bytes(folder / VISITS.format(context), packed(columns))


def read(folder: Path, context: int, windows: int) -> Tensor:
    """The last known uncertainty of every window, NaN where there is none."""
    table = _read(folder, context)
    ids = table[0].long()
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < windows:
        raise InputError(f"the visits in {folder} are of another text", _HINT)
    known = torch.full((windows,), torch.nan, dtype=torch.float32)
    known[ids] = table[1].float()
    return known


_HINT = "make them with a run that has --set choice.remember=true"


def _read(folder: Path, context: int) -> Tensor:
    try:
        table = unpacked((folder / VISITS.format(context)).read_bytes(), COLUMNS)
        rows = [table[name].astype(np.float64) for name in COLUMNS]
    except FileNotFoundError:
        raise InputError(f"no earlier run left visits in {folder}", _HINT) from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"the visits in {folder} are damaged: {error}", _HINT) from None
    return torch.from_numpy(np.stack(rows))
