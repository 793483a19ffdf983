"""What the parts of `eff qllm` show."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from effcli.ui.rows import rows_of_some
from effcli.ui.tables import pairs_table
from effcli.units import flops


def inspect_table(document: Mapping[str, Any]) -> Table:
    """What the phases of a model do."""
    measured = document["measured"]
    where = "the text given" if measured["corpus"] is None else f"{measured['corpus']}, held out"
    rows = [("measured on", f"{measured['tokens']:,} tokens of {where}")]
    rows += rows_of_some({"phase": document["phase"]})
    coherence = document["portrait"]["coherence"]
    rows.append(("tokens alike", ", ".join(f"{n} {value:.3f}" for n, value in coherence.items())))
    pulls = document["gradients"].items()
    told = (f"{name} {row['share']:.2f} (cosine {row['cosine']:+.2f})" for name, row in pulls)
    rows.append(("pull of energies", ", ".join(told)))
    for row in document["memories"]:
        span = f"half-life {row['p50']:.1f} tokens, {row['p5']:.1f} to {row['p95']:.1f}"
        rows.append((f"layer {row['layer']}", span))
    for row in document["widths"]:
        kept = f"{row['state_floats']:,} numbers, {flops(row['flops'])} FLOPs a token"
        rows.append((f"{row['pairs']} phases a head", f"loss {row['loss']:.4f}, {kept}"))
    if (found := document["mauve"]) is not None:
        rows.append(("MAUVE", mauve_line(found)))
    for row in document["interference"]:
        shares = f"{row['positive']:.0%} adds up, {row['negative']:.0%} cancels"
        rows.append((f"layer {row['layer']}, head {row['head']}", shares))
    for row in document["concepts"]:
        rows.append((f"concept {row['code']}", " ".join(map(repr, row["tokens"]))))
    return pairs_table(document["run"], rows)


def mauve_line(found: Mapping[str, Any]) -> str:
    """How like held-out text a model's own is, beside the most that could be expected."""
    shape = f"{found['texts']:,} texts of {found['tokens']} tokens"
    if found["ceiling"] is None:
        there, wanted = f"{found['held_out']:,}", f"{2 * found['texts']:,}"
        beside = f"held-out text with itself is not known: {there} texts, {wanted} needed"
    else:
        beside = f"{found['ceiling']:.3f} of held-out text with itself"
    return f"{found['score']:.3f} of {shape}; {beside}"
