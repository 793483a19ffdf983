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

    is_streamed = not screen.as_json and settings.num_return_sequences == 1
    texts: list[str] = []
    with Interrupt() as stop:
        for number, (texts, news) in enumerate(stream(settings, stop)):
            if is_streamed:
                begun = settings.prompt if number == 0 else ""
                screen.out.print(Text(safe(begun + news)), end="", soft_wrap=True)
    if is_streamed:
        screen.out.print()
        return
    document = {"schema": 1, "command": "generate", "run": str(settings.run)}
    drawn = [
        piece
        for number, text in enumerate(texts, start=1)
        for piece in (Text(f"--- {number}", "dim"), Text(safe(settings.prompt + text)))
    ]
    screen.result({**document, "prompt": settings.prompt, "texts": texts}, *drawn)
