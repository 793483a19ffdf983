"""What `eff export` is told."""

from pathlib import Path
from typing import Annotated, Literal

from effcli.settings.base import Flag
from effcli.settings.distill import PackSettings


class ExportSettings(PackSettings):
    """What `eff export` is told."""

    out: Annotated[Path | None, Flag(panel="Output", metavar="FILE")] = None
    """The file; by default `student.eff` or `student.gguf` in the run's folder."""
    to: Annotated[
        Literal["packed", "gguf"],
        Flag(panel="Output", metavar="packed|gguf", choices=("packed", "gguf")),
    ]
    """The format: that of `eff distill pack`, or that of llama.cpp."""
