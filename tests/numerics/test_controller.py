"""A learning rate leaves its schedule where that pays, at a known price, and resumes exactly."""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Settings
from exactness import differences, final_state, stopping_after
from numpy.typing import NDArray

from effcli.engine.assemble import assemble
from effcli.engine.control import trial
from effcli.engine.control.advisor import Advisor, Arm, Features, Outcome
from effcli.engine.control.controller import Controller, Decision, Terms, decision_points
from effcli.engine.control.guided import GuidedParts, Inclusive, guided
from effcli.engine.control.probes import Probe, aside
from effcli.engine.control.trial import Snapshot, Trial, compare, faded
from effcli.engine.control.trust import TrustRegion
from effcli.engine.data.corpus import Corpus
from effcli.engine.device import Device
from effcli.engine.loop import Parts, train
from effcli.engine.records import Diverged, Record, Step, never, unwatched
from effcli.engine.runs import checkpoint
from effcli.engine.runs.report import Report
from effcli.engine.runs.rundir import RunDir
from effcli.engine.runs.trained import build_model
from effcli.engine.session import Session
from effcli.errors import Stopped
from effcli.settings.baseline import BaselineSettings
from effcli.settings.schedule import ConstantSettings, CosineSettings, WsdSettings

Floats = NDArray[np.float64]
SMALL = ["model.layers=1", "model.width=16", "model.context=16", "model.pair_rows=64"]
NOTHING_IS_ENOUGH = Terms(share=0.05, gain=math.inf)
ANYTHING_GOES = Terms(share=0.05, alpha=100.0, gain=-math.inf)
IN_TWO_STEPS = replace(ANYTHING_GOES, share=0.13)


# --- the objective ---------------------------------------------------------------------------


def _quadratic(rates: Callable[[int, Floats], float], steps: int) -> Floats:
    """Expected loss after each step on the noisy quadratic of Wu et al. 2018, section 2.1.

    Curvatures h; the gradient is that of a quadratic whose minimum moves with variance 1. The
    square of the mean of each weight, and its variance, follow exactly.
    """
    h = np.arange(1, 1001) / 1000
    mean, variance, losses = 1 / np.sqrt(h), np.zeros(1000), []
    for step in range(steps):
        rate = rates(step, mean**2 + variance)
        mean = (1 - rate * h) * mean
        variance = (1 - rate * h) ** 2 * variance + (rate * h) ** 2
        losses.append(0.5 * (h * (mean**2 + variance)).sum())
    return np.array(losses)


def test_who_learns_from_the_next_steps_loss_leads_for_long_and_loses() -> None:
    """Why arms are judged after a cool-down, and nothing learns from the loss of a step."""
    steps, h = 250, np.arange(1, 1001) / 1000

    def greedy(_: int, squares: Floats) -> float:
        """The best rate there is for the next step, by an oracle."""
        return float((h**2 * squares).sum() / (h**3 * (squares + 1)).sum())

    def cosine(peak: float) -> Floats:
        return _quadratic(lambda step, _: peak * (1 + math.cos(math.pi * step / steps)) / 2, steps)

    oracle = _quadratic(greedy, steps)
    tuned = min((cosine(peak) for peak in np.geomspace(0.01, 1.9, 40)), key=lambda one: one[-1])
    quarter, half = steps // 4, steps // 2
    assert oracle[quarter] < 0.3 * tuned[quarter]
    assert oracle[half] < 0.5 * tuned[half]
    assert oracle[-1] > 3 * tuned[-1]
    slower, faster = (
        _quadratic(lambda step, squares, by=by: by * greedy(step, squares), 1)[0]  # type: ignore[misc]
        for by in (0.9, 1.1)
    )
    assert oracle[0] < min(slower, faster)


# --- what is compared, and when --------------------------------------------------------------


def test_decisions_are_between_the_warm_up_and_the_cool_down() -> None:
    points = decision_points(WsdSettings(warmup=0.1, cooldown=0.1))
    assert points == pytest.approx([0.1, 0.15, 0.25, 0.45])
    points = decision_points(CosineSettings(warmup=0.0))
    assert points == pytest.approx(
        [0.04, 0.06875, 0.12625, 0.24125]
    )  # not of a model that knows nothing
    assert decision_points(ConstantSettings(warmup=0.5), 1) == [0.5]
    for schedule in (WsdSettings(cooldown=1.0), CosineSettings(warmup=0.7)):
        points = decision_points(schedule)
        assert sorted(points) == points
        assert max(points) <= (0.5 if schedule.name == "cosine" else 0)


def test_a_multiplier_fades_with_the_schedule_and_one_is_no_multiplier() -> None:
    def schedule(progress: float) -> float:
        return 1 - progress

    for progress in np.linspace(0, 1, 13):
        assert faded(schedule, 1.0, float(progress)) == schedule(float(progress))
    assert faded(schedule, 2.0, 0.0) == 2
    assert faded(schedule, 0.5, 0.5) == 0.5 * 0.75
    assert faded(schedule, 2.0, 0.999) == pytest.approx(0.001, rel=2e-3)


def test_the_comparison_is_students_and_what_is_not_finite_loses() -> None:
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(0)
    own, other = rng.normal(3, 1, 12), rng.normal(2.9, 1, 12)
    gain, z, p = compare(own, other)
    reference = ttest_rel(own, other, alternative="greater")
    assert (z, p) == pytest.approx((reference.statistic, reference.pvalue))
    assert gain == pytest.approx(own.mean() - other.mean())
    broken = np.array([math.nan])
    assert compare(own, broken)[2] == 1
    assert compare(broken, own)[2] == 0
    assert compare(broken, broken)[2] == 1
    assert compare(own, own) == (0, 0, 1)
    assert compare(own, own - 0.5)[2] == 0


class _Paper:
    """A trial on paper: what each arm scores is drawn."""

    def __init__(self, draw: Callable[[Arm], Floats]) -> None:
        self._draw = draw

    def judge(self, arm: Arm) -> Floats:
        return self._draw(arm)

    def run(self, begun: Any, arm: Arm) -> tuple[Any, Floats]:
        losses = self._draw(arm)
        return (arm if np.isfinite(losses).all() else None), losses


def _choice(draw: Callable[[Arm], Floats], terms: Terms, arms: list[Arm], points: int = 4) -> Any:
    controller = Controller(None, [0.1] * points, terms)  # type: ignore[arg-type]
    controller._begun = object()  # type: ignore[assignment]
    level = terms.alpha / (points * max(2, len(arms) - 1))
    return controller._tried(_Paper(draw), arms, level)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [2, 4])
def test_under_noise_alone_a_run_leaves_its_schedule_no_more_often_than_alpha(count: int) -> None:
    """Four decisions; windows differ more than arms do, as windows of text do."""
    rng = np.random.default_rng(count)
    terms, arms = Terms(alpha=0.2, gain=0.0), [Arm(2.0**k) for k in range(count + 1)]
    runs, left = 200, 0
    for _ in range(runs):
        for _ in range(4):
            text = rng.normal(3, 1, 16)

            def draw(_: Arm, text: Floats = text) -> Floats:
                return text + 0.05 * rng.standard_t(5, 16)

            if _choice(draw, terms, arms)[1]:
                left += 1
                break
    assert left <= terms.alpha * runs + 2.5 * math.sqrt(runs * 0.2 * 0.8)
    assert left >= 0.3 * terms.alpha * runs  # and the test is not just deaf


def test_the_best_of_the_arms_that_are_surely_better_is_chosen() -> None:
    rng, arms = np.random.default_rng(0), [Arm(1), Arm(0.5), Arm(math.sqrt(2)), Arm(2)]
    better = {0.5: 0.02, math.sqrt(2): 0.05, 2.0: 0.5}

    def draw(arm: Arm) -> Floats:
        noise = 3.0 if arm.multiplier == 2 else 0.01  # by far the best, but who knows
        return 3 - better.get(arm.multiplier, 0) + noise * rng.normal(size=16)

    end, chosen, losses = _choice(draw, Terms(), arms)
    assert (end, chosen) == (arms[2], 2)
    assert len(losses) == 4
    assert _choice(draw, Terms(gain=0.06), arms)[1] == 0
    lost = _choice(
        lambda arm: draw(arm) * (math.nan if arm.multiplier != 0.5 else 1), Terms(), arms
    )
    assert lost[1] == 1  # the one in force is not finite


# --- the network -----------------------------------------------------------------------------


def test_an_untrained_network_is_exactly_the_schedule() -> None:
    for span in (2.0, 10.0):
        advisor = Advisor(span, seed=3)
        assert sum(p.numel() for p in advisor.network.parameters()) == 146
        for features in np.random.default_rng(0).normal(0, 3, (20, 6)):
            assert advisor.propose(features.tolist()) == Arm(1.0, 1.0)


def test_making_a_network_draws_none_of_the_runs_random_numbers() -> None:
    before = torch.get_rng_state()
    Advisor(seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_the_network_learns_which_arms_win_in_which_state() -> None:
    """Faster where the first feature is high, slower where it is low; and a smaller radius."""
    rng, outcomes = np.random.default_rng(0), []
    for _ in range(60):
        features = rng.normal(size=6)
        sign = math.copysign(1.0, features[0])
        for by in (0.5, math.sqrt(2)):
            z = 4.0 if (by > 1) == (sign > 0) else -4.0
            outcomes.append(Outcome(tuple(features), Arm(), Arm(by), z))
        outcomes.append(Outcome(tuple(features), Arm(), Arm(1, 0.5), 4.0))
    advisor = Advisor(span=2.0)
    for _ in range(3):
        advisor.learn(outcomes)
    fast, slow = (advisor.propose([sign, 0, 0, 0, 0, 0]) for sign in (1.5, -1.5))
    assert 1.2 < fast.multiplier <= 2
    assert 0.5 <= slow.multiplier < 0.8
    assert 0.5 <= fast.radius < 0.8
    twin = Advisor(span=2.0, seed=9)
    twin.load_state_dict(advisor.state_dict())
    assert twin.propose([0.3] * 6) == advisor.propose([0.3] * 6)
    advisor.learn(outcomes)
    assert twin.propose([0.3] * 6) != advisor.propose([0.3] * 6)  # its state is a copy


def test_features_are_standard_and_go_on_from_their_state() -> None:
    rng = np.random.default_rng(0)
    features, again = Features(), Features()
    seen = []
    assert features.standard() == [0.0] * 6
    for index in range(300):
        loss, norm = 3 + 0.1 * rng.normal(), math.exp(rng.normal())
        step = Step(index, index / 300, loss, 0.1, norm, 0, 0.0, 0.0)
        features.observe(step)
        seen.append(features.standard())
        if index == 150:
            again.load_state_dict(features.state_dict())
        elif index > 150:
            again.observe(step)
    assert again.state_dict() == features.state_dict()
    late = np.array(seen[100:])
    assert np.abs(late).max() <= 3
    assert np.abs(late[:, 2].mean()) < 0.2
    assert 0.8 < late[:, 2].std() < 1.2
    assert not late[:, 4:].any()  # which are noted at decisions


def test_facts_about_the_gradient_are_those_of_its_halves(tiny: Settings, corpus: Corpus) -> None:
    parts = _parts(tiny("model.zero_init=false", "device.threads=1"), corpus)[0]
    for _ in zip(range(3), train(parts), strict=False):
        pass
    windows = aside(corpus.val, corpus.tokenizer.token_bytes, 32, 20, 8)
    probe = Probe.of(parts, windows)
    names = [name for name, p in parts.model.named_parameters() if "table" not in name]
    tensors = dict(parts.model.named_parameters())
    before = parts.meter.flops["meta"]
    noise, along = probe.halves({name: tensors[name].detach() for name in names})
    half = len(probe.batch) // 2
    shape = (half, 32)
    bill = parts.model.forward_flops(*shape) + parts.model.backward_flops(*shape)
    assert parts.meter.flops["meta"] - before == 2 * bill
    halves = []
    for part in (probe.batch.part(0, half), probe.batch.part(half, 2 * half)):
        one = Probe(parts.model, probe.objective, part, parts.meter)
        gradients = one.gradients([tensors[name] for name in names])[1]
        halves.append(torch.cat([g.flatten().double() for g in gradients if g is not None]))
    momentum = torch.cat([tensors[name].detach().flatten().double() for name in names])
    mean, apart = sum(halves) / 2, halves[0] - halves[1]
    assert isinstance(mean, torch.Tensor)
    expected = half * apart.square().sum() / 2 / (halves[0] * halves[1]).sum()
    assert noise == pytest.approx(math.log(expected), rel=1e-4)
    assert along == pytest.approx(torch.cosine_similarity(mean, momentum, dim=0).item(), rel=1e-4)


# --- guided runs -----------------------------------------------------------------------------


def _parts(
    settings: BaselineSettings, corpus: Corpus, terms: Terms | None = None, **how: Any
) -> tuple[GuidedParts, Controller]:
    model = build_model(settings.model, corpus.tokenizer.vocab_size, settings.seed)
    device = Device(settings.device)
    device.adopt(model)
    parts = assemble(settings, model, corpus.train, device)
    shape = (settings.model.context, 20, how.pop("windows", 8))
    windows = aside(corpus.val, corpus.tokenizer.token_bytes, *shape)
    points = how.pop("points", decision_points(settings.schedule))
    controller = Controller(windows, points, terms)
    return GuidedParts.of(parts, controller, **how), controller


def _rows(records: list[Record]) -> list[Any]:
    return [
        (one.index, one.progress, one.loss, one.lr, one.grad_norm, one.tokens)
        for one in records
        if isinstance(one, Step)
    ]


def test_where_nothing_is_adopted_a_run_is_the_schedules_bit_for_bit(
    tiny: Settings, corpus: Corpus
) -> None:
    """With dropout, whose random numbers are put back, and with what probes cost billed apart."""
    settings = tiny(*SMALL, "model.dropout=0.1", steps=40)
    plain, (parts, controller) = (
        _parts(settings, corpus)[0],
        _parts(settings, corpus, NOTHING_IS_ENOUGH),
    )
    torch.manual_seed(5)
    alone = list(train(plain))
    torch.manual_seed(5)
    together = list(guided(parts))
    assert _rows(together) == _rows(alone)
    decisions = [record for record in together if isinstance(record, Decision)]
    assert len(decisions) == controller.taken == 4
    assert [one.chosen for one in decisions] == [0] * 4
    assert {one.steps for one in decisions} == {2}
    pairs = zip(plain.model.parameters(), parts.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    kept = {name: value for name, value in parts.meter.flops.items() if name != "meta"}
    assert kept == {name: value for name, value in plain.meter.flops.items() if name != "meta"}
    assert sum(one.flops for one in decisions) < parts.meter.flops["meta"]  # features cost, too
    assert controller.multiplier_mean == 1
    seconds = parts.meter.seconds
    assert seconds["meta"] > 0.3 * seconds["train"]  # each decision tries more steps than it keeps


def test_a_budget_pays_for_the_comparisons(tiny: Settings, corpus: Corpus) -> None:
    step = _parts(tiny(*SMALL), corpus)[0].step_flops(4)
    for budget in ({"tokens": 40 * 64}, {"flops": 40 * step}):
        settings = tiny(*SMALL, **budget)
        plain = _parts(settings, corpus)[0]
        list(train(plain))
        how: dict[str, Any] = {"points": [0.2, 0.5], "sequences": 4}
        parts, _ = _parts(settings, corpus, NOTHING_IS_ENOUGH, **how)
        decisions = [one for one in guided(parts) if isinstance(one, Decision)]
        assert len(decisions) == 2
        assert abs(parts.meter.spent_flops() - plain.meter.spent_flops()) <= step
        assert 0.3 < parts.meter.steps / plain.meter.steps < 0.8


def test_what_comparisons_cost_puts_the_next_ones_off(tiny: Settings, corpus: Corpus) -> None:
    """So they are as far apart in training as they would be if they cost nothing."""
    settings = tiny(*SMALL, tokens=400 * 64)
    terms = Terms(share=0.005, gain=math.inf)
    parts, _ = _parts(settings, corpus, terms, points=[0.1, 0.2, 0.4], sequences=4)
    decisions = [record for record in guided(parts) if isinstance(record, Decision)]
    assert sum(one.flops for one in decisions) > 25 * parts.step_flops(4)
    begun = [one.step - one.steps for one in decisions]
    assert begun == pytest.approx([40, 80, 160], abs=1)


def test_the_price_is_what_was_tried(tiny: Settings, corpus: Corpus) -> None:
    """Two other arms of three steps, three cool-downs of two, three looks at the windows."""
    settings = tiny(*SMALL, steps=60)
    parts, _ = _parts(settings, corpus, NOTHING_IS_ENOUGH)
    decision = next(one for one in guided(parts) if isinstance(one, Decision))
    assert decision.multipliers == pytest.approx([1, 0.5, math.sqrt(2)])
    assert decision.radii == [1, 1, 1]
    looks = 3 * parts.model.forward_flops(8, 16)
    assert decision.flops == pytest.approx((2 * 3 + 3 * 2) * parts.step_flops(4) + looks)
    assert decision.level == NOTHING_IS_ENOUGH.alpha / 8


def test_the_winner_goes_on_from_before_its_cool_down(tiny: Settings, corpus: Corpus) -> None:
    """As if it had been in force from where the comparison began."""
    settings = tiny(*SMALL, "optim.lr=0.002", "schedule.cooldown=0.2", steps=40)
    parts, controller = _parts(settings, corpus, ANYTHING_GOES, points=[0.5])
    torch.manual_seed(0)
    decision = None
    for record in guided(parts):
        if isinstance(record, Decision):
            decision = record
            break
    assert decision is not None
    assert decision.chosen > 0
    assert parts.meter.steps == decision.step == 22
    multiplier = decision.multipliers[decision.chosen]
    assert controller.arm == Arm(multiplier)
    twin, other = _parts(settings, corpus, ANYTHING_GOES)
    torch.manual_seed(0)
    for record in train(twin):
        assert isinstance(record, Step)
        if record.index == 20:
            other.arm = Arm(multiplier)
        if record.index == 22:
            break
    pairs = zip(twin.model.parameters(), parts.model.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert not differences(
        Parts.state_dict(twin)["optimizer"], Parts.state_dict(parts)["optimizer"]
    )
    assert twin.batches.state_dict() == parts.batches.state_dict()


@pytest.mark.parametrize("wrong", [1 / 16, pytest.param(64, marks=pytest.mark.slow)])
def test_a_rate_that_is_wrong_is_found_out(tiny: Settings, corpus: Corpus, wrong: float) -> None:
    """The planted good arm is a larger or a smaller rate; the end is better for it."""
    settings = tiny(*SMALL, f"optim.lr={0.02 * wrong}", "schedule.cooldown=0.3", steps=80)
    plain = _parts(settings, corpus)[0]
    list(train(plain))
    parts, controller = _parts(settings, corpus, Terms(span=10.0, share=0.04), windows=40)
    list(guided(parts))
    assert controller.adopted >= 1
    assert (controller.arm.multiplier > 1) == (wrong < 1)
    assert (controller.multiplier_mean > 1) == (wrong < 1)
    judged = aside(corpus.val, corpus.tokenizer.token_bytes, 16, 23, 100)
    losses = [trial.scores(one, judged, never).mean() for one in (plain, parts)]
    assert losses[1] < losses[0] - 0.05


class _Broken:
    """An objective that is not finite in one arm."""

    def __init__(self, objective: Any) -> None:
        self._objective, self.is_broken = objective, False

    def __call__(self, model: Any, batch: Any) -> Any:
        loss = self._objective(model, batch)
        return replace(loss, mean=loss.mean * math.nan) if self.is_broken else loss

    def flops(self, model: Any, batch: Any) -> dict[str, float]:
        bill: dict[str, float] = self._objective.flops(model, batch)
        return bill


def test_arms_that_are_not_finite_are_dropped(
    tiny: Settings, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, controller = _parts(tiny(*SMALL, steps=30), corpus, ANYTHING_GOES)
    parts.objective = objective = _Broken(parts.objective)
    run = Trial.run

    def broken(self: Trial, begun: Snapshot, arm: Arm) -> Any:
        objective.is_broken = True
        try:
            return run(self, begun, arm)
        finally:
            objective.is_broken = False

    monkeypatch.setattr(Trial, "run", broken)
    records = list(guided(parts))
    decisions = [record for record in records if isinstance(record, Decision)]
    assert [one.chosen for one in decisions] == [0] * 4
    assert all(one.losses[0] is not None for one in decisions)
    assert all(loss is None for one in decisions for loss in one.losses[1:])
    assert controller.taken == 4
    assert len(_rows(records)) == 30
    assert not any(isinstance(record, Diverged) for record in records)


def test_a_run_that_diverges_ends_as_it_would_have(tiny: Settings, corpus: Corpus) -> None:
    parts, _ = _parts(tiny(*SMALL, steps=30), corpus)
    parts.objective = objective = _Broken(parts.objective)
    seen: list[Record] = []
    for record in guided(parts):
        seen.append(record)
        objective.is_broken = len(seen) >= 10
    assert isinstance(seen[-1], Diverged)
    assert len(seen) == 11


def test_a_trust_radius_is_tried_in_turn_and_kept(tiny: Settings, corpus: Corpus) -> None:
    parts, controller = _parts(tiny(*SMALL, "optim.lr=0.1", steps=40), corpus, ANYTHING_GOES)
    guard = parts.optimizer.guard = TrustRegion("fixed", radius=0.02)
    decisions = [one for one in guided(parts) if isinstance(one, Decision)]
    assert len(decisions) == 4
    assert len(set(decisions[0].radii)) == 1
    for one, by in zip(decisions[1::2], (2, 0.5), strict=True):
        assert min(2, max(0.5, one.radii[0] * by)) in one.radii
    assert controller.arm.radius == guard.factor
    assert guard.radius == pytest.approx(0.02 * guard.factor)
    moved = [one for one in decisions if one.radii[one.chosen] != one.radii[0]]
    assert moved, "some radius was adopted, or the test says nothing"


# --- resuming --------------------------------------------------------------------------------

STEPS = 16


def _run(
    settings: BaselineSettings, watch: Any = unwatched, stop: Any = never
) -> tuple[Report, Controller]:
    """Adopts whatever is best, with an adaptive trust region: all that could go wrong."""
    with Session("baseline", settings, watch, stop) as session:
        token_bytes, judged = session.corpus.tokenizer.token_bytes, len(session.held_out.tokens)
        windows = aside(session.corpus.val, token_bytes, 16, judged, 8)
        controller = Controller(windows, [0.15, 0.4], IN_TWO_STEPS)
        parts = session.parts
        parts.optimizer.guard = TrustRegion("adaptive", probe=Probe.of(parts, windows), every=4)
        session.parts = GuidedParts.of(parts, controller)
        session.drive = guided
        return session.train(), controller


def _asked(tiny: Settings, out: Path, **flags: Any) -> BaselineSettings:
    sets = [*SMALL, "model.dropout=0.1", "evaluation.floors=false", "optim.lr=0.05"]
    terms = {"steps": STEPS, "eval_every": 5, "save_every": 4, "page": False, "out": out}
    return tiny(*sets, **(terms | flags))


def _end(folder: Path) -> dict[str, Any]:
    newest, _ = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    controller = checkpoint.load_state(newest)["parts"]["controller"]
    return {**final_state(folder), "controller": controller}


@pytest.fixture(scope="module")
def reference(
    tmp_path_factory: pytest.TempPathFactory, bare: Settings
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("guided") / "run"
    _run(_asked(bare, folder))
    return folder, _end(folder)


def test_the_log_tells_what_was_decided(reference: Any) -> None:
    rows = list(RunDir(reference[0]).records())
    decisions = [row for row in rows if row["kind"] == "decision"]
    assert len(decisions) == 2
    assert any(row["chosen"] for row in decisions)
    steps = [row["index"] for row in rows if row["kind"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) == STEPS


def _cut(tiny: Settings, reference: Any, place: Path, cut: int) -> None:
    watch, stop = stopping_after(cut)
    with pytest.raises(Stopped):
        _run(_asked(tiny, place / "run"), watch, stop)
    _run(_asked(tiny, place / "run", resume=True))
    assert not differences(_end(place / "run"), reference[1])


@pytest.mark.parametrize("cut", [4, 5])
def test_a_cut_run_resumes_exactly(tiny: Settings, reference: Any, place: Path, cut: int) -> None:
    """Where a comparison has begun, and where it is due."""
    _cut(tiny, reference, place, cut)


@pytest.mark.slow
@pytest.mark.parametrize("cut", range(1, STEPS))
def test_every_cut_resumes_exactly(tiny: Settings, reference: Any, place: Path, cut: int) -> None:
    _cut(tiny, reference, place, cut)


@pytest.mark.parametrize("asks", [1, pytest.param(4, marks=pytest.mark.slow), 7])
def test_a_signal_inside_a_comparison_loses_nothing(
    tiny: Settings, reference: Any, place: Path, asks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cool-down, in another arm's steps, in a look: the comparison is made again."""
    decide, inside = Controller.decide, [0]

    def told(self: Controller, parts: Parts, schedule: Any, stop: Any) -> Decision:
        def asked() -> int | None:
            inside[0] += self.taken == 1
            return signal.SIGTERM if inside[0] == asks else stop()

        return decide(self, parts, schedule, asked)

    monkeypatch.setattr(Controller, "decide", told)
    with pytest.raises(Stopped):
        _run(_asked(tiny, place / "run"))
    assert inside[0] == asks
    _run(_asked(tiny, place / "run", resume=True))
    assert not differences(_end(place / "run"), reference[1])


def test_inclusive_budgets_only_ever_pay_more(tiny: Settings, corpus: Corpus) -> None:
    parts, _ = _parts(tiny(steps=10), corpus, sequences=4)
    assert isinstance(parts.budget, Inclusive)
    meter = parts.meter
    assert parts.budget.progress(meter) == 0
    meter.steps = 5
    assert parts.budget.progress(meter) == 0.5
    meter.charge("meta", 2.5 * parts.step_flops(4))
    assert parts.budget.progress(meter) == pytest.approx(0.75)
    meter.charge("meta", 50 * parts.step_flops(4))
    assert parts.budget.progress(meter) == 1


SCRIPT = """
import sys
from effcli.engine.control.controller import Controller, Terms
from effcli.engine.control.guided import GuidedParts, guided
from effcli.engine.control.probes import Probe, aside
from effcli.engine.control.strata import Stratified
from effcli.engine.control.trust import TrustRegion
from effcli.engine.session import Session
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve

data, out, *sets = sys.argv[1:]
flags = {"data": data, "out": out, "steps": 24, "eval_every": 8, "save_every": 0, "page": False}
with Session("baseline", resolve(BaselineSettings, flags, sets).settings) as session:
    parts, corpus = session.parts, session.corpus
    context, processes = parts.model.context, parts.device.processes
    token_bytes, judged = corpus.tokenizer.token_bytes, len(session.held_out.tokens)
    windows = aside(corpus.val, token_bytes, context, judged, 9)
    probe = Probe.of(parts, windows)
    parts.optimizer.guard = TrustRegion("adaptive", probe=probe, every=5)
    import numpy as np
    clusters = np.arange(corpus.train.windows(context)) % 7 // 3
    parts.batches = Stratified(corpus.train, context, 5, 0, clusters, processes)
    terms = Terms(share=0.1, alpha=100.0)
    controller = Controller(windows, [0.2, 0.5], terms)
    session.parts, session.drive = GuidedParts.of(parts, controller), guided
    session.train()
"""


@pytest.mark.slow
def test_two_processes_decide_and_read_what_one_does(corpus_folder: Path, place: Path) -> None:
    (place / "guided.py").write_text(SCRIPT)
    sets = [*TINY, *SMALL, "optim.name=adamw", "batch.sequences=5", "batch.micro=2"]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    for name, how in {
        "one": [sys.executable],
        "two": [*launcher, "--nproc-per-node", "2"],
    }.items():
        command = [*how, str(place / "guided.py"), str(corpus_folder), str(place / name), *sets]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    one, two = (list(RunDir(place / name).records()) for name in ("one", "two"))
    assert [row["kind"] for row in one] == [row["kind"] for row in two]
    for mine, theirs in zip(one, two, strict=True):
        if mine["kind"] == "step":
            assert theirs["loss"] == pytest.approx(mine["loss"], abs=1e-3)
        elif mine["kind"] == "decision":
            assert theirs["chosen"] == mine["chosen"]
            assert theirs["losses"] == pytest.approx(mine["losses"], abs=1e-3)
        elif mine["kind"] == "strata":
            assert theirs["sequences"] == mine["sequences"]
    assert sum(row["kind"] == "decision" for row in one) == 2
