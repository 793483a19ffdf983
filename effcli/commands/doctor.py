"""`eff doctor`."""

from effcli.commands.mount import Given
from effcli.errors import CheckError
from effcli.ui.console import Screen
from effcli.ui.tables import doctor_table


def doctor(given: Given, screen: Screen) -> None:
    """Say what this machine offers for training, and what it lacks.

    Nothing is changed; only the measured speed is kept for later. Exit code 4 means that
    something is missing without which training cannot work.
    """
    given.resolve()
    from effcli.methods.doctor import examine

    findings = examine()
    screen.result(findings, doctor_table(findings))
    lacking = [row for row in findings["rows"] if row["status"] == "missing"]
    if lacking:
        named = "; ".join(f"{row['name']}: {row['value']}" for row in lacking)
        raise CheckError(f"training cannot work here: {named}", lacking[0]["hint"])
