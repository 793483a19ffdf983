"""What probes show."""

from collections.abc import Mapping
from itertools import groupby
from statistics import mean
from typing import Any

from rich.table import Table

from effcli.ui.tables import plain_table


def probe_table(document: Mapping[str, Any]) -> Table:
    """Means over seeds, and the worst seed."""
    near, far = f"to {document['length']}", f"{document['length']}-{document['longer']}"
    table = plain_table("right answers", "task", "arm", near, "worst", far, "chance", "weights")
    for (task, arm), group in groupby(document["results"], lambda one: (one["task"], one["arm"])):
        each = list(group)
        at, beyond = ([one[f"accuracy_{n}x"] for one in each] for n in (1, 4))
        shares = (mean(at), min(at), mean(beyond), document["chance"][task])
        table.add_row(task, arm, *(f"{x:.1%}" for x in shares), f"{each[0]['parameters']:,}")
    return table
