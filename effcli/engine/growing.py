"""A run whose model grows: the stages of its size, and what brings it from one to the next."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from effcli.engine.data.order import mix64
from effcli.engine.loop import Parts, train
from effcli.engine.models.gpt import GPT
from effcli.engine.models.grow import Growth
from effcli.engine.optim.optimizer import Optimizer
from effcli.engine.protocols import LanguageModel
from effcli.engine.records import Diverged, Grown, Record, Stop
from effcli.engine.runs import checkpoint
from effcli.engine.runs.trained import build_model
from effcli.engine.session import Session
from effcli.errors import CheckError, InputError
from effcli.settings.growth import Stage

WARM = 0.02  # of the budget, over which the rate climbs again
LARGEST = 1e-4  # difference of logits, as a share of the largest one


class Growing:
    """Lets the model of a run grow at shares of its budget.

    Making it puts the model of the run's newest checkpoint, or the smallest, into the parts.
    Raises InputError where a stage cannot become the next one exactly.
    """

    def __init__(self, session: Session, stages: Sequence[Stage]) -> None:
        self._session, self._stages, parts = session, stages, session.parts
        vocab_size = parts.model.vocab_size
        pairs = pairwise(settings for _, settings in stages)
        self._growths = [Growth(small, large, vocab_size) for small, large in pairs]
        self._at = self._reached()
        self._become(build_model(stages[self._at][1], vocab_size, session.settings.seed))
        shares = [share for share, _ in stages[1:]]
        parts.schedule = partial(rewarmed, base=parts.schedule, shares=shares)

    def train(self, parts: Parts, *, stop: Stop) -> Iterator[Record]:
        """Spend the budget as `loop.train` does, and grow on the way."""
        for number in range(self._at + 1, len(self._stages)):
            for record in train(parts, until=self._stages[number][0], stop=stop):
                yield record
                if isinstance(record, Diverged):
                    return
            yield self._grow(number)
        yield from train(parts, stop=stop)

    def _reached(self) -> int:
        """The stage of the newest whole checkpoint; the first where there is none."""
        place = checkpoint.newest_whole(self._session.run.checkpoints)
        if place is None:
            return 0
        shapes = [settings.model_dump_json() for _, settings in self._stages]
        if (shape := checkpoint.load_value(place, "shape")) not in shapes:
            raise InputError(f"{place} is of no size that the run in it grows through")
        return shapes.index(shape)

    def _grow(self, number: int) -> Grown:
        session, parts, (_, settings) = self._session, self._session.parts, self._stages[number]
        small, growth, meter = parts.model, self._growths[number - 1], parts.meter
        assert isinstance(small, GPT)
        tokens = torch.from_numpy(session.held_out.tokens[:1, :-1]).to(parts.device.torch)
        with meter.timing("grow"):
            large = growth.grow(small, mix64(session.settings.seed + number))
            moments = growth.moments(parts.optimizer.state_dict())
            self._at = number
            self._become(large)
            parts.optimizer.load_state_dict(moments)
            difference = apart(small, large, tokens)
        for model in (small, large):
            meter.charge("grow", model.forward_flops(*tokens.shape))
        size = (settings.width, settings.layers, large.parameter_count())
        return Grown(meter.steps, *size, difference)

    def _become(self, model: LanguageModel) -> None:
        session, parts = self._session, self._session.parts
        parts.device.adopt(model)
        parts.model, parts.optimizer = model, Optimizer(model, session.settings.optim)
        session.shape = self._stages[self._at][1].model_dump_json()


def rewarmed(progress: float, base: Callable[[float], float], shares: Sequence[float]) -> float:
    """A schedule that climbs again, from just above zero, after each of these shares."""
    factor = base(progress)
    for share in shares:
        if progress >= share:
            factor *= min(1.0, max(progress - share, 1e-3) / WARM)
    return factor


@torch.no_grad()
def apart(small: GPT, large: GPT, tokens: Tensor) -> float:
    """The largest difference of logits, in float32, as a share of the largest of them, or of 1.

    One that is not rounding is refused. A choice among concepts may turn on a rounding, and changes
    single positions: with them it is the median over positions that must be small.
    """
    with _exactly(small), _exactly(large):
        before, after = small(tokens), large(tokens)
    by_position = (after - before).abs().amax(-1) / before.abs().max().clamp(min=1.0)
    has_choices = bool(getattr(small, "concepts", ()))
    found = by_position.median() if has_choices else by_position.max()
    if not found.item() <= LARGEST:
        raise CheckError(
            f"the grown model computes something else: logits differ by {found:.1e} of the largest"
        )
    return float(by_position.max())


@contextmanager
def _exactly(model: GPT) -> Iterator[None]:
    """Compute in float32, without dropout."""
    typed = [module for module in model.modules() if isinstance(module, GPT | type(model.trunk))]
    types, is_training = [module.dtype for module in typed], model.training
    model.eval()
    for module in typed:
        module.dtype = torch.float32
    try:
        yield
    finally:
        model.train(is_training)
        for module, dtype in zip(typed, types, strict=True):
            module.dtype = dtype
