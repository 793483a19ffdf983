"""The trust region bounds every update, leaves alone what it need not cut, and resumes exactly."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Settings
from torch import nn

from effcli.engine.assemble import assemble
from effcli.engine.control.probes import Probe, aside
from effcli.engine.control.trust import LEAST, MOST, TrustRegion
from effcli.engine.data.corpus import Corpus
from effcli.engine.device import Device
from effcli.engine.loop import Parts, train
from effcli.engine.measure.evaluate import HeldOut
from effcli.engine.measure.meter import Meter
from effcli.engine.objectives.next_token import NextToken
from effcli.engine.optim.optimizer import Group, Move, Optimizer
from effcli.engine.protocols import Batch, LanguageModel
from effcli.engine.runs.trained import build_model
from effcli.errors import InputError
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve

SMALL = ["model.layers=2", "model.width=16", "model.heads=2", "model.context=8"]
TEXT = torch.randint(0, 20, (6, 9), generator=torch.Generator().manual_seed(3))
BATCH = Batch(TEXT[:, :-1], TEXT[:, 1:], torch.arange(6))


def _pair(name: str, *assignments: str) -> tuple[LanguageModel, Optimizer]:
    """The default recipe, so there are matrices, gains, tables with sparse gradients and decay."""
    shape = [*SMALL, "model.bias=true", "model.zero_init=false"]
    sets = [f"optim.name={name}", *shape, *assignments]
    settings = resolve(BaselineSettings, {}, sets).settings
    model = build_model(settings.model, 20, 0)
    return model, Optimizer(model, settings.optim)


def _backward(model: LanguageModel) -> None:
    NextToken()(model, BATCH).mean.backward()


def _copies(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _rms(values: torch.Tensor) -> float:
    return values.double().square().mean().sqrt().item()


def _probe(model: LanguageModel, meter: Meter | None = None) -> Probe:
    return Probe(model, NextToken(), BATCH, meter or Meter())


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("kind", ["fixed", "adaptive"])
def test_what_is_not_cut_keeps_its_bits(name: str, kind: Any) -> None:
    ends = []
    for guarded in (False, True):
        model, optimizer = _pair(name, "optim.lr=1e-5")
        if guarded:
            probe = _probe(model) if kind == "adaptive" else None
            guard = optimizer.guard = TrustRegion(kind, radius=MOST, probe=probe, every=2)
        for _ in range(4):
            _backward(model)
            optimizer.step(1.0)
            optimizer.zero_grad()
        ends.append(_copies(model) | optimizer._parts[0].state_dict()["state"][0])
    assert guard.activation_rate == 0
    assert "changed nothing" in (guard.warning() or "")
    for name, end in ends[0].items():
        assert torch.equal(end, ends[1][name]), name


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_bound_holds_for_every_tensor_after_every_step(name: str) -> None:
    """Those that begin at nothing have a floor of their own: the head, tables and biases."""
    model, optimizer = _pair(name, "optim.lr=0.3", "optim.weight_decay=0.2")
    guard = optimizer.guard = TrustRegion("fixed", radius=0.01)
    began = _copies(model)
    decays = {tensor: g.lr * g.weight_decay for g in optimizer.groups for tensor, _ in g.tensors}
    rows = {tensor for g in optimizer.groups if g.rule == "rows" for tensor, _ in g.tensors}
    cut, floors = 0, set()
    for _ in range(5):
        before = _copies(model)
        _backward(model)
        optimizer.step(0.7)
        optimizer.zero_grad()
        for tensor, parameter in model.named_parameters():
            old = before[tensor].double()
            update = parameter.detach().double() - old * (1 - 0.7 * decays[tensor])
            usual = old.shape[-1] ** -0.5 if old.ndim > 1 and tensor not in rows else 1.0
            floor = usual if _rms(began[tensor]) < 0.05 * usual else 1e-3
            floors.add((floor, floor == usual))
            bound = 0.01 * max(_rms(old), floor)
            assert _rms(update) <= bound * (1 + 1e-4), tensor
            cut += _rms(update) > bound * (1 - 1e-4)
    assert cut > 20
    assert floors == {(1e-3, False), (0.25, True), (1.0, True)}
    assert 0.3 < guard.activation_rate <= 1


def test_a_table_is_bounded_by_the_rows_that_are_read_and_no_other_row_moves() -> None:
    model, optimizer = _pair("muon", "optim.lr=0.3")
    optimizer.guard = TrustRegion("fixed", radius=0.01)
    name = "trunk.tables.value_tables.0.weight"
    read = torch.unique(TEXT[:, :-1])[:-1]  # all but one of the tokens
    batch = torch.where(read.max() + 1 == TEXT, read[0], TEXT)
    for _ in range(3):
        before = _copies(model)[name]
        NextToken()(model, Batch(batch[:, :-1], batch[:, 1:], torch.arange(6))).mean.backward()
        gradient = dict(model.named_parameters())[name].grad
        assert gradient is not None
        assert gradient.is_sparse
        rows = gradient.coalesce().indices()[0]
        optimizer.step(1.0)
        optimizer.zero_grad()
        change = _copies(model)[name] - before
        others = torch.ones(len(change), dtype=torch.bool).scatter_(0, rows, value=False)
        assert others.any()
        assert not change[others].any()
        assert _rms(change[rows]) == pytest.approx(0.01 * max(1.0, _rms(before[rows])), rel=1e-4)


def test_stable_divides_adams_update_by_its_surprise() -> None:
    """A reference in float64, over steps whose gradients jump."""
    parameter = nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
    adam = torch.optim.AdamW([parameter], lr=0.1, betas=(0.8, 0.9), eps=1e-8, weight_decay=0.3)
    group = Group("adamw", 0.1, 0.3, [("p", parameter)])
    guard = TrustRegion("stable")
    theta = parameter.detach().double().clone()
    mean = squares = torch.zeros(3, 4, dtype=torch.float64)
    divisors = []
    for t, size in enumerate((1.0, 1.0, 1.0, 40.0, 1.0), start=1):
        generator = torch.Generator().manual_seed(t)
        gradient = size * torch.randn(3, 4, generator=generator)
        parameter.grad = gradient.clone()
        guard.step([Move(group, parameter, adam)])
        g = gradient.double()
        mean, squares = 0.8 * mean + 0.2 * g, 0.9 * squares + 0.1 * g**2
        v = squares / (1 - 0.9**t)
        divisors.append(max(1.0, (g**2 / v).mean().sqrt().item()))
        step = mean / (1 - 0.8**t) / (v.sqrt() + 1e-8)
        theta = theta * (1 - 0.1 * 0.3) - 0.1 * step / divisors[-1]
        assert torch.allclose(parameter.double(), theta, atol=1e-6)
    assert divisors[0] == pytest.approx(1)
    assert divisors[3] > 1.5
    assert 0 < guard.activation_rate < 1


def test_stable_leaves_muon_and_tables_alone() -> None:
    ends = []
    for guard in (None, TrustRegion("stable")):
        model, optimizer = _pair("muon")
        optimizer.guard = guard
        for _ in range(3):
            _backward(model)
            optimizer.step(1.0)
            optimizer.zero_grad()
        rules = {t: g.rule for g in optimizer.groups for t, _ in g.tensors}
        ends.append({t: p for t, p in _copies(model).items() if rules[t] != "adamw"})
    assert guard is not None
    assert guard._moved == 3 * sum(rule == "adamw" for rule in rules.values())
    model, optimizer = _pair("muon")
    optimizer.guard = TrustRegion("stable")
    _backward(model)
    before = _copies(model)
    optimizer.step(1.0)
    assert all(not torch.equal(before[t], p) for t, p in model.named_parameters())


class _Slope:
    """A probe of one tensor, whose loss is what the test says."""

    def __init__(self, gains: list[float]) -> None:
        self._gains, self.meter = gains, Meter()

    def gradients(self, parameters: Any) -> tuple[float, list[torch.Tensor]]:
        return 0.0, [torch.ones_like(p) for p in parameters]

    def loss(self) -> float:
        return -self._gains.pop(0)


HERE = 0.02


def _radii(gains: list[float], gradient: float, **options: Any) -> list[float]:
    """Of a tensor of ones that gradient descent moves by 0.1 times its gradient, 4 numbers."""
    parameter = nn.Parameter(torch.ones(4))
    sgd = torch.optim.SGD([parameter], lr=0.1)
    group = Group("adamw", 0.1, 0.0, [("p", parameter)])
    probe: Any = _Slope(list(gains))
    guard = TrustRegion("adaptive", radius=HERE, probe=probe, every=1, **options)
    radii = []
    for _ in gains:
        parameter.grad = torch.full((4,), gradient)
        guard.step([Move(group, parameter, sgd)])
        radii.append(guard.radius)
    return radii


def test_the_radius_halves_where_steps_disappoint_and_doubles_where_they_are_cut() -> None:
    # The step is cut to the radius, 0.02, so four slopes of 1 promise 0.08.
    assert _radii([0.2 * 0.08, 0.2 * 0.04], 1.0) == [HERE / 2, HERE / 4]
    assert _radii([0.2 * 0.08, 0.3 * 0.04], 1.0) == [HERE / 2] * 2  # a new region, a new look
    assert _radii([0.9 * 0.08], 1.0) == [2 * HERE]
    assert _radii([0.5 * 0.08], 1.0) == [HERE]
    assert _radii([1.0], 1e-6) == [HERE]  # good, but nothing was cut
    assert _radii([0.5], -1.0) == [HERE / 2]  # the step went up the slope
    assert _radii([math.nan], 1.0) == [HERE / 2]
    assert _radii([-1.0] * 12, 1.0)[-1] == LEAST
    assert _radii([9.0] * 8, 1.0)[-1] == MOST


def test_a_small_promise_that_is_missed_does_not_outweigh_a_large_one_that_was_kept() -> None:
    """The ratio of means: one step that promises next to nothing decides nothing."""
    parameter = nn.Parameter(torch.ones(4))
    sgd = torch.optim.SGD([parameter], lr=0.1)
    group = Group("adamw", 0.1, 0.0, [("p", parameter)])
    probe: Any = _Slope([0.05, -0.004])
    guard = TrustRegion("adaptive", radius=HERE, probe=probe, every=1)
    for gradient in (1.0, 1e-4):  # promises of 0.08 and of 0.00004
        parameter.grad = torch.full((4,), gradient)
        guard.step([Move(group, parameter, sgd)])
    assert guard.radius == HERE


def test_the_promise_is_the_gradients_and_costs_are_billed_apart() -> None:
    """Of steps so small that their effect is linear; in float64, with decay and cuts."""
    sets = ("optim.lr=3e-5", "optim.weight_decay=0.5", "model.value_tables=false")
    model, optimizer = _pair("adamw", *sets, "model.pair_rows=0")
    seen: list[tuple[float, float]] = []

    class Told(TrustRegion):
        def _adapt(self, promise: float, gain: float) -> None:
            seen.append((promise, gain))

    meter = Meter()
    optimizer.guard = Told("adaptive", radius=LEAST, probe=_probe(model.double(), meter), every=1)
    for _ in range(3):
        _backward(model)
        optimizer.step(1.0)
        optimizer.zero_grad()
    assert all(gain == pytest.approx(promise, rel=0.02) for promise, gain in seen)
    forward = model.forward_flops(6, 8)
    assert meter.flops["meta"] == 3 * (2 * forward + model.backward_flops(6, 8))
    assert sum(meter.flops.values()) == meter.flops["meta"]
    assert meter.seconds["meta"] > 0


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_promise_is_of_the_whole_way_in_tables_too(name: str) -> None:
    model, optimizer = _pair(name, "optim.lr=0.05", "optim.weight_decay=0.5")
    other = torch.randint(0, 20, (6, 9), generator=torch.Generator().manual_seed(8))
    probe = Probe(model, NextToken(), Batch(other[:, :-1], other[:, 1:], BATCH.ids), Meter())
    seen: list[float] = []

    class Told(TrustRegion):
        def _adapt(self, promise: float, gain: float) -> None:
            seen.append(promise)

    guard = optimizer.guard = Told("adaptive", radius=0.05, probe=probe, every=1)
    for _ in range(3):
        before = _copies(model)
        parameters = dict(model.named_parameters())
        _, slopes = probe.gradients(list(parameters.values()))
        _backward(model)
        optimizer.step(1.0)
        optimizer.zero_grad()
        ways = [parameters[tensor].detach() - old for tensor, old in before.items()]
        pairs = zip(slopes, ways, strict=True)
        dots = [(slope.to_dense() * way).sum() for slope, way in pairs if slope is not None]
        assert seen[-1] == pytest.approx(-float(torch.stack(dots).sum()), rel=1e-3)
    assert 0 < guard.activation_rate < 1


def test_looking_leaves_gradients_dropout_and_random_numbers_alone() -> None:
    model, _ = _pair("muon", "model.dropout=0.3")
    model.train()
    _backward(model)
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    state = torch.get_rng_state()
    probe = _probe(model)
    loss, _ = probe.gradients(list(model.parameters()))
    assert loss == probe.loss()
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad.to_dense(), before[name].to_dense())


def _parts(settings: BaselineSettings, corpus: Corpus, kind: Any) -> Parts:
    model = build_model(settings.model, corpus.tokenizer.vocab_size, settings.seed)
    device = Device(settings.device)
    device.adopt(model)
    parts = assemble(settings, model, corpus.train, device)
    windows = aside(corpus.val, corpus.tokenizer.token_bytes, 32, 20, 8)
    probe = Probe.of(parts, windows) if kind == "adaptive" else None
    parts.optimizer.guard = TrustRegion(kind, radius=HERE, probe=probe, every=3)
    return parts


@pytest.mark.parametrize(
    ("kind", "cut"), [("stable", 4), ("fixed", 4), *(("adaptive", cut) for cut in (1, 2, 3, 5))]
)
def test_a_run_goes_on_from_any_step_bit_for_bit(
    tiny: Settings, corpus: Corpus, kind: Any, cut: int
) -> None:
    """The radius has changed by then, and changes again."""
    settings = tiny("optim.lr=0.2", "model.layers=1", steps=7)
    whole, first, second = (_parts(settings, corpus, kind) for _ in range(3))
    rest = [record.as_row() for record in train(whole)][cut:]
    for _ in zip(range(cut), train(first), strict=False):
        pass
    weights, state = copy.deepcopy((first.model.state_dict(), first.state_dict()))
    second.model.load_state_dict(weights)
    second.load_state_dict(state)
    again = [record.as_row() for record in train(second)]
    for one, other in zip(rest, again, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.optimizer.guard is not None
    assert second.optimizer.guard is not None
    assert whole.optimizer.guard.state_dict() == second.optimizer.guard.state_dict()
    assert kind != "adaptive" or whole.optimizer.guard.state_dict()["radius"] != HERE


def test_windows_set_aside_are_not_judged(corpus: Corpus) -> None:
    token_bytes = corpus.tokenizer.token_bytes
    judged = HeldOut.of(corpus.val, token_bytes, 32, 640)
    free = aside(corpus.val, token_bytes, 32, len(judged.tokens), 16)
    assert len(free.tokens) == 16
    assert not set(map(bytes, judged.tokens)) & set(map(bytes, free.tokens))
    assert free.bytes == token_bytes[free.tokens[:, 1:]].sum()
    everything = corpus.val.windows(32)
    most = aside(corpus.val, token_bytes, 32, len(judged.tokens), 10**9)
    assert len(most.tokens) == everything - len(judged.tokens)
    both = np.concatenate((most.tokens, judged.tokens))
    assert len(np.unique(both, axis=0)) >= len(np.unique(most.tokens, axis=0))
    with pytest.raises(InputError, match=r"all but 5 of the .* windows") as raised:
        aside(corpus.val, token_bytes, 32, everything - 5, 16)
    assert "evaluation.tokens" in (raised.value.hint or "")
