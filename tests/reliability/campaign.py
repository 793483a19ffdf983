"""Every measurement of the campaign, and how often it is made."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from reliability import (
    cost,
    crash_points,
    cuts,
    disk,
    hostile,
    kills,
    mutations,
    offline,
    pairs,
    poison,
    signals,
    terminal,
)
from reliability.harness import Tally


class Measurement(NamedTuple):
    """What is measured, how often, and by what."""

    text: str
    n: int
    """Trials, of each of several kinds if there are any; 0 for as many as there are."""
    run: Callable[[Path, int, Tally], None]


MEASUREMENTS = {
    "kills": Measurement(
        "`kill -9` at a random moment of training, resumed: equal weights",
        200,
        kills.random_kills,
    ),
    "saves": Measurement(
        "`kill -9` inside a save: the old or the new checkpoint, whole",
        1000,
        kills.kills_in_a_save,
    ),
    "crashes": Measurement(
        "a crash before, in and after every call of a save, unflushed data lost",
        0,
        crash_points.crash_points,
    ),
    "cuts": Measurement(
        "a 60-step run cut after every step, once and twice, 1 and 4 parts a step: equal bits",
        0,
        cuts.every_cut,
    ),
    "signals": Measurement(
        "SIGINT or SIGTERM in training, evaluation, preparation, generation: 130 or 143, resumable",
        50,
        signals.signals,
    ),
    "mutations": Measurement(
        "a file that was flipped, cut, zeroed, exchanged or older: refused, or an older checkpoint",
        1000,
        mutations.mutations,
    ),
    "disk": Measurement(
        "a full disk in preparation, training, reporting: code 3, one line, resumable",
        20,
        disk.full_disks,
    ),
    "poison": Measurement(
        "NaN or infinity in a weight or gradient: code 5 before the update",
        20,
        poison.poisoned,
    ),
    "pairs": Measurement(
        "two processes started on one run: one works, the other says so",
        100,
        pairs.two_processes,
    ),
    "terminal": Measurement(
        "hostile strings shown as text, errors, notes, JSON: no control byte gets through",
        10_000,
        terminal.hostile_strings,
    ),
    "hostile": Measurement(
        "hostile text, settings, corpora, runs: not executed, nothing elsewhere, one line",
        0,
        hostile.hostile_files,
    ),
    "offline": Measurement(
        "prepare, train, generate, report without a network: no attempt to connect",
        10,
        offline.no_network,
    ),
    "cost": Measurement(
        "hashing, flushing and finite checks, preset nano: less than 2 % of the time of training",
        1,
        cost.safety_cost,
    ),
}
