"""Every measurement of the campaign, and how often it is made."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from reliability import crash_points, kills
from reliability.harness import Tally


class Measurement(NamedTuple):
    """What is measured, how often, and by what."""

    text: str
    n: int
    """Trials; 0 for as many as there are."""
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
}
