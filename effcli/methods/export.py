"""Write the model of a run in a format of `eff` or of another program."""

from typing import Any

from effcli.engine.export import gguf
from effcli.engine.export.blocks import library
from effcli.engine.quant.bitlinear import linear_layers
from effcli.methods.distill_pack import chosen, pack
from effcli.settings.export import ExportSettings

FILE = "student.gguf"


def export(settings: ExportSettings) -> dict[str, Any]:
    """Write the file, and say what it holds."""
    if settings.to == "packed":
        return {**pack(settings), "command": "export", "to": "packed"}
    library()  # before anything is read
    one = chosen(settings, FILE)
    name = settings.run.resolve().name.encode(errors="replace").decode()
    return {
        "schema": 1,
        "command": "export",
        "to": "gguf",
        "file": str(one.path),
        "is_trained_in_low_bits": one.is_trained,
        "matrices": len(linear_layers(one.model)),
        **gguf.write(one.path, one.model, one.tokenizer, name),
    }
