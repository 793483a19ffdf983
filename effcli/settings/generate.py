"""`eff generate`: text from a trained run. The names are those of Hugging Face."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from effcli.settings.base import Count, Flag, Settings
from effcli.settings.train import DeviceSettings


def is_text(text: str) -> str:
    """A text that can be encoded; half a pair of surrogates is what bad UTF-8 came in as."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("not valid UTF-8")
    return text


def _are_texts(prompts: tuple[str, ...]) -> tuple[str, ...]:
    if "" in prompts:
        raise ValueError("there is nothing to continue; leave it out to begin a document")
    return tuple(map(is_text, prompts))


Prompts = Annotated[
    tuple[str, ...], AfterValidator(_are_texts), Flag(positional=True, metavar="PROMPT")
]
PhaseDim = Literal["full", "auto"] | Count
Mark = Annotated[str, Field(min_length=1)]


class SamplingSettings(Settings):
    """How the next token is chosen from the model's probabilities."""

    max_new_tokens: Annotated[Count, Flag(panel="Text", metavar="N")] = 200
    """Tokens to add at most."""
    temperature: Annotated[float, Field(ge=0), Flag(panel="Sampling", metavar="X")] = 0.8
    """Above 1 is bolder, below 1 safer; 0 always takes the most likely token."""
    top_k: Annotated[int, Field(ge=0), Flag(panel="Sampling", metavar="N")] = 0
    """Keep only the N most likely tokens; 0 keeps all."""
    top_p: Annotated[float, Field(gt=0, le=1), Flag(panel="Sampling", metavar="X")] = 0.95
    """Keep only the most likely tokens that together have this probability."""
    min_p: Annotated[float, Field(ge=0, le=1), Flag(panel="Sampling", metavar="X")] = 0.0
    """Keep only tokens at least this probable, relative to the most likely one."""
    typical_p: Annotated[float, Field(gt=0, le=1), Flag(panel="Sampling", metavar="X")] = 1.0
    """Keep only the tokens nearest to the expected surprise that together have this probability."""
    repetition_penalty: Annotated[float, Field(gt=0), Flag(panel="Sampling", metavar="X")] = 1.0
    """Above 1, tokens that occurred before become less likely (Keskar et al. 2019)."""
    no_repeat_ngram_size: Annotated[
        int, Field(ge=0, le=1024), Flag(panel="Sampling", metavar="N")
    ] = 0
    """Never write N tokens in a row that stood there before; 0 allows it."""
    dry_multiplier: Annotated[float, Field(ge=0), Flag(panel="Sampling", metavar="X")] = 0.0
    """Makes a repetition the less likely, the longer it is already (DRY); 0.8 is usual."""
    dry_base: Annotated[float, Field(ge=1)] = 1.75
    """By what the penalty of DRY grows with each token that is repeated."""
    dry_allowed_length: Annotated[int, Field(ge=1, le=1024)] = 2
    """Tokens that may be repeated before DRY counts."""
    coherence: Annotated[float, Field(ge=0), Flag(panel="Sampling", metavar="X")] = 0.0
    """Favors tokens in phase with the last ones; if these repeat the text, DRY counts for more."""
    anneal: Annotated[float, Field(ge=0), Flag(panel="Sampling", metavar="X")] = 0.0
    """Hotter where phases are more stable than is usual in the text, cooler where less."""
    loop_guard: Annotated[bool, Flag(panel="Text")] = False
    """End a text whose last 64 tokens are one piece of at most 16 over and over."""
    stop: Annotated[tuple[Mark, ...], Flag(panel="Text", metavar="TEXT")] = ()
    """End where this text appears; may be given several times."""
    num_return_sequences: Annotated[Count, Field(le=256), Flag(panel="Text", metavar="N")] = 1
    """How many texts to write."""
    seed: Annotated[int, Field(ge=0, lt=2**63), Flag(panel="Sampling", metavar="N")] = 0
    """Decides every choice."""
    language: Mark | None = None
    """Language to write, of a model that was trained with --languages; by default its first."""

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if not self.dry_multiplier:
            for name in ("dry_base", "dry_allowed_length"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} has no effect while dry_multiplier is 0")
        if self.anneal and not self.temperature:
            raise ValueError("anneal has no effect at temperature 0")
        return self


class GenerateSettings(SamplingSettings):
    """What `eff generate` needs."""

    run: Annotated[Path, Flag(positional=True, metavar="RUN")]
    """Folder of a run, or the packed file of a student."""
    prompts: Prompts = ()
    """Texts to continue, all at once; without one, a new document is begun."""
    phase_dim: PhaseDim = "full"
    """Keep the first N phases of each head of a phase model: less work, and less to remember.
    `auto` keeps as many as the text is surprising, which spares nothing."""
    device: DeviceSettings = DeviceSettings(compile="off")

    @property
    def begun(self) -> tuple[str, ...]:
        """What is gone on from: a document that has nothing yet, if nothing was given."""
        return self.prompts or ("",)
