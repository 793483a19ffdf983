"""How the learning rate moves over a run: shares of the budget, whatever its unit."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from effcli.settings.base import PartSettings

Share = Annotated[float, Field(ge=0, le=1)]


class ConstantSettings(PartSettings):
    """The same rate from the end of the warm-up to the end of the run."""

    place: ClassVar[str] = "effcli.engine.pacing:constant"
    name: Literal["constant"] = "constant"
    warmup: Share = 0.0
    """Share of the budget over which the rate climbs from zero."""


class CosineSettings(PartSettings):
    """A climb, then half a cosine down to `floor` (Loshchilov & Hutter 2017)."""

    place: ClassVar[str] = "effcli.engine.pacing:cosine"
    name: Literal["cosine"] = "cosine"
    warmup: Share = 0.02
    """Share of the budget over which the rate climbs from zero."""
    floor: Share = 0.1
    """Rate at the end, as a share of the peak."""


class WsdSettings(PartSettings):
    """Warm up, stay, decay linearly (Hu et al. 2024): one trunk serves many budgets."""

    place: ClassVar[str] = "effcli.engine.pacing:wsd"
    name: Literal["wsd"] = "wsd"
    warmup: Share = 0.0
    """Share of the budget over which the rate climbs from zero."""
    cooldown: Share = 0.5
    """Share of the budget at the end over which the rate falls to `floor`."""
    floor: Share = 0.0
    """Rate at the end, as a share of the peak."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.warmup + self.cooldown > 1:
            raise ValueError("warmup and cooldown together are more than the whole run")
        return self
