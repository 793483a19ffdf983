"""A suite while it runs: how its arms stand, what is being run, when it will end."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from effcli.engine.records import CellBegun, CellDone, Notice, Record, Step, Turn, Watch
from effcli.safe import safe
from effcli.ui.console import Screen
from effcli.units import clock, flops

Standing = tuple[tuple[str, int, float | None], ...]


class StandingWatcher:
    """Draws a table that changes as cells finish; a line for each of them elsewhere."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._is_live = screen.err.is_terminal and not screen.quiet
        self._live = Live(
            console=screen.err, transient=True, refresh_per_second=4, auto_refresh=self._is_live
        )
        self._standing: Standing = ()
        self._title, self._share, self._loss = "", 0.0, ""
        self._done, self._total, self._left = 0, 1, 0.0

    def __enter__(self) -> Watch:
        if self._is_live:
            self._live.start()
        return self._see

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._is_live:
            self._live.stop()

    def _see(self, record: Record) -> None:
        if isinstance(record, CellBegun):
            self._title, self._share, self._loss = record.title, 0.0, ""
            self._done, self._total, self._left = record.done, record.total, record.seconds_left
        elif isinstance(record, CellDone):
            self._done, self._total, self._left = record.done, record.total, record.seconds_left
            self._standing = record.standing
            loss = "" if record.loss is None else f" at {record.loss:.4f}"
            if not self._is_live:
                self._screen.note(
                    f"{record.done}/{record.total}  {record.title}: {record.status}{loss}  "
                    f"ETA {clock(record.seconds_left)}"
                )
        elif isinstance(record, Step):
            self._share, self._loss = record.progress, f"loss {record.loss:.3f}"
        elif isinstance(record, Turn):
            self._share, self._loss = record.share, safe(record.name)
        elif isinstance(record, Notice) and not self._is_live and "failed" in record.text:
            self._screen.note(record.text)
        if self._is_live:
            self._live.update(self._drawn())

    def _drawn(self) -> Group:
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("arm")
        table.add_column("runs", justify="right")
        table.add_column("mean loss", justify="right")
        for name, runs, loss in self._standing:
            table.add_row(Text(safe(name)), str(runs), "" if loss is None else f"{loss:.4f}")
        cell = Text(f"{safe(self._title)}  {self._share:4.0%}  {self._loss}")
        bar = ProgressBar(total=self._total, completed=self._done, width=40)
        whole = Text(f"{self._done} of {self._total} done  ETA {clock(self._left)}", "dim")
        return Group(*([table] if self._standing else []), cell, bar, whole)


def plan_table(plan: Mapping[str, Any]) -> Table:
    """Every cell, with what it will cost."""
    head = f"{plan['suite']}, tier {plan['tier']}"
    table = Table(title=Text(safe(head), "bold"), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("cell")
    for name in ("seed", "budget ×", "FLOPs", "time"):
        table.add_column(name, justify="right")
    for row in plan["cells"]:
        name = f"{row['arm']}{' (trial)' if row['is_trial'] else ''}"
        time = "done" if row["is_done"] else clock(row["seconds"])
        cells = (safe(name), str(row["seed"]), f"{row['share']:g}", flops(row["flops"]), time)
        table.add_row(*(Text(cell) for cell in cells))
    table.add_section()
    total = f"{len(plan['cells'])} cells"
    table.add_row(total, "", "", flops(plan["flops"]), clock(plan["seconds"]))
    return table
