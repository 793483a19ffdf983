"""`eff prepare`."""

from effcli.commands.mount import Given
from effcli.ui.console import Screen
from effcli.ui.progress import Watcher
from effcli.ui.tables import corpus_table, settings_table


def prepare(given: Given, screen: Screen) -> None:
    """Turn text into tokens that every other command reads.

    Without a source: the standard library of Python, which is on every machine.
    Named corpora: wikitext-103, wikitext-2, tinystories, openwebtext, pile, fineweb-edu, text8;
    mixes: multi, large; generated: grammar:SEED, grammar-noisy:SEED.
    """
    resolved = given.resolve()
    if given.is_dry:
        from effcli.methods.planning import plan_preparation

        plan = plan_preparation(resolved)
        screen.result(plan, settings_table(plan))
        return
    from effcli.engine.data.prepare import prepare as run
    from effcli.engine.interrupt import Interrupt

    with Interrupt() as stop, Watcher(screen, "prepare") as watch:
        summary = run(resolved.settings, set(resolved.origins), watch, stop)
    if summary["status"] == "unchanged":
        screen.note(f"{summary['corpus']} is up to date, nothing to do")
    if summary["duplicates_removed"] or summary["rejected"]:
        reasons = ", ".join(f"{n} {why}" for why, n in summary["rejected_by_reason"].items())
        screen.note(
            f"{summary['duplicates_removed']} duplicates of held-out text removed from training, "
            f"{summary['rejected']} rows rejected{reasons and f' ({reasons})'}"
        )
    screen.result(summary, corpus_table(summary))
