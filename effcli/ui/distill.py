"""What the parts of `eff distill` show."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from effcli.ui.tables import pairs_table
from effcli.units import clock, flops, size


def cache_table(document: Mapping[str, Any]) -> Table:
    """What is kept of a teacher."""
    each = document["bytes"] / document["tokens"]
    rows = [
        ("form", f"{document['form']}, {each:.1f} bytes a token"),
        ("windows", f"{document['windows']:,} of {document['context']} tokens"),
        ("size", size(document["bytes"])),
        ("cost", f"{flops(document['flops'])} FLOPs, {clock(document['seconds'])}"),
    ]
    return pairs_table(document["cache"], rows)


def file_rows(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the bytes of a packed file are for."""
    parts = ", ".join(f"{name} {size(n)}" for name, n in document["bytes"].items() if n)
    whole = f"{document['ratio_total']:.1f} times smaller than float32"
    linear = f"{document['linear_bits_per_weight']:.3f} bits a weight"
    return [
        ("file", f"{size(document['file_bytes'])}: {parts}"),
        ("matrices", f"{linear}, {document['ratio_linear']:.1f} times smaller than float32"),
        ("all of it", f"{whole}, {document['ratio_total_bf16']:.1f} times than bfloat16"),
    ]


def pack_table(document: Mapping[str, Any]) -> Table:
    """A file that was written."""
    how = "as trained" if document["is_trained_in_low_bits"] else "rounded after training"
    rows = [("bits", how), *file_rows(document)]
    if (state := document["status"]) != "complete":
        rows.insert(0, ("run", f"{state}: what it has saved last"))
    return pairs_table(document["file"], rows)


def check_table(document: Mapping[str, Any]) -> Table:
    """A file beside the model of its run."""
    gap, tokens = document["roundtrip_gap"], document["agreement"]
    rows = [
        ("codes", "all equal" if not document["wrong_codes"] else f"{document['wrong_codes']} not"),
        ("logits", f"within {document['logit_gap']:.2g}; {tokens:.2%} of tokens the same"),
        ("loss", f"{document['loss']:.4f}, {gap:+.5f} by packing"),
        *file_rows(document),
    ]
    return pairs_table(f"{document['file']} is the model of {document['run']}", rows)
