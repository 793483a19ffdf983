"""What `eff export` shows."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from effcli.ui.tables import pairs_table
from effcli.units import size


def gguf_table(document: Mapping[str, Any]) -> Table:
    """A file for llama.cpp."""
    how = "as trained" if document["is_trained_in_low_bits"] else "rounded after training"
    types = ", ".join(f"{kind} {size(of['bytes'])}" for kind, of in document["types"].items())
    rows = [
        ("bits", how),
        ("file", f"{size(document['file_bytes'])}: {types}"),
        ("matrices", f"{document['linear_bits_per_weight']:.3f} bits a weight"),
        ("architecture", f"{document['architecture']} of llama.cpp"),
        ("status", document["status"]),
        *(("llama.cpp", difference) for difference in document["differences"]),
    ]
    return pairs_table(document["file"], rows)
