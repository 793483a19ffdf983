"""`eff verify`."""

from rich.text import Text

from effcli.commands.mount import Given
from effcli.safe import safe
from effcli.ui.console import Screen


def verify(given: Given, screen: Screen) -> None:
    """Hash every file of a run or a corpus again, and say whether it is what was written."""
    settings = given.resolve().settings
    from effcli.methods.verify import verify as run

    result = run(settings.path)
    line = f"{result['path']}: {result['files']} files are what was written"
    screen.result(result, Text(safe(line)))
