"""`eff distill`."""

from effcli.commands.mount import Given
from effcli.commands.training import run_training
from effcli.ui.console import Screen


def train(given: Given, screen: Screen) -> None:
    """Make a student of a teacher: smaller, of fewer bits, or both.

    It learns from the text and from what its teacher says about it, and ends as one packed file,
    `student.eff` in the run's folder, whose size and loss are measured from its bytes.
    """
    run_training("distill", given, screen)
