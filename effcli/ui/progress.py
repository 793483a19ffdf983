"""Progress, with an ETA: a bar on a terminal, now and then a plain line elsewhere."""

import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from effcli.engine.records import (
    Evaluation,
    FloorsFound,
    Grown,
    Notice,
    Reading,
    Record,
    Saved,
    Step,
    Watch,
)
from effcli.safe import safe
from effcli.ui.console import Screen
from effcli.units import clock, count

PLAIN_SECONDS = 10.0


class Watcher:
    """Draws the records of a run or a preparation while they happen."""

    def __init__(self, screen: Screen, title: str) -> None:
        self._screen, self._title = screen, title
        self._is_live = screen.err.is_terminal and not screen.quiet
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[detail]}", markup=False),
            console=screen.err,
            transient=True,
            disable=not self._is_live,
        )
        self._task = self._bar.add_task(title, total=1.0, detail="")
        self._begun: tuple[float, float, int] | None = None
        self._printed = time.monotonic()
        self._windowed: list[tuple[float, int]] = []

    def __enter__(self) -> Watch:
        self._bar.start()
        return self._see

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def _see(self, record: Record) -> None:
        if isinstance(record, Step):
            rate = self._rate(record.tokens)
            detail = f"step {record.index}  loss {record.loss:.3f}  {rate}"
            self._advance(record.progress, detail)
        elif isinstance(record, Reading):
            rate = self._rate(record.tokens)
            size = f"{record.bytes / max(1, record.tokens):.2f} bytes/token"
            detail = f"{safe(record.what)}  {count(record.tokens)} tokens  {rate}  {size}"
            self._advance(record.share, detail)
        elif isinstance(record, Evaluation):
            self._windowed.clear()  # the time of a look is not the time of a step
            self._say(
                f"step {record.step}: held-out loss {record.loss:.4f}, "
                f"{record.bits_per_byte:.4f} bits/byte"
            )
        elif isinstance(record, FloorsFound):
            self._say(f"counting trigrams reaches {record.trigram:.4f}")
        elif isinstance(record, Grown):
            size = f"width {record.width}, {record.layers} layers, {record.parameters:,} weights"
            apart = f"logits are {record.difference:.0e} apart"
            self._say(f"step {record.step}: grown to {size}; {apart}")
        elif isinstance(record, Notice):
            self._say(record.text)
        elif isinstance(record, Saved) and not self._is_live:
            self._say(f"step {record.step}: checkpoint saved")

    def _say(self, text: str) -> None:
        self._screen.note(text)

    def _advance(self, share: float | None, detail: str) -> None:
        now = time.monotonic()
        if share is not None and self._begun is None:
            self._begun = (now, share, 0)
        eta = self._eta(share, now)
        if self._is_live:
            total = None if share is None else 1.0
            self._bar.update(
                self._task, total=total, completed=share or 0, detail=f"{detail}  {eta}"
            )
        elif not self._screen.quiet and now - self._printed > PLAIN_SECONDS:
            self._printed = now
            done = "" if share is None else f"{share:4.0%}  "
            self._screen.err.print(Text(f"{self._title}  {done}{detail}  {eta}"))

    def _eta(self, share: float | None, now: float) -> str:
        if share is None or self._begun is None or share <= self._begun[1]:
            return ""
        started, first, _ = self._begun
        return f"ETA {clock((now - started) * (1 - share) / (share - first))}"

    def _rate(self, tokens: int) -> str:
        """Tokens per second over the last ten seconds or so."""
        now = time.monotonic()
        self._windowed.append((now, tokens))
        while len(self._windowed) > 2 and now - self._windowed[0][0] > 10:
            self._windowed.pop(0)
        then, before = self._windowed[0]
        seconds = now - then
        return f"{count((tokens - before) / seconds)} tokens/s" if seconds > 0.2 else ""
