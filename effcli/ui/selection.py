"""What was chosen, and what it cost, as tables."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from effcli.ui.tables import pairs_table
from effcli.units import count


def prep_table(document: Mapping[str, Any]) -> Table:
    """What is known of a corpus before training."""
    eta = document["contamination"]
    rows = [
        ("pool", f"{count(document['tokens'])} tokens in {document['passages']:,} passages"),
        ("trusted text", _MODES[document["mode"]].format(count(document["trusted_tokens"]))),
        ("contamination", "cannot be measured" if eta is None else f"{eta:.0%} of the pool"),
        ("copies", f"{count(document['duplicate_tokens'])} tokens that are not read"),
        ("held-out text", f"{count(document['overlapping_tokens'])} tokens that are not read"),
        ("quarantined", f"{document['quarantined']:,} passages without a score"),
        ("clusters", str(document["clusters"])),
        ("seconds", ", ".join(f"{n} {s:.1f}" for n, s in document["seconds"].items())),
    ]
    return pairs_table(document["scores"], rows)


_MODES = {
    "file": "{} tokens",
    "alike": "the pool is of the same source as the held-out text",
    "none": "none, so nothing can be told from noise",
}


def selection_table(document: Mapping[str, Any]) -> Table:
    """What was chosen."""
    rows = [
        ("chosen", f"{count(document['tokens'])} of {count(document['pool_tokens'])} tokens"),
        ("documents", f"{document['documents']:,}"),
        ("clusters", f"{document['clusters_used']} of {document['clusters']}"),
        ("numbers", document["numbers"]),
    ]
    if document["precision"] is not None:
        rows.append(("precision", f"{document['precision']:.1%} are labeled as good"))
    if document["page"]:
        rows.append(("page", document["page"]))
    return pairs_table(document["corpus"], rows)


def policy_table(document: Mapping[str, Any]) -> Table:
    """The weights of a policy, what they are worth, and what finding them cost."""
    losses = [document["loss_before"], document["loss_after"]]
    before, after = ("diverged" if loss is None else f"{loss:.4f}" for loss in losses)
    rows = [(name, f"{value:.3f}") for name, value in document["weights"].items()]
    rows.append(("held-out loss", f"{before} before, {after} after, of one run each"))
    spent = f"{document['flops']['meta']:.2e} FLOPs, {document['seconds']['meta']:.0f} seconds"
    rows.append(("meta", f"{spent}, {document['runs']} runs"))
    return pairs_table(document["out"], rows)


def audit_tables(document: Mapping[str, Any]) -> list[Table]:
    """The bill of a run, and what it can claim."""
    bill = [(row["what"], row["shown"]) for row in document["bill"]]
    claims = [(row["what"], row["shown"]) for row in document["claims"]]
    return [pairs_table(document["run"], bill), pairs_table("what it can claim", claims)]
