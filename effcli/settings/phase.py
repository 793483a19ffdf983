"""The shape of a phase model."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from effcli.settings.base import Count, Flag
from effcli.settings.model import GPTSettings

_PHASES = "Phases"
_NUMBERS, _ALGEBRAS = ("real", "complex"), ("pair", "complex")
TAPS = 4
"""Positions that the short convolution of queries and keys sees."""
RANK = 16
"""Of the map from features to phase increments."""


class PhaseSettings(GPTSettings):
    """A language model whose layers remember by interference. The rest is the modern recipe's."""

    place: ClassVar[str] = "effcli.engine.models.phase:Phase"
    name: Literal["phase"] = "phase"  # type: ignore[assignment]
    positions: Literal["none"] = "none"  # type: ignore[assignment]
    """Positions are known by what decays and turns."""
    qk_norm: Literal[True] = True
    """Keys and queries are phasors of length 1."""
    phase: Annotated[
        Literal["data", "rope", "none"], Flag(panel=_PHASES, choices=("data", "rope", "none"))
    ] = "data"
    """What turns keys and queries: the text, the position alone (Su et al. 2021), or nothing."""
    hybrid: Annotated[int, Field(ge=0), Flag(panel=_PHASES, metavar="N")] = 0
    """Every N-th layer is softmax attention to the last `window` positions; 0 has none."""
    window: Annotated[Count, Flag(panel=_PHASES, metavar="N")] = 256
    """Positions that a layer of attention sees."""
    states: Annotated[int, Field(ge=1, le=3), Flag(panel=_PHASES, metavar="1|2|3")] = 1
    """Memories of each head, which forget at different rates."""
    write: Annotated[Literal["add", "delta"], Flag(panel=_PHASES, choices=("add", "delta"))] = "add"
    """`delta` takes back what the memory says of a key before it writes (Yang et al. 2024)."""
    score: Annotated[Literal["real", "complex"], Flag(panel=_PHASES, choices=_NUMBERS)] = "real"
    """Weigh values by the real part of the interference, or multiply phasors by all of it."""
    algebra: Annotated[Literal["pair", "complex"], Flag(panel=_PHASES, choices=_ALGEBRAS)] = "pair"
    """`complex`: all maps of the blocks are complex-linear, and the MLP commutes with a global
    phase. It is wider, by the weights that this spares."""
    phase_dim: Annotated[Literal["full", "auto"], Flag(panel=_PHASES, choices=("full", "auto"))] = (
        "full"
    )
    """`auto` trains keys whose first quarter, half and three quarters can stand alone, by position
    as surprising as the text is; what writes then may keep fewer."""
    concepts: Annotated[int, Field(ge=0, le=2**16), Flag(panel=_PHASES, metavar="N")] = 0
    """Codes of a layer that says what each position is about; 0 has none."""
    prior: bool = False
    """Tokens begin with a bias to the concept of their cluster; of bytes it means nothing."""
    languages: Annotated[int, Field(ge=0, le=256)] = 0
    """Whose marks are the last ids, two of each; each has an angle for each pair of channels."""
    resets: Annotated[bool, Flag(panel=_PHASES)] = False
    """Nothing is remembered beyond the end of a document: each is what it is alone."""
    tracker: Annotated[bool, Flag(panel=_PHASES)] = False
    """The first head of each layer turns and forgets as counting needs it."""
    chunk: Count = 64
    """Positions that are computed at once in training; changes speed, not what is computed."""

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError("phases need an even number of channels per head")
        if self.write == "delta" and self.states > 1:
            raise ValueError("write=delta keeps one state")
        if not self.hybrid and self.window != PhaseSettings.model_fields["window"].default:
            raise ValueError("window has no effect without hybrid")
        if self.phase != "data" and self.tracker:
            raise ValueError("tracker has no effect unless phase is data")
        if self.hybrid == 1 and (self.states, self.write, self.score) != (1, "add", "real"):
            raise ValueError("with hybrid=1 no layer has a memory to set")
        if self.prior and not self.concepts:
            raise ValueError("prior has no effect without concepts")
        if self.algebra == "complex" and self.bias:
            raise ValueError("algebra=complex has no bias, which would have a phase of its own")
        if self.phase_dim == "auto" and self.pairs == 1:
            raise ValueError("phase_dim=auto needs at least two pairs of channels per head")
        if self.phase_dim == "auto" and self.resets:
            raise ValueError("resets: phase_dim=auto goes by how surprising all of a text is")
        return self

    @property
    def pairs(self) -> int:
        """Phases of the keys of each head."""
        return self.width // self.heads // 2

    @property
    def hidden(self) -> int:
        """Channels of the MLP: a block has as many weights as a GPT's of the same width."""
        products = 3 if self.activation == "swiglu" else 2
        own = self.heads * (self.states + (self.write == "delta")) + 2 * TAPS
        own += RANK + RANK // 2 if self.phase == "data" else 0
        # A complex map has half the weights, its MLP two numbers for each unit of two channels.
        share, least = (1.0, 8) if self.algebra == "pair" else (0.5, 16)
        left = products * super().hidden + (4 - 5 * share) * self.width - own
        each = products * share + (0.0 if self.algebra == "pair" else 1 / self.width)
        return max(least, round(left / each / least) * least)
