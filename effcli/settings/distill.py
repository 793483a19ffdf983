"""`eff distill`: which teacher, which student, how many bits, and what is added to training."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from effcli.errors import InputError
from effcli.settings import presets
from effcli.settings.base import Count, Flag, Settings
from effcli.settings.corpora import MIX_HINT, is_mix, prepared
from effcli.settings.layers import CONFIG, read_toml
from effcli.settings.model import BITS, Bits, GPTSettings, LowBitSettings
from effcli.settings.presets import PRESETS
from effcli.settings.schedule import WsdSettings
from effcli.settings.train import BUDGETS, DeviceSettings, TrainSettings, split_names

TERNARY = 1.58
SHARES = {1: 0.4, TERNARY: 0.35, 2: 0.2, 4: 0.1, 8: 0.1}
"""Of the budget in low bits, for a student that starts anew (arXiv 2509.22935, few tokens)."""
HYBRID = {"data_clusters": 8, "param_clusters": 4, "controller": "guarded", "trust": "adaptive"}
_CACHE = re.compile(r"online|(sampled|topk):[1-9]\d{0,5}")
_TEACHING, _BITS, _HYBRID = "Teaching", "Bits", "Hybrid"


def _is_cache(text: str) -> str:
    if not _CACHE.fullmatch(text):
        raise ValueError("should be online, sampled:N or topk:K")
    return text


class TeachingSettings(Settings):
    """What the student learns from its teacher."""

    kd: Annotated[
        Literal["forward", "reverse", "jsd", "none"],
        Flag(panel=_TEACHING, choices=("forward", "reverse", "jsd", "none")),
    ] = "forward"
    """Divergence from the teacher: forward or reverse KL, or Jensen-Shannon."""
    alpha: Annotated[float, Field(ge=0, le=1), Flag(panel=_TEACHING, metavar="X")] = 0.5
    """Weight of the divergence; the rest is that of cross-entropy with the text."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Of both distributions in the divergence; other than 1 only with an online teacher."""
    cache: Annotated[
        str, AfterValidator(_is_cache), Flag(panel=_TEACHING, metavar="online|sampled:N|topk:K")
    ] = "sampled:12"
    """What is kept of the teacher: N draws or the K likeliest tokens of every position, made
    once; `online` asks it at every step."""
    hidden: Annotated[float, Field(ge=0, le=10), Flag(panel=_TEACHING, metavar="X")] = 0.0
    """Weight of 1 - cosine of the last features, gone at 70 % of the run; only `online`."""

    @property
    def keeps(self) -> bool:
        """Whether what the teacher says is kept."""
        return self.kd != "none" and self.cache != "online"

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        usual = TeachingSettings.model_construct()
        if self.kd == "none":
            for name in ("alpha", "temperature", "cache", "hidden"):
                if getattr(self, name) != getattr(usual, name):
                    raise ValueError(f"{name} has no effect while kd is none")
        if self.cache != "online" and self.temperature != 1:
            raise ValueError("a temperature other than 1 needs --cache online: tails are not kept")
        if self.cache != "online" and self.hidden:
            raise ValueError("hidden needs --cache online: features are not kept")
        return self


class ControlSettings(Settings):
    """What `--hybrid` turns on, each also alone."""

    data_clusters: Annotated[int, Field(ge=0, le=512), Flag(panel=_HYBRID, metavar="N")] = 0
    """Every batch holds this many clusters of the text in proportion; 0 is off."""
    param_clusters: Annotated[int, Field(ge=0, le=8), Flag(panel=_HYBRID, metavar="N")] = 0
    """Layers in so many groups get bits by measured damage, at equal bytes; 0 is off."""
    controller: Annotated[
        Literal["off", "guarded"], Flag(panel=_HYBRID, choices=("off", "guarded"))
    ] = "off"
    """Changes the learning rate where paired probes on text held back prove that it helps."""
    trust: Annotated[
        Literal["off", "stable", "adaptive"],
        Flag(panel=_HYBRID, choices=("off", "stable", "adaptive")),
    ] = "off"
    """Bounds each tensor's step: StableAdamW's divisor, or a radius that adapts to probes."""
    widest: Annotated[float, Field(gt=1, le=10)] = 2.0
    """Largest factor, and one over the smallest, that the controller may put on the rate."""

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.widest != 2.0 and self.controller == "off":
            raise ValueError("widest has no effect without a controller")
        return self


class DistillSettings(TrainSettings):
    """What `eff distill` adds to any training command."""

    #: `--epochs` may decide how much is read.
    PRESET_BUDGET: ClassVar[bool] = False
    RUNS: ClassVar[tuple[str, ...]] = ("teacher",)
    #: Teachers are compared by their content, as the corpus is: they may be somewhere else now.
    FREE: ClassVar[tuple[str, ...]] = (*TrainSettings.FREE, "teacher")

    teacher: Annotated[
        tuple[Path, ...], BeforeValidator(split_names), Flag(panel=_TEACHING, metavar="RUN")
    ] = ()
    """Folder of a trained run; several, by repeating the flag, average their probabilities."""
    student: Annotated[str, Flag(panel="What to train", choices=("same", "new", *PRESETS))] = "same"
    """`same` begins with the weights of the first teacher; `new` is a new model, of --preset and
    --set; the name of a preset is one of its size."""
    epochs: Annotated[Count | None, Flag(panel="Budget", metavar="N")] = None
    """Passes over the training text, instead of another budget."""
    ternary: Annotated[bool, Flag(panel=_BITS)] = False
    """The same as --bits 1.58."""
    qat: Annotated[bool, Flag(panel=_BITS)] = False
    """Train in low bits; else the student is rounded after training, and labeled so."""
    low_bit_share: Annotated[float | None, Field(gt=0, le=1)] = None
    """Of the budget in low bits; by default all of it after a warm start, else by the bits."""
    hybrid: Annotated[bool, Flag(panel=_HYBRID)] = False
    """8 clusters of data, 4 of layers (below 16 bits), a guarded controller and an adaptive
    trust region."""
    save_metrics: Annotated[bool, Flag(panel="Run")] = False
    """Also write metrics.csv: loss, rate, costs, multiplier and radius of every step."""
    model: LowBitSettings = LowBitSettings()
    """The student; its shape is that of its teacher or of its preset."""
    teaching: TeachingSettings = TeachingSettings()
    control: ControlSettings = ControlSettings()

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, tree: Any) -> Any:
        """`ternary` and `hybrid` stand for several settings."""
        if not isinstance(tree, dict):
            return tree
        tree = dict(tree)
        if tree.get("ternary") and isinstance(tree.get("model"), dict):
            bits = tree["model"].get("bits", 16)
            if bits not in (16, TERNARY, str(TERNARY)):
                raise ValueError(f"--ternary is --bits {TERNARY}, not {bits}")
            tree["model"] = {**tree["model"], "bits": TERNARY}
        if tree.get("hybrid") and isinstance(tree.get("control", {}), dict):
            given, usual = tree.get("control", {}), ControlSettings()
            wished = {k: v for k, v in HYBRID.items() if given.get(k) in (None, getattr(usual, k))}
            model = tree.get("model", {})
            if isinstance(model, dict) and str(model.get("bits", 16)) == "16":
                wished.pop("param_clusters", None)  # floats have no bits to share out
            tree["control"] = {**given, **wished}
        return tree

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.student not in ("same", "new", *PRESETS):
            raise ValueError(f"there is no student called {self.student!r}")
        if self.student in PRESETS and self.preset != self.student:
            raise ValueError("--preset has no effect: --student names the size")
        if self.epochs is not None and any(getattr(self, name) is not None for name in BUDGETS):
            raise ValueError("epochs and another budget exclude each other")
        if self.model.bits == 16:
            for name, value in (("qat", self.qat), ("param_clusters", self.control.param_clusters)):
                if value:
                    raise ValueError(f"{name} has no effect at 16 bits: see --bits and --ternary")
        if is_mix(self.data) and self.teacher and self.teaching.keeps:
            message = "what a teacher says is kept in a corpus's folder, a mix has none"
            raise ValueError(f"{message}: --cache online, or {MIX_HINT}")
        if self.low_bit_share is not None and not self.qat:
            raise ValueError("low_bit_share has no effect without --qat")
        return self

    @classmethod
    def ground(cls, given: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """The shape and the rates of the first teacher, or the preset of the student's name."""
        student, teachers = str(given.get("student", "same")), given.get("teacher")
        if student not in ("same", "new"):
            return "", {"preset": student}
        if student == "new" or not teachers:
            return "", {}
        first = Path(split_names(teachers)[0])
        if not (first / CONFIG).exists():
            shape = given.get("model", {})
            if isinstance(shape, Mapping) and set(GPTSettings.model_fields) <= shape.keys():
                return "", {}  # a run's own settings, which were made with those of its teacher
            hint = "name the folder of a trained run, as eff baseline makes it"
            raise InputError(f"there is no run in {first}", hint)
        known = read_toml(first / CONFIG)
        try:
            if known["model"]["name"] == "phase":
                hint = "begin anew with --student and a preset"
                raise InputError("no student of few bits begins as a phase model", hint)
            return "the teacher", cls.like(known)
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{first / CONFIG} does not describe a run") from None

    @classmethod
    def like(cls, teacher: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a student takes over that begins as its teacher, of that one's settings."""
        shape = {k: v for k, v in teacher["model"].items() if k in GPTSettings.model_fields}
        kept = {name: teacher[name] for name in ("preset", "recipe", "optim", "batch")}
        return {**kept, "model": {**shape, "name": "low-bit"}}

    @property
    def share(self) -> float:
        """Of the budget in low bits: at the end of the run, while the rate falls."""
        if not self.qat:
            return 0.0
        usual = 1.0 if self.student == "same" else SHARES[self.model.bits]
        return self.low_bit_share or usual

    @property
    def shares_trunk(self) -> bool:
        """Warm starts and phases depend on the whole budget."""
        return False

    def for_text(self, tokens: int) -> Self:
        """With a budget, and a cool-down that begins with the low bits."""
        changes: dict[str, Any] = {}
        if self.epochs is not None:
            changes |= {"tokens": self.epochs * tokens, "epochs": None}
        elif all(getattr(self, name) is None for name in BUDGETS):
            changes["tokens"] = presets.read(self.preset)["tokens"]
        if self.qat and self.share < 1 and isinstance(self.schedule, WsdSettings):
            changes["schedule"] = self.schedule.model_copy(update={"cooldown": self.share})
        return self.model_copy(update=changes)


class CacheSettings(Settings):
    """What `eff distill cache` is told."""

    teacher: Annotated[
        tuple[Path, ...],
        BeforeValidator(split_names),
        Field(min_length=1),
        Flag(panel=_TEACHING, metavar="RUN"),
    ]
    """Folder of a trained run; several, by repeating the flag, average their probabilities."""
    data: Annotated[str | None, Flag(panel=_TEACHING, metavar="CORPUS", choices=prepared)] = None
    """Prepared corpus, by name or folder; by default the one prepared last."""
    cache: Annotated[
        str, AfterValidator(_is_cache), Flag(panel=_TEACHING, metavar="sampled:N|topk:K")
    ] = "sampled:12"
    """N draws or the K likeliest tokens of every position."""
    context: Annotated[Count | None, Flag(panel=_TEACHING, metavar="N")] = None
    """Tokens of a window, which must be those of the student; by default the teacher's."""
    device: DeviceSettings = DeviceSettings(compile="off")


class CheckSettings(Settings):
    """What `eff distill verify` is told."""

    file: Annotated[Path, Flag(positional=True, metavar="FILE")]
    """Packed file of a student."""
    run: Annotated[Path | None, Flag(panel="Comparison", metavar="RUN")] = None
    """Run whose model it is said to be; by default the folder that the file is in."""
    data: Annotated[str | None, Flag(panel="Comparison", metavar="CORPUS", choices=prepared)] = None
    """Corpus whose held-out text they are compared on; by default the one prepared last."""
    windows: Annotated[Count, Field(le=4096)] = 64
    """Of held-out text, at most."""


class PackSettings(Settings):
    """What `eff distill pack` is told."""

    run: Annotated[Path, Flag(positional=True, metavar="RUN")]
    """Folder of a trained run, of any command."""
    out: Annotated[Path | None, Flag(panel="Output", metavar="FILE")] = None
    """The file; by default `student.eff` in the run's folder."""
    bits: Annotated[Bits | None, Flag(panel="Output", choices=tuple(map(str, BITS)))] = None
    """Of the blocks' matrices, rounded now; by default those that it was trained with."""
    group: Annotated[int, Field(ge=0), Flag(panel="Output", metavar="N")] = 0
    """Weights of a row that share a scale, where bits are given; 0 is the whole row."""

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.group and self.bits in (None, 16):
            raise ValueError("group has no effect without --bits below 16")
        return self
