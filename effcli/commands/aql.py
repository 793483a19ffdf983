"""`eff aql`."""

from effcli.commands.mount import Given
from effcli.commands.training import run_training
from effcli.ui.console import Screen
from effcli.ui.progress import Watcher
from effcli.ui.selection import audit_tables, policy_table, prep_table, selection_table


def train(given: Given, screen: Screen) -> None:
    """Train on a chosen share of a pool, with every score on the bill.

    Passages are drawn round after round: by how like trusted text they are, by what the model
    does not know yet, from easy to hard. `eff aql audit RUN` says what that was worth.
    """
    run_training("aql", given, screen)


def policy_train(given: Given, screen: Screen) -> None:
    """Find the weights of `--policy learned` by many cheap runs, and say what that cost."""
    from effcli.engine.interrupt import Interrupt
    from effcli.methods.aql_policy import run

    with Interrupt() as stop, Watcher(screen, "aql policy train") as watch:
        document = run(given.resolve().settings, watch, stop)
    screen.result(document, policy_table(document))


def prep(given: Given, screen: Screen) -> None:
    """Score a corpus once: copies, clusters, counts, and how much of it is like trusted text."""
    from effcli.engine.interrupt import Interrupt
    from effcli.methods.aql_prep import run

    with Interrupt() as stop, Watcher(screen, "aql prep") as watch:
        document = run(given.resolve().settings, watch, stop)
    screen.result(document, prep_table(document))


def select(given: Given, screen: Screen) -> None:
    """Choose without training: a corpus of the chosen documents, their numbers and a report."""
    from effcli.engine.interrupt import Interrupt
    from effcli.methods.aql_select import run

    with Interrupt() as stop, Watcher(screen, "aql select") as watch:
        document = run(given.resolve().settings, watch, stop)
    screen.result(document, selection_table(document))


def audit(given: Given, screen: Screen) -> None:
    """The bill of a run, what its pool was like, and which saving it can claim."""
    from effcli.methods.aql_audit import run

    document = run(given.resolve().settings)
    screen.result(document, *audit_tables(document))
