"""`eff baseline`: a model trained well, with nothing clever about what it reads."""

from typing import Annotated

from pydantic import Field

from effcli.settings.base import Flag
from effcli.settings.train import TrainSettings


class BaselineSettings(TrainSettings):
    """What `eff baseline` adds to any training command."""

    tune: Annotated[int, Field(ge=0, le=256), Flag(panel="Budget", metavar="TRIALS")] = 0
    """Short runs, at a quarter of the budget, spent first on finding rate and decay."""
