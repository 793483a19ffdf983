"""What every training command shares. Budgets, names and places mean the same everywhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from effcli.catalog import MODELS, OPTIMIZERS, SCHEDULES, TRACKERS
from effcli.settings.base import Amount, Count, Flag, Settings, part
from effcli.settings.corpora import prepared
from effcli.settings.model import GPTSettings
from effcli.settings.optim import MuonSettings
from effcli.settings.presets import PRESETS, RECIPES
from effcli.settings.schedule import WsdSettings

BUDGETS = ("steps", "tokens", "flops", "minutes")


class BatchSettings(Settings):
    """How much text one optimizer step sees."""

    sequences: Annotated[
        Count,
        Flag(panel="What to train", metavar="N", name="batch-size", default="the preset's"),
    ] = 32
    """Sequences per optimizer step."""
    micro: Count | None = None
    """Sequences per forward pass, the rest is accumulated; by default about 8,192 tokens."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.micro is not None and self.micro > self.sequences:
            raise ValueError(
                f"micro {self.micro} is more than the {self.sequences} sequences of a step"
            )
        return self


class DeviceSettings(Settings):
    """Where a run happens. Changes speed and memory; never what is computed, but for rounding."""

    name: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """The processor; `auto` takes a GPU where there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Activations and products; weights, norms and losses stay float32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; `auto` compiles when the run is long enough to earn it back."""
    threads: Count | None = None
    """CPU threads; by default one per core."""
    allocator: Literal["keep", "system"] = "keep"
    """`keep` holds on to freed CPU memory between steps, where the C library is glibc: faster."""
    recompute: bool = False
    """Activation checkpointing: keep less, and compute each block's forward twice."""
    loss_rows: Count | None = None
    """Positions whose logits exist at one time in the loss; by default what suits the processor."""


class EvaluationSettings(Settings):
    """How a run is looked at. Costs are charged to `eval`, which no budget pays for."""

    #: The held-out loss alone: for runs whose report nobody reads.
    BARE: ClassVar[Mapping[str, Any]] = {
        "floors": False,
        "samples": 0,
        "texts": 0,
        "text_tokens": 256,
    }

    tokens: Count = 131_072
    """Held-out tokens per evaluation, in windows spread evenly over the validation split."""
    floors: bool = True
    """At the end, also report what uni-, bi- and trigram counts would have reached."""
    samples: Annotated[int, Field(ge=0, le=16)] = 1
    """Texts generated at the end, for the report."""
    texts: Annotated[int, Field(ge=0, le=256)] = 0
    """Texts written at the end to see how much the model repeats itself; 0 measures none."""
    text_tokens: Count = BARE["text_tokens"]
    """Tokens of each of them, and of the held-out windows that they are compared with."""

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if not self.texts and self.text_tokens != type(self).model_fields["text_tokens"].default:
            raise ValueError("text_tokens has no effect while texts is 0")
        return self

    def bare(self) -> Self:
        """Nothing but the held-out loss."""
        return self.model_copy(update=self.BARE)


class EnergySettings(Settings):
    """Used only where no counter can be read, and then labeled an estimate."""

    watts_per_core: Annotated[float, Field(gt=0)] = 10.0
    """Assumed power of one busy CPU core."""
    watts_per_gpu: Annotated[float, Field(gt=0)] = 300.0
    """Assumed power of a busy GPU."""


def split_names(names: Any) -> Any:
    """`--set track=wandb` and a list mean the same."""
    return names.split(",") if isinstance(names, str) else names


class TrainSettings(Settings):
    """What every training command shares."""

    #: Whether a preset's budget counts where none is given.
    PRESET_BUDGET: ClassVar[bool] = True
    #: Fields that say where things are, not what is computed: they are not kept in a run.
    PLACES: ClassVar[tuple[str, ...]] = ("out", "resume")
    #: Fields that name other runs: kept by their full paths, so that a run goes on from any folder.
    RUNS: ClassVar[tuple[str, ...]] = ()
    #: Fields that may differ when a run is resumed, because they do not change its result.
    FREE: ClassVar[tuple[str, ...]] = (
        *("save_every", "save_at", "keep", "price_per_hour", "energy", "track", "page"),
        "batch.micro",  # but for rounding: who runs out of memory must be able to go on
    )

    preset: Annotated[str, Flag(panel="What to train", choices=PRESETS)] = "nano"
    """Size of the model and the budget that suits it."""
    recipe: Annotated[
        Literal["modern", "textbook"],
        Flag(panel="What to train", choices=RECIPES, default="the preset's"),
    ] = "modern"
    """How the model is built and trained."""
    data: Annotated[str | None, Flag(panel="What to train", metavar="CORPUS", choices=prepared)] = (
        None
    )
    """Prepared corpus, by name or folder; by default the one prepared last. Several of the same
    tokenizer are mixed by shares of tokens, as in wikitext-2-gpt2:0.4,stories:0.6."""

    text_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training text that there is, from its beginning: what if there were less?"""

    steps: Annotated[Count | None, Flag(panel="Budget", metavar="N")] = None
    """Optimizer steps."""
    tokens: Annotated[Count | None, Flag(panel="Budget", metavar="N")] = None
    """Training tokens; `2M` and `1e9` are understood."""
    flops: Annotated[Amount | None, Flag(panel="Budget", metavar="N")] = None
    """Floating-point operations of everything but evaluation."""
    minutes: Annotated[float | None, Field(gt=0), Flag(panel="Budget", metavar="N")] = None
    """Minutes of everything but evaluation and compilation."""

    out: Annotated[Path | None, Flag(panel="Run", metavar="FOLDER")] = None
    """Run folder; by default the next free name in runs/ (or EFF_RUNS)."""
    resume: Annotated[bool, Flag(panel="Run")] = False
    """Continue the run in --out, or the last unfinished one, exactly where it was saved; where
    there is none yet, begin it."""
    seed: Annotated[int, Field(ge=0, lt=2**63), Flag(panel="Run", metavar="N")] = 0
    """Decides the initial weights and the order of the data."""
    eval_every: Annotated[int, Field(ge=0), Flag(panel="Run", metavar="STEPS")] = 100
    """Steps between looks at the held-out text; 0 looks only at the end."""
    save_every: Annotated[int, Field(ge=0), Flag(panel="Run", metavar="STEPS")] = 200
    """Steps between checkpoints; 0 saves only at the end or on a signal."""
    save_at: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Steps whose checkpoints are saved, too, and never removed: other runs go on from them."""
    keep: Annotated[int, Field(ge=2)] = 2
    """Checkpoints kept; older ones are removed once a newer one is verified on disk."""
    page: bool = True
    """At the end, draw report.html; `eff report` does so at any time."""
    price_per_hour: Annotated[float | None, Field(gt=0), Flag(panel="Run", metavar="MONEY")] = None
    """What an hour of this machine costs; the report then says what the run cost."""

    track: Annotated[
        tuple[str, ...],
        BeforeValidator(split_names),
        Flag(panel="Run", metavar="NAME", choices=TRACKERS),
    ] = ()
    """Also send the figures to tensorboard, trackio or wandb; may be given several times."""

    @classmethod
    def ground(cls, given: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """What stands above the preset and below all that is given, and where it is from."""
        del given  # which matters to whoever begins with another run
        return "", {}

    def for_text(self, tokens: int) -> Self:
        """The settings for a training text of so many tokens."""
        del tokens  # which matters to whoever reads a share of it
        return self

    @property
    def marks(self) -> tuple[str, ...]:
        """Languages that documents are to be marked with."""
        return ()

    @property
    def shares_trunk(self) -> bool:
        """Whether runs that differ in their budget alone begin with the same steps.

        They go on with them as long as their schedules agree.
        """
        return True

    @field_validator("track")
    @classmethod
    def _are_trackers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            TRACKERS[name]
        return tuple(dict.fromkeys(names))

    model: part(MODELS) = GPTSettings()  # type: ignore[valid-type]
    """The model; `model.name` chooses it."""
    optim: part(OPTIMIZERS) = MuonSettings()  # type: ignore[valid-type]
    """The optimizer; `optim.name` chooses it."""
    schedule: part(SCHEDULES) = WsdSettings()  # type: ignore[valid-type]
    """The learning rate over the run; `schedule.name` chooses it."""
    batch: BatchSettings = BatchSettings()
    device: DeviceSettings = DeviceSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    energy: EnergySettings = EnergySettings()
