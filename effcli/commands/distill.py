"""`eff distill`."""

from effcli.commands.mount import Given
from effcli.commands.training import run_training, run_watched
from effcli.ui.console import Screen
from effcli.ui.distill import cache_table, check_table, pack_table


def train(given: Given, screen: Screen) -> None:
    """Make a student of a teacher: smaller, of fewer bits, or both.

    It learns from the text and from what its teacher says about it, and ends as one packed file,
    `student.eff` in the run's folder, whose size and loss are measured from its bytes.
    """
    run_training("distill", given, screen)


def cache(given: Given, screen: Screen) -> None:
    """Ask a teacher about a corpus once, for all students with windows of that length."""
    run_watched("distill cache", "distill_cache", given, screen, cache_table)


def pack(given: Given, screen: Screen) -> None:
    """Put the model of any run into one file of few bits."""
    from effcli.methods.distill_pack import pack

    document = pack(given.resolve().settings)
    screen.result(document, pack_table(document))


def verify(given: Given, screen: Screen) -> None:
    """Read a packed file again: are its codes and logits those of the trained model?"""
    from effcli.methods.distill_pack import check

    document = check(given.resolve().settings)
    screen.result(document, check_table(document))
