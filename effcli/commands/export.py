"""`eff export`."""

from effcli.commands.mount import Given
from effcli.ui.console import Screen
from effcli.ui.distill import pack_table
from effcli.ui.export import gguf_table


def export(given: Given, screen: Screen) -> None:
    """Write the model of any run as a packed file, or as one for llama.cpp."""
    settings = given.resolve().settings
    from effcli.methods.export import export as run

    document = run(settings)
    table = gguf_table if document["to"] == "gguf" else pack_table
    screen.result(document, table(document))
