"""A GPT whose blocks have few bits, and the part of its training in which they get few."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from effcli.engine.models.gpt import GPT
from effcli.engine.optim.optimizer import Optimizer
from effcli.engine.protocols import LanguageModel
from effcli.engine.quant.bitlinear import (
    bit_layers,
    calibrate,
    linear_layers,
    quantize,
    set_blend,
)
from effcli.errors import InputError
from effcli.settings.model import LowBitSettings

LOW = (".gain", ".blend")  # what a layer of few bits has, and one of floats has not
RAMP = 0.05  # of the phase: rounding is blended in, so that the loss does not jump


def build(settings: LowBitSettings, vocab_size: int, seed: int = 0) -> GPT:
    """The float model with its initial weights, computing with few bits; 16 leave it as it is."""
    model = GPT(settings, vocab_size, seed)
    bits = {name: settings.bits_of.get(name, settings.bits) for name in linear_layers(model)}
    quantize(model, bits, settings.group, settings.act_bits, subnorm=settings.has_subnorm)
    return model


class Phase:
    """A schedule whose last part is in few bits: floats before, weights without decay after.

    `share` is of the budget; 0 stays with floats. Where the phase begins, the gains of
    sub-norms are fitted to `text`, so that the function stays what it was. Whether they were is
    asked once, and again where weights were loaded: a look at them makes a GPU wait.
    """

    def __init__(
        self,
        schedule: Callable[[float], float],
        model: LanguageModel,
        optimizer: Optimizer,
        share: float,
        text: Iterable[Tensor],
    ) -> None:
        self._schedule, self._model, self._optimizer = schedule, model, optimizer
        self._share, self._text = share, text
        self._has_gains = False
        model.register_load_state_dict_post_hook(self._ask_again)  # type: ignore[no-untyped-call]

    def _ask_again(self, *_: Any) -> None:
        self._has_gains = False

    def __call__(self, progress: float) -> float:
        """The factor of the learning rate."""
        done = (progress - (1 - self._share)) / self._share if self._share else -1.0
        if done >= 0 and not self._has_gains:
            fit_gains(self._model, self._text)
            self._has_gains = True
        set_blend(self._model, min(1.0, max(0.0, done / RAMP)))
        self._optimizer.decays = done < 0
        return self._schedule(progress)


def complete(model: LanguageModel, text: Iterable[Tensor]) -> bool:
    """Leave the model in its few bits, wherever its phase ended; returns whether that moved it."""
    was_there = is_low(model)
    fit_gains(model, text)
    set_blend(model, 1.0)
    return not was_there


def fit_gains(model: LanguageModel, text: Iterable[Tensor]) -> None:
    """Fit the gains of sub-norms, unless something has moved them: then they are not all ones."""
    if lacks_gains(model):
        calibrate(model, text)


def lacks_gains(model: LanguageModel) -> bool:
    """Whether there are sub-norms whose gains were never fitted."""
    gains = [layer.gain for layer in bit_layers(model).values() if layer.gain is not None]
    return bool(gains) and all(bool((gain == 1).all()) for gain in gains)


def is_low(model: LanguageModel) -> bool:
    """Whether it computes with its few bits alone, as it does at the end of its training."""
    is_whole = all(float(layer.blend) == 1 for layer in bit_layers(model).values())
    return is_whole and not lacks_gains(model)


def warm_start(model: LanguageModel, weights: dict[str, Any]) -> None:
    """Begin with the weights of a model of the same shape, floats or not."""
    own = model.state_dict()
    shapes = {name: tensor.shape for name, tensor in own.items() if not name.endswith(LOW)}
    theirs = {name: w.shape for name, w in weights.items() if not name.endswith(LOW)}
    if shapes != theirs:
        hint = "leave its shape alone, or begin anew with --student and a preset"
        raise InputError("the student is to begin as its teacher, and has another shape", hint)
    kept = {name: tensor for name, tensor in own.items() if name.endswith(".blend")}
    model.load_state_dict(own | {name: weights[name] for name in own.keys() & weights} | kept)
