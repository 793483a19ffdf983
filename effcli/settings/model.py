"""The shape of a model."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from effcli.settings.base import Count, PartSettings


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
