"""`eff aql`."""

from effcli.commands.mount import Given
from effcli.commands.training import run_training, run_watched
from effcli.ui.console import Screen
from effcli.ui.selection import audit_tables, policy_table, prep_table, selection_table


def train(given: Given, screen: Screen) -> None:
    """Train on a chosen share of a pool, with every score on the bill.

    Passages are drawn round after round: by how like trusted text they are, by what the model
    does not know yet, from easy to hard. `eff aql audit RUN` says what that was worth.
    """
    run_training("aql", given, screen)


def policy_train(given: Given, screen: Screen) -> None:
    """Find the weights of `--policy learned` by many cheap runs, and say what that cost."""
    run_watched("aql policy train", "aql_policy", given, screen, policy_table)


def prep(given: Given, screen: Screen) -> None:
    """Score a corpus once: copies, clusters, counts, and how much of it is like trusted text."""
    run_watched("aql prep", "aql_prep", given, screen, prep_table)


def select(given: Given, screen: Screen) -> None:
    """Choose without training: a corpus of the chosen documents, their numbers and a report."""
    run_watched("aql select", "aql_select", given, screen, selection_table)


def audit(given: Given, screen: Screen) -> None:
    """The bill of a run, what its pool was like, and which saving it can claim."""
    from effcli.methods.aql_audit import run

    document = run(given.resolve().settings)
    screen.result(document, *audit_tables(document))
