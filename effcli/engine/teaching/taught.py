"""A run whose student is taught: its batches bring what was said, its objective listens."""

from typing import Any

import numpy as np

from effcli.engine.data.around import Around
from effcli.engine.loop import Parts
from effcli.engine.objectives.distillation import Bridge, Distillation
from effcli.engine.objectives.signals import TaughtBatch, Terms
from effcli.engine.optim.optimizer import Optimizer
from effcli.engine.protocols import Batch, BatchSource
from effcli.engine.records import Record
from effcli.engine.teaching.cache import TeacherCache
from effcli.engine.teaching.teachers import Teachers
from effcli.errors import InputError
from effcli.settings.train import TrainSettings


def teach(
    parts: Parts,
    terms: Terms,
    teacher: Teachers | TeacherCache,
    teacher_loss: float,
    settings: TrainSettings,
) -> Distillation:
    """Put a teacher, or what it said, into the parts of a run that has not begun.

    `teacher_loss` is held-out, in nats per token. Refuses terms that do not go with a cache,
    and a cache of windows of another length.
    """
    rows, width = settings.device.loss_rows, parts.model.head.shape[1]
    if isinstance(teacher, TeacherCache):
        terms.require(teacher.request.form.mode)
        distillation = Distillation(terms, teacher_loss, rows=rows)
        parts.batches = Taught(parts.batches, distillation, teacher)
    else:
        teacher.require_context(parts.model.context)
        bridge = Bridge(width, teacher.widths, settings.seed) if terms.hidden else None
        distillation = Distillation(terms, teacher_loss, teacher, bridge, rows)
        parts.batches = Taught(parts.batches, distillation, None)
        if bridge is not None and bridge.weights:
            # For as long as its tensors are routed the bridge is the model's. So it is moved like
            # any of the model's tensors, with moments of its own, and is not in the model's file.
            parts.model.bridge = bridge.to(parts.device.torch)
            parts.optimizer = Optimizer(parts.model, settings.optim)
            del parts.model.bridge
    parts.objective = distillation
    return distillation


class Taught(Around):
    """A source whose batches bring what was said about their windows.

    It also tells the objective how far the run is and what held-out losses are, and keeps its
    state, since it is what a loop tells these things and whose state a run keeps.
    """

    def __init__(
        self, batches: BatchSource, distillation: Distillation, cache: TeacherCache | None
    ) -> None:
        super().__init__(batches)
        self._distillation, self._cache = distillation, cache
        self._is_on_grid = False

    def draw(self, progress: float) -> Batch:
        """The next batch."""
        batch = super().draw(progress)
        self._distillation.progress = progress
        if self._cache is None or not self._distillation.listens:
            return batch
        if not self._is_on_grid:
            self._require_grid(self._cache, batch)
            self._is_on_grid = True
        return TaughtBatch.of(batch, self._cache.said(batch.ids.numpy()))

    def _require_grid(self, cache: TeacherCache, batch: Batch) -> None:
        """What was said about a window is of no use for another text, however similar."""
        request, time = cache.request, batch.inputs.shape[1]
        if time == request.context:
            starts = batch.ids.numpy() * time
            if np.array_equal(request.corpus.train.read(starts, time), batch.inputs.numpy()):
                return
        message = f"the windows that are read are not the cache's, of {request.context} tokens each"
        raise InputError(message, "the teacher was asked about others: make a cache for these")

    def hear(self, loss: float) -> list[Record]:
        """What is new about the teacher, if anything, comes after what is new about the text."""
        told, notice = super().hear(loss), self._distillation.hear(loss)
        return told if notice is None else [*told, notice]

    def state_dict(self) -> dict[str, Any]:
        """Of the source and of the objective."""
        return {**super().state_dict(), "distillation": self._distillation.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        super().load_state_dict(state)
        self._distillation.load_state_dict(state["distillation"])
