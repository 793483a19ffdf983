"""`eff baseline`."""

from effcli.commands.mount import Given
from effcli.commands.training import run_training
from effcli.ui.console import Screen


def baseline(given: Given, screen: Screen) -> None:
    """Train a model well, with nothing clever about what it reads.

    Every claim of a saving is made against this run, so its defaults are good ones, and
    --tune makes them better for your text.
    """
    run_training("baseline", given, screen)
