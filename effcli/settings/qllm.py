"""`eff qllm`: a phase model, how its phases begin, and what is looked at besides its loss."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from effcli.catalog import MODELS
from effcli.errors import InputError
from effcli.registry import suggestion
from effcli.settings import presets
from effcli.settings.base import Count, Flag, Settings, part
from effcli.settings.bench import separated
from effcli.settings.generate import (
    GenerateSettings,
    Mark,
    PhaseDim,
    Prompts,
    SamplingSettings,
    is_text,
)
from effcli.settings.growth import Stage, stages_of, steps_of
from effcli.settings.model import GPTSettings
from effcli.settings.phase import PhaseSettings
from effcli.settings.suite import Seeds
from effcli.settings.train import DeviceSettings, TrainSettings

_PHASES, _LANGUAGES, _PROBES = "Phases", "Languages", "What is compared"
Name = Annotated[str, Field(min_length=1, max_length=100)]
TEXTS = 32  # of the model, that are compared with the corpus
STARTS = ("random", "semantic", "frequency", "golden")


class QllmSettings(TrainSettings):
    """What `eff qllm train` adds to any training command."""

    arch: Annotated[
        Literal["phase", "gpt"], Flag(panel="What to train", choices=("phase", "gpt"))
    ] = "phase"
    """`gpt` trains the model of equal size that a phase model is compared with."""
    phase_init: Annotated[
        Literal["random", "semantic", "frequency", "golden"], Flag(panel=_PHASES, choices=STARTS)
    ] = "random"
    """Where the phases of tokens begin: by the company that they keep, by how often they occur,
    by their number, or at random."""
    energies: Annotated[
        Literal["report", "on", "off"], Flag(panel=_PHASES, choices=("report", "on", "off"))
    ] = "report"
    """Coherence, interference and entanglement: measured at the end, trained on, or neither."""
    curriculum: Annotated[
        Literal["auto", "off", "seed"], Flag(panel=_PHASES, choices=("auto", "off", "seed"))
    ] = "auto"
    """When energies count: `auto` waits until counting trigrams is beaten, then goes by stages;
    `off` is always; `seed` has the stages of the first design."""
    grow: Annotated[str | None, Flag(panel="Growth", metavar="WIDTHS")] = None
    """Widths from shares of the budget on, as 256@0,512@30%,768@60% or 50%@0,100%@40%: a model
    that grows computes what it did, and goes on learning. The last is the model's."""
    grow_depth: Annotated[str | None, Flag(panel="Growth", metavar="LAYERS")] = None
    """Numbers of layers from shares of the budget on, as 4@0,8@50%. The last is the model's."""
    languages: Annotated[
        tuple[Name, ...], BeforeValidator(separated), Flag(panel=_LANGUAGES, metavar="NAMES")
    ] = ()
    """Of the documents, by their labels, as en,de: each begins with a mark of its language, and
    turns what all share by angles of its own."""
    align: Annotated[Path | None, Flag(panel=_LANGUAGES, metavar="FILE")] = None
    """Texts that mean the same, by tabs, with languages in the first line: what a third of the
    layers make of them is brought together. A tenth is kept aside, to find out whether it is."""
    align_weight: Annotated[float, Field(ge=0, le=10)] = 0.1
    """Of bringing together, beside the loss; 0 only measures."""
    model: part(MODELS) = PhaseSettings()  # type: ignore[valid-type]
    """The model; its size is that of the preset."""

    @classmethod
    def ground(cls, given: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Which model the preset is for."""
        looks, size = {"evaluation": {"texts": TEXTS}}, _grown_size(given)
        if given.get("arch") == "gpt":
            return "eff qllm", {**looks, "model": {"name": "gpt", **size}}
        if languages := separated(given.get("languages", ())):
            size["languages"] = len(tuple(languages))
        return "eff qllm", {**looks, "model": {"positions": "none", "qk_norm": True, **size}}

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.arch != ("phase" if isinstance(self.model, PhaseSettings) else "gpt"):
            raise ValueError(f"arch {self.arch} and model.name {self.model.name} contradict")
        fields = type(self).model_fields
        if self.arch == "gpt":
            for name in ("phase_init", "energies", "align"):
                if getattr(self, name) != fields[name].default:
                    raise ValueError(f"{name} has no effect without phases: --arch phase")
        if len(set(self.languages)) != len(self.languages):
            raise ValueError("languages: each is named once")
        if self.arch == "phase" and self.model.languages != len(self.languages):
            raise ValueError("model.languages: is the number of --languages")
        if self.align and not self.languages:
            raise ValueError("align has no effect without --languages")
        if not self.align and self.align_weight != fields["align_weight"].default:
            raise ValueError("align_weight has no effect without --align")
        if self.energies != "on" and self.curriculum != fields["curriculum"].default:
            raise ValueError("curriculum has no effect without --energies on")
        if self.device.compile == "on" and self.is_heard:
            raise ValueError("energies, concepts and pairs are heard where nothing is compiled")
        if self.device.compile == "on" and self.grows:
            raise ValueError("a model that grows is not compiled: every size would be anew")
        if self.grows and self.model.name not in ("gpt", "phase"):
            raise ValueError(f"a model called {self.model.name} does not grow")
        if self.grows:
            assert self.stages
        return self

    @property
    def grows(self) -> bool:
        """Whether the model begins smaller than it ends."""
        return self.grow is not None or self.grow_depth is not None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every size that the model has, in order."""
        assert isinstance(self.model, GPTSettings)
        return stages_of(self.model, self.grow, self.grow_depth)

    @property
    def shares_trunk(self) -> bool:
        """Growth and energies depend on the share of the budget that is spent."""
        return not self.grows and self.energies != "on"

    @property
    def marks(self) -> tuple[str, ...]:
        """Languages that documents are to be marked with."""
        return self.languages

    @property
    def is_heard(self) -> bool:
        """Whether more is trained on than the next token."""
        has_concepts = isinstance(self.model, PhaseSettings) and self.model.concepts > 0
        return self.energies == "on" or has_concepts or self.align is not None

    def for_text(self, tokens: int) -> Self:
        """Not compiled where somebody listens, or the model grows."""
        del tokens
        if not self.is_heard and not self.grows:
            return self
        return self.model_copy(update={"device": self.device.model_copy(update={"compile": "off"})})


def _grown_size(given: Mapping[str, Any]) -> dict[str, int]:
    """The size that a model grows to, by heads of as many channels as the preset's."""
    size: dict[str, int] = {}
    fields = ("width", "grow"), ("layers", "grow_depth")
    for field, name in fields:
        with suppress(ValueError):  # told when settings are checked, or shares of the preset's
            if isinstance(text := given.get(name), str):
                size[field] = steps_of(text, name, 0)[-1][1]
    preset = given.get("preset", "nano")
    if "width" in size and preset in presets.PRESETS:
        usual = presets.read(preset)["model"]
        heads, rest = divmod(size["width"], usual["width"] // usual["heads"])
        if not rest and heads:
            size["heads"] = heads
    return size


class WriteSettings(SamplingSettings):
    """What `eff qllm generate` needs."""

    prompts: Prompts = ("",)
    """Texts to continue, all at once; without one, a new document is begun."""
    run: Annotated[Path | None, Flag(panel="Text", metavar="RUN")] = None
    """Folder of a run; by default the newest of a phase model."""
    language: Annotated[Mark | None, Flag(panel="Text", metavar="NAME")] = None
    """Language to write, of a model that was trained with --languages; by default its first."""
    phase_dim: Annotated[
        PhaseDim, Flag(panel="Text", metavar="N|auto|full", choices=("full", "auto"))
    ] = "full"
    """Keep the first N phases of each head: less work, and less to remember. `auto` keeps as many
    as the text is surprising, which spares nothing."""
    device: DeviceSettings = DeviceSettings(compile="off")

    def of(self, run: Path) -> GenerateSettings:
        """The same for a run that was found."""
        return GenerateSettings(**{**self.model_dump(), "run": run})


class InspectSettings(Settings):
    """What `eff qllm inspect` is told."""

    run: Annotated[Path, Flag(positional=True, metavar="RUN")]
    """Folder of a trained phase model."""
    text: Annotated[
        Annotated[str, AfterValidator(is_text)] | None,
        Flag(panel="What to look at", metavar="TEXT"),
    ] = None
    """Whose interference is drawn; by default the beginning of the held-out text."""
    out: Annotated[Path | None, Flag(panel="Output", metavar="FILE")] = None
    """Where the page goes; by default inspect.html in the run's folder."""
    mauve: Annotated[
        Annotated[int, Field(ge=20, le=4096)] | None, Flag(panel="What to look at", metavar="N")
    ] = None
    """Texts for the model to write, that are compared with as many of held-out text (MAUVE)."""
    windows: Annotated[int, Field(ge=1, le=256)] = 16
    """Of held-out text, that figures are measured on."""


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
