"""What every settings class shares: frozen, strict about names, documented by its docstrings."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, WrapValidator
from pydantic_core import PydanticCustomError

from effcli.errors import InputError
from effcli.registry import Registry

_NUMBER = re.compile(r"([+-]?[\d_.]+(?:e[+-]?\d+)?)\s*([kmbgt]?)", re.IGNORECASE)
TIERS = ("smoke", "cpu", "cpu-long", "gpu")
"""The sizes that a suite may have."""
_SCALE = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


class Settings(BaseModel):
    """A piece of a run's description. An unknown name is an error, never ignored."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        defer_build=True,  # until a class is used: a command uses one of many
    )


class PartSettings(Settings):
    """Settings of a part that is chosen by `name`; `place` says what they build."""

    place: ClassVar[str]
    name: str


@dataclass(frozen=True)
class Flag:
    """Marks the few fields that deserve a flag of their own; `--set` reaches the rest."""

    panel: str = "Options"
    metavar: str | None = None
    short: str | None = None
    choices: tuple[str, ...] | Registry | Callable[[], Iterable[str]] = ()
    """What completes the value: names, or how they are found when they are needed."""
    has_negation: bool = False
    positional: bool = False
    default: str | None = None
    """What the help says of the default, where the class does not decide it."""
    name: str | None = None
    """The flag's, without dashes before it, where the field's own would say too little."""


def parse_number(value: Any) -> Any:
    """Read `2M`, `1.5b`, `30k` or `1e15`; anything else is left for the field to judge."""
    if not isinstance(value, str) or not (match := _NUMBER.fullmatch(value.strip())):
        return value
    try:
        number = float(match[1]) * _SCALE[match[2].lower()]
    except (ValueError, OverflowError):
        return value
    return int(number) if number.is_integer() else number


Count = Annotated[int, BeforeValidator(parse_number), Field(ge=1)]
Amount = Annotated[float, BeforeValidator(parse_number), Field(gt=0)]


def part(registry: Registry) -> Any:
    """The type of a field that holds any part of `registry`, told apart by its `name`."""

    def build(value: Any, _: Any) -> Any:
        if isinstance(value, PartSettings):
            return value
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise PydanticCustomError("part_name", "needs a name")
        try:
            return registry.load(value["name"]).model_validate(value)
        except InputError as error:
            detail = f"{error.message} ({error.hint})"
            raise PydanticCustomError("part_unknown", "{detail}", {"detail": detail}) from None

    return Annotated[SerializeAsAny[PartSettings], WrapValidator(build), registry]
