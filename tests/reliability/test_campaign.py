"""A slice of `make reliability`: the same measurements, fewer trials."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from reliability.crash_points import crash_points
from reliability.harness import Tally
from reliability.kills import kills_in_a_save, random_kills

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
Measurement = Callable[[Path, int, Tally], None]


def _measured(measure: Measurement, place: Path, n: int) -> Tally:
    tally = Tally()
    measure(place, n, tally)
    assert tally.failures == 0, tally.examples
    assert tally.n
    return tally


def test_killed_training_ends_with_equal_weights(place: Path) -> None:
    assert _measured(random_kills, place, 10).facts["killed"] > 3


def test_a_kill_inside_a_save_tears_nothing(place: Path) -> None:
    facts = _measured(kills_in_a_save, place, 50).facts
    assert facts["killed before the save had ended"] > 5


def test_every_crash_point_of_a_save_is_recovered_from(place: Path) -> None:
    assert _measured(crash_points, place, 0).n > 80
