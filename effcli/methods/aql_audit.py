"""Judge a selective run."""

from typing import Any

from effcli.engine.selection.audit import audit
from effcli.settings.aql import AuditSettings


def run(settings: AuditSettings) -> dict[str, Any]:
    """The bill of a run, what its pool was like, and which saving it can claim."""
    return audit(settings.run, settings.against)
