"""What a run in low bits tells of its codes: at every look in its phase, once, and resumably."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from exactness import differences
from hypothesis import given, settings
from hypothesis import strategies as st

from effcli.engine.control.strata import StrataFound, Stratified
from effcli.engine.data.corpus import Corpus
from effcli.engine.measure.meter import Meter
from effcli.engine.models.gpt import GPT
from effcli.engine.objectives.distillation import Distillation
from effcli.engine.objectives.signals import Terms
from effcli.engine.protocols import Batch, BatchSource, Loss
from effcli.engine.quant.bitlinear import bit_layers, quantize
from effcli.engine.quant.codes import FORMATS
from effcli.engine.quant.diagnosed import CodesFound, Diagnosed
from effcli.engine.records import Notice, Record
from effcli.engine.teaching.taught import Taught
from effcli.settings.model import GPTSettings


class _Nothing:
    """A source that has nothing to read and nothing to tell."""

    unique_tokens = 0

    def draw(self, progress: float) -> Batch:
        empty = torch.zeros(0, 1, dtype=torch.long)
        return Batch(empty, empty, empty[:, 0])

    def feedback(self, batch: Batch, loss: Loss) -> None: ...

    def hear(self, loss: float) -> list[Record]:
        return []

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class _Run:
    """A model that moves at random instead of being trained, and what is told of it."""

    def __init__(
        self, share: float = 1.0, bits: float = 1.58, inner: BatchSource | None = None
    ) -> None:
        shape: dict[str, Any] = {"layers": 1, "width": 16, "heads": 2, "context": 8}
        self.model, self.meter = GPT(GPTSettings(**shape, pair_rows=7), 33, 0), Meter()
        quantize(self.model, bits)  # type: ignore[arg-type]
        self.layers = bit_layers(self.model).values()
        for number, layer in enumerate(self.layers):
            torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(number))
        self.source = Diagnosed(inner or _Nothing(), self.model, share, self.meter)

    def step(self, progress: float, by: float = 0.1) -> None:
        self.source.draw(progress)
        generator = torch.Generator().manual_seed(self.meter.steps)
        with torch.no_grad():
            for layer in self.layers:
                layer.weight += by * torch.randn(layer.weight.shape, generator=generator)
        self.meter.steps += 1

    def fill(self, share: float) -> None:
        """Make this share of the weights zeros, and the others alike."""
        with torch.no_grad():
            for layer in self.layers:
                flat = torch.ones(layer.weight.numel())
                flat[: int(share * len(flat))] = 0
                layer.weight.copy_(flat.view_as(layer.weight))


def _codes(told: Sequence[Record]) -> CodesFound:
    assert isinstance(told[0], CodesFound)
    return told[0]


def _lines(told: Sequence[Record]) -> list[str]:
    return [record.text for record in told if isinstance(record, Notice)]


@given(bits=st.sampled_from(list(FORMATS)), by=st.sampled_from([0.0, 1e-3, 0.3, 5.0]))
@settings(max_examples=15)
def test_shares_are_shares_and_codes_flip_only_where_weights_move(bits: float, by: float) -> None:
    run = _Run(bits=bits)
    first = _codes(run.source.hear(3.0))
    for number in range(3):
        run.step(0.1 * number, by)
    found = _codes(run.source.hear(2.0))
    assert (first.step, first.steps, first.flips) == (0, 0, None)
    assert (found.step, found.steps) == (3, 3)
    for one in (first, found):
        assert all(0 <= share <= 1 for share in (one.zeros, one.dead_zone, one.flips or 0))
    assert found.flips is not None
    if by == 0:
        assert {**asdict(found), "step": 0, "steps": 0, "flips": None} == asdict(first)
        assert found.flips == 0
    if by == 5:
        assert found.flips > 0.01


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_floats_are_not_looked_at_and_no_weights_twice(share: float) -> None:
    run = _Run(share)
    assert run.source.hear(3.0) == []
    run.step(1 - share - 1e-9)
    assert run.source.hear(3.0) == []
    run.step(1 - share)
    assert _codes(run.source.hear(3.0)).step == 2
    assert run.source.hear(3.0) == []
    assert run.meter.seconds["eval"] > 0
    assert run.meter.spent_seconds() == 0


def test_a_warning_is_given_once_and_none_before_a_step() -> None:
    run = _Run()
    run.fill(1.0)
    assert not _lines(run.source.hear(3.0))  # as matrices begin that begin with nothing
    seen = []
    for share in (0.9, 0.85, 0.3, 0.95):
        run.step(0.5, by=0.0)
        run.fill(share)
        seen.append(_lines(run.source.hear(3.0)))
    assert len(seen[0]) == len(run.layers)
    assert all("90% of" in line for line in seen[0])
    assert seen[1:] == [[], [], []]
    again = _Run()
    again.source.load_state_dict(run.source.state_dict())
    again.step(0.5)
    again.fill(0.9)
    assert not _lines(again.source.hear(3.0))


@pytest.mark.parametrize(("loss", "count"), [(2.9, 0), (2.995, 1), (3.1, 1)])
def test_codes_that_rest_are_frozen_only_where_the_loss_stands_still(
    loss: float, count: int
) -> None:
    run = _Run()
    run.source.hear(3.0)
    run.step(0.5, by=0.0)
    assert sum("frozen" in line for line in _lines(run.source.hear(loss))) == count


def test_it_goes_on_from_any_step_and_a_state_stays_what_it_was() -> None:
    def go(run: _Run, begin: int, end: int) -> list[Record]:
        told = []
        for number in range(begin, end):
            run.step(number / 12, by=0.02)
            if number % 3 == 2:
                told += run.source.hear(3.0 - number / 1e4)
        return told

    whole = _Run(0.75)
    order = go(whole, 0, 12)
    assert [type(record) for record in order].count(CodesFound) == 3
    for cut in range(12):
        begun, resumed = _Run(0.75), _Run(0.75)
        told = go(begun, 0, cut)
        state, weights = begun.source.state_dict(), begun.model.state_dict()
        weights = {name: tensor.clone() for name, tensor in weights.items()}
        go(begun, cut, 12)  # what comes later is not in the state
        resumed.model.load_state_dict(weights)
        resumed.meter.steps = cut
        resumed.source.load_state_dict(state)
        assert told + go(resumed, cut, 12) == order
        assert not differences(resumed.source.state_dict(), whole.source.state_dict())


def test_who_stands_around_a_source_loses_nothing_of_what_it_tells(corpus: Corpus) -> None:
    windows = corpus.train.windows(8)
    inner = Stratified(corpus.train, 8, 4, 0, np.arange(windows) % 3)
    run = _Run(inner=Taught(inner, Distillation(Terms(), 3.0), None))
    run.step(0.0)
    told = run.source.hear(2.5)  # the teacher is no better
    assert [type(record) for record in told] == [StrataFound, Notice, CodesFound]
    assert isinstance(run.source, BatchSource)
    assert run.source.unique_tokens == 4 * 8
