"""The shape of a model."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from effcli.settings.base import Count, Flag, PartSettings


class ModelSettings(PartSettings):
    """What every language model has."""

    context: Annotated[Count, Field(ge=2, le=2**17)] = 256
    """Tokens the model sees at once, and the length of a training sequence."""


class GPTSettings(ModelSettings):
    """A decoder-only transformer. The defaults are the modern recipe."""

    place: ClassVar[str] = "effcli.engine.models.gpt:GPT"
    name: Literal["gpt"] = "gpt"
    layers: Annotated[Count, Field(le=1024)] = 2
    """Number of blocks."""
    width: Annotated[Count, Field(le=2**16)] = 128
    """Size of the residual stream."""
    heads: Count = 2
    """Attention heads per block; `width` must be a multiple."""
    positions: Literal["learned", "rope"] = "rope"
    """Learned position embeddings (GPT-2) or rotary ones (Su et al. 2021)."""
    norm: Literal["layer", "rms"] = "rms"
    """LayerNorm with gain and bias, or RMSNorm without weights."""
    qk_norm: bool = True
    """Normalize queries and keys (Dehghani et al. 2023)."""
    activation: Literal["gelu", "relu2", "swiglu"] = "relu2"
    """Nonlinearity of the MLP; `relu2` is the square of ReLU (So et al. 2021)."""
    bias: bool = False
    """Biases in the linear layers."""
    tied: bool = False
    """Use the embedding as the head."""
    init_std: Annotated[float, Field(ge=0)] = 0.0
    """Spread of the initial matrices; 0 means one over the root of their input's width."""
    zero_init: bool = True
    """Start every block as the identity: output projections at zero."""
    embedding_norm: bool = True
    """Normalize the embedding before the first block."""
    soft_cap: Annotated[float, Field(ge=0)] = 30.0
    """Logits are squashed into ± this value by a tanh (Gemma 2); 0 leaves them alone."""
    shift: Annotated[int, Field(ge=0, le=16)] = 1
    """Positions before each one that are mixed into the input of attention and of the MLP."""
    pair_rows: Annotated[Count | Literal[0], Field(le=2**24)] = 65_536
    """Rows of a table, looked up by a hash of each token and the one before; 0 has none."""
    value_tables: bool = True
    """In each layer, add a row of a table to the values of each token (modded-nanogpt)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of activations dropped in training."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        if self.positions == "rope" and (self.width // self.heads) % 2:
            raise ValueError("rotary positions need an even number of channels per head")
        if self.shift >= self.context:
            raise ValueError(f"shift {self.shift} looks beyond a context of {self.context}")
        return self

    @property
    def hidden(self) -> int:
        """Channels of the MLP: as many products, whatever the activation."""
        return 4 * self.width if self.activation != "swiglu" else -(-8 * self.width // 3 // 8) * 8


BITS = (16, 8, 4, 2, 1.58, 1)
"""Bits of a weight; 1.58 is one of three values, 16 is a float."""


def _is_width(bits: float) -> float:
    if bits not in BITS:
        raise ValueError(f"should be one of {', '.join(map(str, BITS))}")
    return bits


Bits = Annotated[float, AfterValidator(_is_width)]


class LowBitSettings(GPTSettings):
    """A GPT whose blocks compute with few bits."""

    place: ClassVar[str] = "effcli.engine.quant.student:build"
    name: Literal["low-bit"] = "low-bit"  # type: ignore[assignment]
    bits: Annotated[Bits, Flag(panel="Bits", choices=tuple(map(str, BITS)))] = 16
    """Of the weights of the blocks; embeddings and head stay floats, and 8 bits in a file."""
    group: Annotated[int, Field(ge=0), Flag(panel="Bits", metavar="N")] = 0
    """Weights of a row that share a scale; 0 is the whole row."""
    act_bits: Literal[8, 16] = 8
    """Of what goes into a product; 16 leaves it as it is."""
    subnorm: Literal["auto", "on", "off"] = "auto"
    """A norm with a gain before each output projection; `auto` below 4 bits."""
    bits_of: dict[str, Bits] = Field(default_factory=dict)
    """Of single layers, by name, where they differ."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.group and (self.width % self.group or self.hidden % self.group):
            widths = f"{self.width} and {self.hidden}"
            raise ValueError(f"group {self.group} does not divide the rows of {widths} weights")
        return self

    @property
    def has_subnorm(self) -> bool:
        """Whether output projections have a norm of their own."""
        return self.bits < 4 if self.subnorm == "auto" else self.subnorm == "on"
