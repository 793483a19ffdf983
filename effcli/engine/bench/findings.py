"""Tables of what methods did beyond spending less: what they chose, and what they made."""

from collections.abc import Callable

from effcli import units
from effcli.engine.bench.reading import Document, complete, names, shares
from effcli.engine.bench.table import Table, mean

CHOICES = ("precision", "contamination", "overhead_in_loop", "overhead_all_in", "flops_all_in")


def choices(document: Document) -> Table:
    """What the arms chose that choose what they read, and what choosing took."""
    rows = []
    for arm in names(document):
        for share in shares(document, arm):
            found = [cell.get("selection") for cell in complete(document, arm, share)]
            chosen = [one for one in found if one]
            told = [mean(chosen, name, lambda value: f"{value:.1%}") for name in CHOICES]
            if chosen:
                rows.append([arm, f"{share:g}", *told])
    about = "Shares of the chosen tokens, of the pool, and of training."
    head = ("arm", "budget", "good", "contamination", "s in loop", "s all in", "FLOPs all in")
    return Table("Choices", head, rows, about)


def students(document: Document) -> Table:
    """What the arms made that make a student's file, measured from its bytes."""
    shown: dict[str, Callable[[float], str]] = {
        "file_bytes": units.size,
        **dict.fromkeys(("linear_bits_per_weight", "ratio_linear", "ratio_total"), "{:.2f}".format),
        **dict.fromkeys(("weight_error", "roundtrip_gap"), "{:.4f}".format),
    }
    rows = []
    for arm in names(document):
        made = [one for cell in complete(document, arm) if (one := cell.get("student"))]
        if made:
            how = "trained" if made[0]["is_trained_in_low_bits"] else "rounded"
            bits = f"{made[0]['bits']:g}" if made[0]["bits"] == 16 else f"{made[0]['bits']:g} {how}"
            rows.append([arm, bits, *(mean(made, *one) for one in shown.items())])
    head = ("arm", "bits", "file", "bits/weight", "× matrices", "× file", "error", "packing")
    about = "× is float32 over the file. Error of the weights; nats that packing costs."
    return Table("Students", head, rows, about, Table.texts | {"bits"})


def hybrids(document: Document) -> Table:
    """What the controller and the trust region of an arm did."""
    figures = ("multiplier_mean", "adopted", "constraint_activation_rate", "final_radius")
    rows = []
    for arm in names(document):
        told = [one for cell in complete(document, arm) if (one := cell.get("hybrid"))]
        shown = [mean(told, name, "{:.4g}".format) for name in (*figures, "overhead")]
        if told:
            rows.append([arm, *shown])
    head = ("arm", "× rate", "adopted", "moves cut", "radius", "overhead")
    return Table(
        "Hybrids", head, rows, "Means over seeds; overhead as a share of training's FLOPs."
    )
