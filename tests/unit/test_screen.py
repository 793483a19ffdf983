"""What people see: bars on a terminal, lines elsewhere, numbers they can read."""

import io
from typing import Any

import pytest
from rich.console import Console

from effcli.engine.records import Evaluation, FloorsFound, Notice, Reading, Saved, Step
from effcli.ui import progress
from effcli.ui.console import Screen
from effcli.ui.progress import Watcher
from effcli.units import clock, count, flops, size


def _steps(count_: int) -> list[Step]:
    return [
        Step(n, (n - 1) / count_, 5 / n, 0.1, 1.0, n * 1000, n * 1e9, n * 0.1)
        for n in range(1, count_ + 1)
    ]


def _watch(is_terminal: bool, records: list[Any], quiet: bool = False) -> str:
    screen = Screen(quiet=quiet)
    stream = io.StringIO()
    screen.err = Console(file=stream, force_terminal=is_terminal, width=100, no_color=True)
    with Watcher(screen, "baseline") as watch:
        for record in records:
            watch(record)
    return stream.getvalue()


def test_a_terminal_gets_a_bar_with_an_eta(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_ = iter(range(10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock_)))
    text = _watch(True, _steps(20))
    assert "━" in text
    assert "ETA" in text
    assert "tokens/s" in text


def test_elsewhere_there_are_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_ = iter(range(10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock_)))
    text = _watch(False, _steps(50))
    lines = [line for line in text.splitlines() if "baseline" in line]
    assert 3 <= len(lines) < 25
    assert all("ETA" in line and "loss" in line for line in lines[1:])
    assert "\x1b" not in text
    assert "\r" not in text


def test_everything_that_happens_is_said() -> None:
    evaluation = Evaluation(5, 1.25, 0.5, 10, 100, 1e9, 1.0, 2.0)
    text = _watch(
        False, [evaluation, FloorsFound(3.0, 2.0, 1.5), Notice("careful \x1b[31m"), Saved(5)]
    )
    for part in ("step 5: held-out loss 1.2500", "trigrams reaches 1.5", "careful ␛[31m", "saved"):
        assert part in text
    assert "\x1b" not in text


def test_a_preparation_of_unknown_length_has_no_eta() -> None:
    text = _watch(True, [Reading("train", None, 10**6, 4 * 10**6, 1.0)])
    assert "4.00 bytes/token" in text
    assert "ETA" not in text


def test_quiet_is_quiet() -> None:
    assert _watch(True, [*_steps(5), Notice("x")], quiet=True) == ""


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (count(1_234_567), "1.23M"),
        (count(999), "999"),
        (count(2.5e9), "2.5B"),
        (flops(1.234e15), "1.23e15"),
        (flops(0), "0"),
        (size(512), "512 bytes"),
        (size(3_500_000), "3.5 MB"),
        (clock(7), "0:07"),
        (clock(3723), "1:02:03"),
        (clock(9e5), "10 days"),
    ],
)
def test_numbers_are_readable(found: str, expected: str) -> None:
    assert found == expected
