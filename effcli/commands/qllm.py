"""`eff qllm`."""

from effcli.commands.generate import show
from effcli.commands.mount import Given
from effcli.commands.training import run_training, run_watched
from effcli.ui.console import Screen
from effcli.ui.phases import inspect_table
from effcli.ui.probes import probe_table
from effcli.ui.progress import Watcher


def train(given: Given, screen: Screen) -> None:
    """Train a language model whose layers remember by interference of phases.

    `eff qllm generate` writes with it. `--arch gpt` trains the GPT of equal size on the same
    text in the same order; every report sets both beside each other.
    """
    run_training("qllm", given, screen)


def generate(given: Given, screen: Screen) -> None:
    """Continue a text with the newest phase model, in memory that does not grow."""
    settings = given.resolve().settings
    from effcli.methods.qllm import found

    show(settings.of(found(settings.run)), screen)


def inspect(given: Given, screen: Screen) -> None:
    """Look at a trained phase model: its phases, memories, interference and concepts.

    Figures are measured on held-out text of its corpus; a page has them with plots.
    """
    settings = given.resolve().settings
    from effcli.methods.qllm_inspect import inspect as look

    with Watcher(screen, "qllm inspect") as watch:
        document = look(settings, watch)
    screen.result(document, inspect_table(document))
    screen.note(f"the page with plots: {document['page']}")


def probe(given: Given, screen: Screen) -> None:
    """Find out what small models can keep: a count, a sum, what was told, an order.

    Each is trained from nothing on sequences that are made up, short ones first, and asked at
    the trained length and beyond it, up to four times as far.
    """
    run_watched("qllm probe", "qllm_probe", given, screen, probe_table)
