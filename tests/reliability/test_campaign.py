"""A slice of `make reliability`: the same measurements, fewer trials."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from reliability.crash_points import crash_points
from reliability.cuts import every_cut
from reliability.disk import full_disks
from reliability.harness import Tally
from reliability.hostile import hostile_files
from reliability.kills import kills_in_a_save, random_kills
from reliability.mutations import mutations
from reliability.offline import no_network
from reliability.pairs import two_processes
from reliability.poison import poisoned
from reliability.signals import signals
from reliability.terminal import hostile_strings

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
Measurement = Callable[[Path, int, Tally], None]


def _measured(measure: Measurement, place: Path, n: int) -> Tally:
    tally = Tally()
    measure(place, n, tally)
    assert tally.failures == 0, tally.examples
    assert tally.n
    return tally


def test_killed_training_ends_with_equal_weights(place: Path) -> None:
    assert _measured(random_kills, place, 4).facts["killed"] > 2


def test_a_kill_inside_a_save_tears_nothing(place: Path) -> None:
    facts = _measured(kills_in_a_save, place, 50).facts
    assert facts["killed before the save had ended"] > 5


def test_every_crash_point_of_a_save_is_recovered_from(place: Path) -> None:
    assert _measured(crash_points, place, 0).n > 80


def test_cuts_with_accumulation_and_a_second_cut_resume_exactly(place: Path) -> None:
    _measured(every_cut, place, 4)


def test_signals_in_every_phase_lose_nothing(place: Path) -> None:
    _measured(signals, place, 1)


def test_damaged_files_are_never_used_silently(place: Path) -> None:
    _measured(mutations, place, 20)


def test_a_full_disk_costs_nothing_that_was_safe(place: Path) -> None:
    _measured(full_disks, place, 1)


def test_a_poisoned_number_is_caught_before_the_update(place: Path) -> None:
    _measured(poisoned, place, 4)


def test_of_two_processes_one_works(place: Path) -> None:
    _measured(two_processes, place, 2)


def test_hostile_text_controls_no_terminal(place: Path) -> None:
    _measured(hostile_strings, place, 300)


def test_hostile_files_are_refused_in_one_line(place: Path) -> None:
    assert _measured(hostile_files, place, 1).n >= 100


def test_nothing_connects(place: Path) -> None:
    _measured(no_network, place, 1)
