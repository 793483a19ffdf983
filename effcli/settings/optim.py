"""How the weights are moved."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from effcli.settings.base import Flag, PartSettings

Rate = Annotated[float, Field(gt=0)]
LR = Flag(panel="What to train", metavar="RATE", default="the preset's")
LARGEST = 1e36  # rate of any tensor: whatever else multiplies it, a step is in float32
Momentum = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(PartSettings):
    """What every optimizer has."""

    lr: Annotated[Rate, LR]
    """Peak learning rate of the weight matrices; the other rates follow it."""
    weight_decay: Annotated[float, Field(ge=0)]
    """Decoupled weight decay of the weight matrices, per unit of learning rate."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest allowed norm of the whole gradient; 0 never clips."""
    embedding_rate: Rate
    """Rate for the embedding, as a multiple of `lr`."""
    head_rate: Rate
    """Rate for an untied head, as a multiple of `lr`."""
    scalar_rate: Rate
    """Rate for gains and biases, as a multiple of `lr`."""
    table_rate: Rate
    """AdaGrad's rate for tables of which a step reads few rows, as a multiple of `lr`."""

    @model_validator(mode="after")
    def _is_float32(self) -> Self:
        rates = (self.embedding_rate, self.head_rate, self.scalar_rate, self.table_rate)
        most = self.lr * max(1.0, *rates, self.weight_decay)
        if most > LARGEST:
            raise ValueError(f"lr={self.lr:g} makes steps of {most:.3g}, beyond float32")
        return self


class AdamSettings(OptimizerSettings):
    """What every optimizer has that moves some tensors by Adam."""

    beta1: Momentum = 0.9
    """Decay of Adam's mean of gradients."""
    beta2: Momentum = 0.95
    """Decay of Adam's mean of squared gradients."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Adam's guard against division by zero."""


class AdamWSettings(AdamSettings):
    """AdamW for every tensor (Loshchilov & Hutter 2019); only matrices decay."""

    place: ClassVar[str] = "effcli.engine.optim.adamw:route"
    name: Literal["adamw"] = "adamw"
    lr: Annotated[Rate, LR] = 1e-3
    """Peak learning rate of the weight matrices; the other rates follow it."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of the weight matrices, per unit of learning rate."""
    embedding_rate: Rate = 1.0
    """Adam's rate for the embedding, as a multiple of `lr`."""
    head_rate: Rate = 1.0
    """Adam's rate for an untied head, as a multiple of `lr`."""
    scalar_rate: Rate = 1.0
    """Adam's rate for gains and biases, as a multiple of `lr`."""
    table_rate: Rate = 100.0
    """AdaGrad's rate for tables of which a step reads few rows, as a multiple of `lr`."""


class MuonSettings(AdamSettings):
    """Muon for the blocks' matrices (Jordan et al. 2024), Adam for everything else."""

    place: ClassVar[str] = "effcli.engine.optim.muon:route"
    name: Literal["muon"] = "muon"
    lr: Annotated[Rate, LR] = 0.02
    """Peak learning rate of the blocks' matrices; the other rates follow it."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of the blocks' matrices, per unit of learning rate."""
    momentum: Momentum = 0.95
    """Nesterov momentum of Muon."""
    embedding_rate: Rate = 40.0
    """Adam's rate for the embedding, as a multiple of `lr`."""
    table_rate: Rate = 10.0
    """AdaGrad's rate for tables of which a step reads few rows, as a multiple of `lr`."""
    head_rate: Rate = 0.4
    """Adam's rate for an untied head, as a multiple of `lr`."""
    scalar_rate: Rate = 0.5
    """Adam's rate for gains and biases, as a multiple of `lr`."""
    beta1: Momentum = 0.8
    """Decay of Adam's mean of gradients."""
    beta2: Momentum = 0.99
    """Decay of Adam's mean of squared gradients."""
    eps: Annotated[float, Field(gt=0)] = 1e-10
    """Adam's guard against division by zero."""


class SGDSettings(OptimizerSettings):
    """Stochastic gradient descent with momentum; only matrices decay."""

    place: ClassVar[str] = "effcli.engine.optim.sgd:route"
    name: Literal["sgd"] = "sgd"
    lr: Annotated[Rate, LR] = 0.3
    """Peak learning rate of the weight matrices; the other rates follow it."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of the weight matrices, per unit of learning rate."""
    momentum: Momentum = 0.9
    """Decay of the mean of gradients; 0 is plain descent."""
    embedding_rate: Rate = 1.0
    """Rate for the embedding, as a multiple of `lr`."""
    head_rate: Rate = 1.0
    """Rate for an untied head, as a multiple of `lr`."""
    scalar_rate: Rate = 1.0
    """Rate for gains and biases, as a multiple of `lr`."""
    table_rate: Rate = 1.0
    """AdaGrad's rate for tables of which a step reads few rows, as a multiple of `lr`."""
