"""`eff qllm`: a phase model, how its phases begin, and what is looked at besides its loss."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from effcli.catalog import MODELS
from effcli.settings import presets
from effcli.settings.base import Flag, Settings, part
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
from effcli.settings.train import DeviceSettings, TrainSettings

_PHASES, _LANGUAGES = "Phases", "Languages"
Name = Annotated[str, Field(min_length=1, max_length=100)]
Factor = Annotated[float, Field(ge=0, le=100)]
TEXTS = 32  # of the model, that are compared with the corpus
STARTS = ("random", "semantic", "frequency", "golden")


class EnergyFactors(Settings):
    """Of each energy; 0 leaves it out."""

    local: Factor = 1.0
    interference: Factor = 1.0
    entanglement: Factor = 1.0
    concepts: Factor = 1.0


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
    factors: EnergyFactors = EnergyFactors()
    """Multiples of the weights that energies have where they count."""
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
        if self.energies != "on" and self.factors != fields["factors"].default:
            raise ValueError("factors have no effect without --energies on")
        if self.energies == "on" and self.curriculum == "auto" and not self.eval_every:
            raise ValueError("curriculum=auto waits for a held-out loss: give eval_every")
        if isinstance(self.model, PhaseSettings) and self.model.hybrid > self.model.layers:
            raise ValueError(f"model.hybrid: of {self.model.layers} layers none would attend")
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

    prompts: Prompts = ()
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
