"""Settings of the commands that only look: `eff report`, `eff verify` and `eff doctor`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from effcli.settings.base import Flag, Settings


class ReportSettings(Settings):
    """What `eff report` reads."""

    runs: Annotated[tuple[Path, ...], Field(min_length=1), Flag(positional=True, metavar="RUN")]
    """Folders of runs; with several, the first is the reference."""
    out: Annotated[Path | None, Flag(panel="Output", metavar="FILE")] = None
    """Where the page of a comparison goes; by default comparison.html."""


class VerifySettings(Settings):
    """What `eff verify` reads."""

    path: Annotated[Path, Flag(positional=True, metavar="PATH")]
    """Folder of a run or a corpus."""


class DoctorSettings(Settings):
    """What `eff doctor` reads: nothing but the machine."""
