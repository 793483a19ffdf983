"""The parts of a plain run. A method replaces the one that it is about."""

from functools import partial

from effcli.engine.data.batches import Shuffled
from effcli.engine.data.corpus import Split
from effcli.engine.device import Device
from effcli.engine.loop import Parts
from effcli.engine.measure.meter import Budget, Meter
from effcli.engine.objectives.next_token import NextToken
from effcli.engine.optim.optimizer import Optimizer
from effcli.engine.plan import micro_batch
from effcli.engine.protocols import LanguageModel
from effcli.registry import resolve_place
from effcli.settings.train import TrainSettings


def assemble(settings: TrainSettings, model: LanguageModel, text: Split, device: Device) -> Parts:
    """What the loop moves, for a model that is where it will run, or nowhere (meta)."""
    return Parts(
        model=model,
        batches=Shuffled(text, model.context, settings.batch.sequences, settings.seed),
        objective=NextToken(settings.device.loss_rows),
        optimizer=Optimizer(model, settings.optim),
        schedule=partial(resolve_place(settings.schedule.place), settings=settings.schedule),
        meter=Meter(),
        budget=Budget(settings),
        device=device,
        micro=micro_batch(settings, model.context, device),
    )
