"""`eff qllm probe`: what small models are asked, and how they are made."""

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from effcli.errors import InputError
from effcli.registry import suggestion
from effcli.settings.base import Count, Flag, Settings
from effcli.settings.bench import separated
from effcli.settings.suite import Seeds

_PROBES = "What is compared"
ARMS = ("data", "rope", "none", "gpt", "delta", "hybrid")


class Recipe(NamedTuple):
    """How models of a task are made, and which."""

    arms: tuple[str, ...]
    steps: int
    layers: int
    lr: float
    scalar_rate: float


# Small maps turn phases: at the end of a long sequence, small changes of a turn have become large
# ones. In recall the same maps say what is worth writing, which takes the full rate to find.
_COUNT = Recipe(ARMS[:4], steps=400, layers=1, lr=3e-3, scalar_rate=0.2)
_KEEP = Recipe(ARMS, steps=1500, layers=2, lr=1e-2, scalar_rate=1.0)
RECIPES = {"parity": _COUNT, "modular": _COUNT, "recall": _KEEP, "copy": _KEEP}
"""What suits each task, where nothing else is asked for."""
TASKS = tuple(RECIPES)


def _known(kind: str, known: tuple[str, ...]) -> AfterValidator:
    def check(names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in known:
                raise InputError(f"there is no {kind} called {name!r}", suggestion(name, [*known]))
        return tuple(dict.fromkeys(names))

    return AfterValidator(check)


class ProbeSettings(Settings):
    """What `eff qllm probe` is told."""

    tasks: Annotated[
        tuple[str, ...],
        Field(min_length=1),
        _known("task", TASKS),
        Flag(positional=True, metavar="TASK", choices=TASKS),
    ] = ("parity",)
    """What is asked: `parity` of bits, `modular` sums of five digits, `recall` of eight pairs,
    `copy` of symbols."""
    arms: Annotated[
        tuple[str, ...],
        BeforeValidator(separated),
        _known("arm", ARMS),
        Flag(
            panel=_PROBES,
            metavar="ARMS",
            choices=ARMS,
            default="the first four; all of recall and copy",
        ),
    ] = ()
    """What turns the phases of a model: the text (`data`), positions (`rope`), nothing (`none`);
    `gpt` is the GPT of equal size. `delta` is `data` that takes back before it writes, `hybrid` is
    `data` with attention in every second layer. Several by commas."""
    seeds: Annotated[Seeds, Flag(panel=_PROBES, metavar="N")] = 3
    """Models of each arm; all arms see the same sequences."""
    steps: Annotated[Count | None, Flag(panel=_PROBES, metavar="N")] = None
    """Of training each model; by default 400, of `recall` and `copy` 1,500."""
    length: Annotated[Count, Field(ge=8, le=4096), Flag(panel=_PROBES, metavar="N")] = 64
    """Longest sequences of training; answers are also asked for at four times that."""
    sequences: Annotated[Count, Field(le=2**16)] = 32
    """Of a step."""
    layers: Annotated[Count, Field(le=64)] | None = None
    """Number of blocks; by default 1, of `recall` and `copy` 2."""
    width: Annotated[Count, Field(multiple_of=4, le=1024)] = 32
    """Size of the residual stream, of two heads."""
    score: Literal["real", "complex"] = "complex"
    """Of phase models. A head's reading is normalized, so of what was written at the start alone
    the real part leaves a sign: enough for parity, and for no third answer."""
    lr: Annotated[float, Field(gt=0, le=10)] | None = None
    """Peak learning rate; by default 0.003, of `recall` and `copy` 0.01."""
    scalar_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """Rate for gains, biases and the small maps that turn phases, write and forget, as a multiple
    of `lr`; by default 0.2, of `recall` and `copy` 1."""

    def recipe(self, task: str) -> Recipe:
        """What was asked for, and else what suits the task."""
        asked = {name: getattr(self, name) for name in Recipe._fields}
        return RECIPES[task]._replace(**{k: v for k, v in asked.items() if v not in (None, ())})

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        for recipe in map(self.recipe, self.tasks):
            if "hybrid" in recipe.arms and recipe.layers == 1:
                raise ValueError("arms: hybrid has no effect in one layer; --set layers=2")
        return self
