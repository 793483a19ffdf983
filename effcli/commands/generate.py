"""`eff generate`."""

from rich.text import Text

from effcli.commands.mount import Given
from effcli.safe import safe
from effcli.ui.console import Screen


def generate(given: Given, screen: Screen) -> None:
    """Continue a text with a trained run."""
    settings = given.resolve().settings
    from effcli.engine.interrupt import Interrupt
    from effcli.methods.generate import stream

    if not screen.as_json and settings.num_return_sequences == 1:
        screen.out.print(Text(safe(settings.prompt)), end="", soft_wrap=True)
    texts: list[str] = []
    with Interrupt() as stop:
        for texts, news in stream(settings, stop):
            if not screen.as_json and settings.num_return_sequences == 1:
                screen.out.print(Text(safe(news)), end="", soft_wrap=True)
    if screen.as_json:
        screen.result(
            {
                "schema": 1,
                "command": "generate",
                "run": str(settings.run),
                "prompt": settings.prompt,
                "texts": texts,
            }
        )
    elif settings.num_return_sequences == 1:
        screen.out.print()
    else:
        for number, text in enumerate(texts, start=1):
            screen.out.print(Text(f"--- {number}", "dim"))
            screen.out.print(Text(safe(settings.prompt + text)), soft_wrap=True)
