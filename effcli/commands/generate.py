"""`eff generate`."""

from typing import Any

from rich.text import Text

from effcli.commands.mount import Given
from effcli.safe import safe
from effcli.settings.generate import GenerateSettings
from effcli.ui.console import Screen


def generate(given: Given, screen: Screen) -> None:
    """Continue a text with a trained run."""
    show(given.resolve().settings, screen)


def show(settings: GenerateSettings, screen: Screen) -> None:
    """Write, on the screen as it comes, or all at once as a document."""
    from effcli.engine.interrupt import Interrupt
    from effcli.methods.generate import stream, texts

    copies = settings.num_return_sequences
    with Interrupt() as stop:
        if not screen.as_json and len(settings.begun) * copies == 1:
            begun = settings.begun[0]
            for news in stream(settings, stop, screen.note):
                screen.out.print(Text(safe(begun + news)), end="", soft_wrap=True)
                begun = ""
            screen.out.print()
            return
        written = texts(settings, stop, screen.note)
    results: list[dict[str, Any]] = [
        {
            "prompt": prompt,
            "texts": [text for text, _ in several],
            "reasons": [reason for _, reason in several],
        }
        for prompt, several in zip(settings.begun, written, strict=True)
    ]
    whole = [safe(row["prompt"] + text) for row in results for text in row["texts"]]
    numbered = enumerate(whole, start=1)
    drawn = [Text.assemble((f"--- {number}\n", "dim"), text) for number, text in numbered]
    document = {"schema": 1, "command": "generate", "run": str(settings.run)}
    found = results[0] if len(results) == 1 else {"results": results}
    screen.result({**document, **found}, *drawn)
