"""`eff aql`: which share of a pool is read, how it is chosen, and in which order."""

import math
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from effcli.catalog import CURRICULA, POLICIES, SELECTORS, UNCERTAINTIES
from effcli.errors import InputError
from effcli.settings.base import Count, Flag, Settings
from effcli.settings.corpora import MIX_HINT, is_mix, prepared
from effcli.settings.train import BUDGETS, TrainSettings

_PANEL = "Selection"
TILT = 0.5  # by uncertainty, where that is asked for


def _in(registry: object) -> AfterValidator:
    return AfterValidator(lambda name: registry[name] and name)  # type: ignore[index]


class PreparationSettings(Settings):
    """How a corpus is scored before training."""

    holdout: Annotated[str, Field(min_length=1), Flag(panel=_PANEL, metavar="FILE")] = "auto"
    """Text that you trust, in files that `eff prepare` reads: it says what good text is."""
    pool: Count | None = None
    """Tokens of the pool; by default all of the training text."""
    passage: Annotated[Count, Field(ge=16, le=2**16)] = 512
    """Longest passage, in tokens; longer documents are chosen in parts."""
    clusters: Annotated[int, Field(ge=1, le=512)] = 64
    """Groups of alike passages, found by their tokens."""
    copies: Annotated[Count, Field(le=1000)] = 2
    """How many copies of a document may be read, itself included."""
    similar: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Documents are copies from this Jaccard similarity of their 5-grams on (MinHash)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides the pool, where it is a part of the text, and the clusters."""


class PacingSettings(Settings):
    """How the window of admitted passages opens, from easy to hard."""

    start: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the pool that is admitted at first."""
    length: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Share of the run until all of it is admitted."""
    power: Annotated[float, Field(gt=0, le=10)] = 2.0
    """Of the root."""
    levels: Annotated[tuple[float, ...], Field(min_length=2, max_length=16)] = (0.4, 0.7, 1.0)
    """Admitted shares of the stages."""


class ChoiceSettings(Settings):
    """How candidates are scored and chosen."""

    tilt: Annotated[float | None, Field(ge=-4, le=4)] = None
    """Nats for each standard deviation of uncertainty, of `--selector auto`.

    By default 0, and 0.5 where `--uncertainty` is given: docs/experiments.md, 2026-11-21.
    """
    exponent: Annotated[float | None, Field(ge=0, le=8)] = None
    """Of the ratio of densities; by default 2 for a pool found contaminated, and else 0."""
    least: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of its share of the pool that every cluster gets, if it has as much."""
    most: Annotated[float, Field(ge=1, le=64)] = 2.0
    """Times its share of the pool that no cluster gets more of, while others have text."""
    rounds: Count = 32
    """Parts of a pass over the pool; each is chosen with what was learned before it."""
    scorer: Literal["none", "proxy", "model"] = "none"
    """Who says of single windows how uncertain they are, with half of the overhead: nobody, a
    small model beside the one that is trained, or that one; a cluster speaks for the others."""
    proxy_layers: Annotated[int, Field(ge=1, le=2)] = 2
    """Of the small model."""
    proxy_width: Annotated[int, Field(ge=16, le=256, multiple_of=4)] = 64
    """Of the small model."""
    remember: bool = False
    """Keep beside the scores how uncertain the model was at each window, for later runs."""
    reuse: bool = False
    """Go by what earlier runs kept."""
    policy_weights: Path | None = None
    """TOML file with the weights of `--policy learned`, as `eff aql policy train` writes it."""
    good: tuple[str, ...] = ("clean", "easy", "hard", "unique", "target")
    """Labels of documents that are worth reading, for the precision in the report."""


class SynthSettings(Settings):
    """The edge of what is read."""

    jitter: bool = False
    """After the first pass, cut the third of the chosen text that is hardest at other places."""
    distill: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Weight of the divergence from the model at the beginning of the round, on hard windows."""
    timeout: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Seconds that `--synth-cmd` has for its answers to one round."""


class AqlSettings(TrainSettings):
    """What `eff aql` adds to any training command."""

    #: The ratio decides how much is read, unless a budget is given.
    PRESET_BUDGET: ClassVar[bool] = False

    data: Annotated[str | None, Flag(panel="What to train", metavar="CORPUS", choices=prepared)] = (
        None
    )
    """Prepared corpus, by name or folder; by default the one prepared last."""
    ratio: Annotated[float, Field(gt=0, le=1), Flag(panel=_PANEL)] = 0.2
    """Share of the pool's tokens that is read; the rest never is."""
    epochs: Annotated[Count | None, Flag(panel=_PANEL, metavar="N")] = None
    """How often it is read; by default as often as the budget needs, and else once."""
    selector: Annotated[str, _in(SELECTORS), Flag(panel=_PANEL, choices=SELECTORS)] = "auto"
    """How passages are chosen."""
    uncertainty: Annotated[
        str | None,
        AfterValidator(lambda name: name and UNCERTAINTIES[name] and name),
        Flag(panel=_PANEL, choices=UNCERTAINTIES, default="laplace"),
    ] = None
    """How it is measured what the model does not know yet."""
    curriculum: Annotated[str, _in(CURRICULA), Flag(panel=_PANEL, choices=CURRICULA)] = "off"
    """How the window of admitted passages opens, from easy to hard."""
    policy: Annotated[str, _in(POLICIES), Flag(panel=_PANEL, choices=POLICIES)] = "fixed"
    """How the shares of groups of passages follow what they are worth."""
    weights: Annotated[
        Literal["none", "importance"], Flag(panel=_PANEL, choices=("none", "importance"))
    ] = "none"
    """`importance` weighs losses so that the objective stays that of the whole pool."""
    streaming: Annotated[bool, Flag(panel=_PANEL)] = False
    """Choose from the corpus's sources as they are read, not from its shards."""
    overhead_max: Annotated[float, Field(gt=0, le=100), Flag(panel=_PANEL, metavar="SHARE")] = 0.03
    """What listening to the model may cost, as a share of the FLOPs of training."""

    synth_cmd: Annotated[str | None, Flag(panel=_PANEL, metavar="COMMAND")] = None
    """Program that writes text like hard chosen text: JSON lines with id and text in, with text
    out. What is as good as the chosen is read, too, up to a tenth."""

    synth: SynthSettings = SynthSettings()
    prep: PreparationSettings = PreparationSettings()
    choice: ChoiceSettings = ChoiceSettings()
    pacing: PacingSettings = PacingSettings()

    @property
    def is_tilted(self) -> bool:
        """Whether windows are chosen by how uncertain they are."""
        return self.selector == "uncertainty" or bool(self.selector == "auto" and self.tilt)

    @property
    def tilt(self) -> float:
        """Nats for each standard deviation of uncertainty."""
        usual = 0.0 if self.uncertainty is None else TILT
        return usual if self.choice.tilt is None else self.choice.tilt

    @property
    def listens(self) -> bool:
        """Whether anything goes by what the model says."""
        return self.is_tilted or self.curriculum != "off" or self.policy != "fixed"

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.uncertainty is not None and not self.listens:
            raise ValueError(f"uncertainty has no effect on the selector {self.selector!r}")
        if is_mix(self.data):
            raise ValueError(f"scores are kept in a corpus's folder, a mix has none: {MIX_HINT}")
        if self.text_share != 1:
            raise ValueError("text_share is for runs that read all there is: see --ratio")
        if not self.is_tilted:
            for name in ("scorer", "reuse"):
                if getattr(self.choice, name) not in ("none", False):
                    message = f"choice.{name} has no effect on the selector {self.selector!r}"
                    raise ValueError(message)
        if self.synth.jitter and (self.epochs == 1 or self.streaming):
            raise ValueError("synth.jitter has no effect where nothing is read twice")
        if self.synth.timeout != SynthSettings().timeout and self.synth_cmd is None:
            raise ValueError("synth.timeout has no effect without synth_cmd")
        if self.streaming and (self.choice.remember or self.choice.reuse):
            raise ValueError("choice.remember and choice.reuse do not go with streaming")
        if self.choice.remember and not self.listens:
            raise ValueError("choice.remember has nothing to keep, for nothing listens")
        if self.choice.policy_weights is not None and self.policy != "learned":
            raise ValueError(f"choice.policy_weights has no effect on the policy {self.policy!r}")
        if self.streaming:
            self._require_streamable()
        if self.curriculum == "off" and self.pacing != PacingSettings():
            raise ValueError("pacing has no effect while curriculum is off")
        if self.weights != "none" and self.selector in ("excess", "uncertainty", "loss", "random"):
            raise ValueError(f"weights have no effect on the selector {self.selector!r}")
        return self

    def _require_streamable(self) -> None:
        if self.steps is None and self.tokens is None and self.flops is None:
            raise ValueError("streaming needs --tokens, --steps or --flops: streams may not end")
        if self.epochs is not None:
            raise ValueError("epochs has no effect while streaming: nothing comes again")

    @property
    def shares_trunk(self) -> bool:
        """What is read depends on the share of the budget that is spent."""
        return False

    def for_text(self, tokens: int) -> Self:
        """With the budget that the ratio is of a text of so many tokens, unless there is one."""
        pool = self.prep.pool or tokens
        once = self.ratio * pool
        if all(getattr(self, name) is None for name in BUDGETS):
            return self.model_copy(update={"tokens": math.ceil(once * (self.epochs or 1))})
        wanted = self.tokens or 0
        if self.steps is not None:
            wanted = max(wanted, self.steps * self.batch.sequences * self.model.context)
        step = self.batch.sequences * self.model.context
        if self.epochs is not None and wanted > self.epochs * once + step:
            message = (
                f"{self.epochs} × {self.ratio:g} of a pool of {pool:,} tokens are "
                f"{self.epochs * once:,.0f}, less than the budget of {wanted:,}"
            )
            raise InputError(message, "more --epochs, a larger --ratio, or a smaller budget")
        return self


class PolicySettings(AqlSettings):
    """What `eff aql policy train` is told: one of its runs, and how many there are."""

    policy: Literal["learned"] = "learned"
    """The only one that has weights to find."""
    resume: bool = False
    """Without effect: what is finished is never run again."""
    runs: Annotated[int, Field(ge=4, le=10_000), Flag(panel=_PANEL, metavar="N")] = 32
    """How many runs; the last two say what the weights are worth."""
    sigma: Annotated[float, Field(gt=0, le=10)] = 0.5
    """How far from the weights the runs of a round are."""
    rate: Annotated[float, Field(gt=0, le=10)] = 0.5
    """Length of the first step along what a round looked at."""
    out: Annotated[Path, Flag(panel="Output", metavar="FILE")] = Path("policy.toml")
    """File for the weights, which `--set choice.policy_weights=FILE` reads; its runs are kept
    beside it until they are finished."""


class PrepSettings(Settings):
    """What `eff aql prep` is told."""

    corpus: Annotated[str | None, Flag(positional=True, metavar="[CORPUS]", choices=prepared)] = (
        None
    )
    """Prepared corpus, by name or folder; by default the one prepared last."""
    force: Annotated[bool, Flag(panel="Output")] = False
    """Score it again, whatever is there."""
    prep: PreparationSettings = PreparationSettings()


class SelectSettings(Settings):
    """What `eff aql select` is told."""

    data: Annotated[str | None, Flag(panel=_PANEL, metavar="CORPUS", choices=prepared)] = None
    """Prepared corpus, by name or folder; by default the one prepared last."""
    ratio: Annotated[float, Field(gt=0, le=1), Flag(panel=_PANEL)] = 0.2
    """Share of the pool's tokens that is chosen."""
    selector: Annotated[str, _in(SELECTORS), Flag(panel=_PANEL, choices=SELECTORS)] = "auto"
    """How passages are chosen."""
    seed: Annotated[int, Field(ge=0, lt=2**63), Flag(panel=_PANEL, metavar="N")] = 0
    """Decides what is drawn."""
    out: Annotated[Path | None, Flag(panel="Output", metavar="FOLDER")] = None
    """The folder of the view; by default a telling name beside the corpus."""
    report: Annotated[bool, Flag(panel="Output")] = False
    """Also write selection.html, with plots of what was chosen and what was left."""
    prep: PreparationSettings = PreparationSettings()
    choice: ChoiceSettings = ChoiceSettings()


class AuditSettings(Settings):
    """What `eff aql audit` is told."""

    run: Annotated[Path, Flag(positional=True, metavar="RUN")]
    """The folder of a run of `eff aql`."""
    against: Annotated[tuple[Path, ...], Flag(panel="Comparison", metavar="RUN")] = ()
    """Plain runs to the same held-out text: two or more make a multiplier; repeat the flag."""
