"""`eff bench`."""

import sys

from effcli.commands.mount import Given
from effcli.ui.bench import bench_tables
from effcli.ui.console import Screen
from effcli.ui.speed import speed_plan, speed_tables
from effcli.ui.standing import StandingWatcher, plan_table


def bench(given: Given, screen: Screen) -> None:
    """Compare methods at equal cost, equal tuning and paired seeds, and say what is proven.

    A suite is run cell by cell and goes on where it was stopped. `show` and `export` read what
    is known without running anything. The suite `speed` measures throughputs instead.
    """
    settings = given.resolve().settings
    if given.is_dry:
        from effcli.methods.bench import plan_bench

        plan = plan_bench(settings)
        screen.result(plan, (speed_plan if "parts" in plan else plan_table)(plan))
        return
    from effcli.engine.interrupt import Interrupt
    from effcli.methods.bench import run

    with Interrupt() as stop, StandingWatcher(screen) as watch:
        document = run(settings, watch, stop)
    if settings.action == "export" and settings.csv is None and not screen.as_json:
        from effcli.engine.bench.export import csv_text

        sys.stdout.write(csv_text(document))
        return
    is_speed = document.get("kind") == "speed"
    screen.result(document, *(speed_tables if is_speed else bench_tables)(document))
    for note in document["notes"]:
        screen.note(note)
    if document.get("page"):
        screen.note(f"the page{'' if is_speed else ' with plots'}: {document['page']}")
