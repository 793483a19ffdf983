"""Policies stay near the default and learn what pays; gradients are compared, never made."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from headonly import HeadOnly
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from effcli.engine.selection.alignment import (
    LARGEST_HOLDOUT,
    Holdout,
    alignment,
    residuals,
    spread,
)
from effcli.engine.selection.policy import (
    LARGEST_DIVERGENCE,
    WEIGHTS,
    Arms,
    Evaluate,
    Exp3,
    Fixed,
    Floats,
    Learned,
    Policy,
    bounded,
    divergence,
    meta_train,
    shares,
    weights,
)
from effcli.errors import InputError

COUNTS = st.integers(1, 48)


@st.composite
def arms(draw: st.DrawFn) -> Arms:
    """Arms with whatever may be known of them, some of them empty."""
    count, seed = draw(COUNTS), draw(st.integers(0, 2**32))
    random = np.random.default_rng(seed)
    default = random.dirichlet(np.full(count, draw(st.sampled_from([0.05, 1.0, 50.0]))))
    default = np.where(default < 1e-12, 0.0, default)
    feature = arrays(
        np.float64,
        count,
        elements=st.floats(-1e9, 1e9) | st.sampled_from([0.0, math.nan, math.inf]),
    )
    columns = [draw(feature) for _ in range(4)]
    return Arms(*columns, draw(st.floats(0, 1)), default / default.sum())


def some_arms(count: int, seed: int = 0) -> Arms:
    random = np.random.default_rng(seed)
    columns = random.normal(size=(4, count))
    return Arms(*columns, 0.7, random.dirichlet(np.ones(count)))


def permuted(state: Arms, order: Floats) -> Arms:
    names = ("excess", "uncertainty", "used", "alignment", "default")
    return replace(state, **{name: getattr(state, name)[order] for name in names})


any_weights = arrays(np.float64, len(WEIGHTS), elements=st.floats(-100, 100))


# --- shares and tilts


@given(arms(), any_weights)
def test_a_learned_policy_stays_within_its_divergence_and_is_centered(
    state: Arms, theta: Floats
) -> None:
    tilts = Learned(theta).tilts(state)
    assert np.isfinite(tilts).all()
    asked = shares(state.default, tilts)
    assert asked.sum() == pytest.approx(1)
    assert (asked >= 0).all()
    has_any = asked > 0
    naive = asked[has_any] @ np.log(asked[has_any] / state.default[has_any])
    assert naive <= LARGEST_DIVERGENCE + 1e-9
    assert state.default @ tilts == pytest.approx(0, abs=1e-9 * max(1, np.abs(tilts).max()))


@given(arms())
def test_without_weights_or_rewards_every_policy_is_the_default(state: Arms) -> None:
    count = len(state.default)
    for policy in (Fixed(), Exp3(count), Learned(np.zeros(len(WEIGHTS)))):
        assert isinstance(policy, Policy)
        assert policy.tilts(state) == pytest.approx(np.zeros(count), abs=1e-12)


@given(arms(), any_weights, st.randoms(use_true_random=False))
def test_the_order_of_the_arms_does_not_matter(state: Arms, theta: Floats, random: Random) -> None:
    count = len(state.default)
    order = np.array(random.sample(range(count), count))
    reward = np.linspace(-1, 1, count)
    for make in (lambda: Exp3(count), lambda: Learned(theta), Fixed):
        plain, moved = make(), make()
        plain.tilts(state), moved.tilts(permuted(state, order))
        plain.hear(state.default, reward)
        moved.hear(state.default[order], reward[order])
        expected = plain.tilts(state)[order]
        assert moved.tilts(permuted(state, order)) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(arms())
def test_features_are_finite_bounded_and_the_same_in_any_unit(state: Arms) -> None:
    features = state.features()
    assert features.shape == (len(state.default), 5)
    assert (np.abs(features) <= 3).all()
    rescaled = replace(state, excess=2**10 * state.excess)
    assert rescaled.features() == pytest.approx(features, abs=1e-9)


def test_features_have_mean_zero_and_spread_one_under_the_default() -> None:
    state = replace(some_arms(6), default=np.array([0.1, 0.2, 0.3, 0.2, 0.1, 0.1]))
    features = state.features()
    assert state.default @ features == pytest.approx(np.zeros(5), abs=1e-12)
    assert state.default @ features[:, :4] ** 2 == pytest.approx(np.ones(4))
    assert features[:, 4] == pytest.approx(0.4 * features[:, 1])


def test_an_unknown_or_constant_feature_says_nothing() -> None:
    state = replace(some_arms(5), excess=np.full(5, 0.1), used=np.full(5, math.nan))
    features = state.features()
    assert not features[:, [0, 2]].any()
    state.alignment[3] = math.nan
    assert state.features()[3, 3] == 0
    assert state.features()[:, 3].any()


def test_each_weight_pulls_toward_its_feature() -> None:
    state = some_arms(8)
    for place, name in enumerate(WEIGHTS):
        theta = 0.1 * np.eye(len(WEIGHTS))[place]
        column = np.log(state.default) if name == "default" else state.features()[:, place]
        tilts = Learned(theta).tilts(state)
        assert tilts == pytest.approx(0.1 * (column - state.default @ column))


def test_the_weight_of_the_default_makes_arms_equal_at_minus_one() -> None:
    state = replace(some_arms(4), default=np.array([0.2, 0.3, 0.2, 0.3]))
    asked = shares(state.default, Learned(-np.eye(len(WEIGHTS))[-1]).tilts(state))
    assert asked == pytest.approx(np.full(4, 0.25))


@given(arms(), st.floats(0.01, 2))
def test_a_bound_is_met_exactly_where_it_binds(state: Arms, limit: float) -> None:
    tilts = np.linspace(-1, 1, len(state.default)) * 8
    within = bounded(state.default, tilts, limit)
    if divergence(state.default, tilts) <= limit:
        assert within is tilts
    else:
        assert divergence(state.default, within) == pytest.approx(limit, abs=1e-6)
        assert divergence(state.default, within) <= limit


# --- learning from rewards

MEANS = np.array([0.2, 0.5, 0.9, 0.4, 0.1, 0.3])
UNIFORM = replace(some_arms(6), default=np.full(6, 1 / 6))


def one_arm_at_a_time(policy: Policy, means: Floats, rounds: int, seed: int) -> Floats:
    """Plays a bandit with rewards of 0 and 1; how often each arm was drawn."""
    random, drawn = np.random.default_rng(seed), np.zeros(len(means))
    for _ in range(rounds):
        arm = random.choice(len(means), p=shares(UNIFORM.default, policy.tilts(UNIFORM)))
        used = np.eye(len(means))[arm]
        policy.hear(used, np.where(used > 0, float(random.random() < means[arm]), math.nan))
        drawn += used
    return drawn


def all_arms_at_once(policy: Policy, means: Floats, rounds: int, noise: float) -> Floats:
    random = np.random.default_rng(0)
    for _ in range(rounds):
        used = shares(UNIFORM.default, policy.tilts(UNIFORM))
        policy.hear(used, means + noise * random.normal(size=len(means)))
    return shares(UNIFORM.default, policy.tilts(UNIFORM))


@pytest.mark.parametrize("seed", range(3))
def test_the_regret_of_exp3_is_within_the_bound_of_its_authors(seed: int) -> None:
    rounds = 2000
    drawn = one_arm_at_a_time(Exp3(6), MEANS, rounds, seed)
    regret = MEANS.max() * rounds - MEANS @ drawn
    bound = 2 * math.sqrt((math.e - 1) * rounds * 6 * math.log(6))
    even = rounds * (MEANS.max() - MEANS.mean())
    assert bound < even  # so it says something
    assert regret < bound
    assert drawn.argmax() == 2


def test_exp3_takes_the_best_of_unlike_arms_but_for_the_mix() -> None:
    asked = all_arms_at_once(Exp3(6), MEANS, 200, noise=0.1)
    assert asked[2] > 0.85
    assert asked.min() > 0.1 / 6 * 0.999
    assert all_arms_at_once(Exp3(6, mix=0.5), MEANS, 200, noise=0.1)[2] < 0.6


def test_exp3_stays_near_the_default_where_arms_are_alike() -> None:
    asked = all_arms_at_once(Exp3(6), np.full(6, 0.5), 200, noise=0.05)
    assert divergence(UNIFORM.default, np.log(asked)) < 0.05
    exactly = all_arms_at_once(Exp3(6), np.full(6, 0.5), 50, noise=0.0)
    assert exactly == pytest.approx(UNIFORM.default)


def test_the_estimate_of_exp3_is_the_same_whether_arms_are_drawn_or_all_are_used() -> None:
    """Over the arms that may be drawn, the mean step is the step of full information."""

    def moved(used: Floats, reward: Floats) -> Floats:
        policy = Exp3(6, rate=0.01)
        policy.tilts(UNIFORM)
        policy.hear(UNIFORM.default, np.full(6, 0.5))  # the same measure for all
        policy.hear(used, reward)
        return np.array(policy.state_dict()["log_weights"])

    at_once = moved(UNIFORM.default, MEANS / 2)
    drawn = [moved(one, np.where(one > 0, MEANS / 2, math.nan)) for one in np.eye(6)]
    assert np.mean(drawn, axis=0) == pytest.approx(at_once)


def test_arms_drawn_by_chance_are_not_preferred_where_rewards_are_the_same() -> None:
    policy = Exp3(6)
    one_arm_at_a_time(policy, np.ones(6), 30, seed=0)
    assert policy.tilts(UNIFORM) == pytest.approx(np.zeros(6))


def test_no_single_reward_moves_a_weight_by_more_than_one() -> None:
    policy = Exp3(6, rate=5.0)
    policy.tilts(UNIFORM)
    policy.hear(np.eye(6)[0], np.ones(6))
    policy.hear(np.full(6, 1 / 6), np.array([1.0, -9, 1, 1, 1, 1]))
    assert np.abs(policy.state_dict()["log_weights"]).max() == 1


def test_the_unit_of_rewards_does_not_matter() -> None:
    for make in (lambda: Exp3(6), lambda: Learned(np.zeros(6), rate=0.1)):
        asked = all_arms_at_once(make(), MEANS, 20, noise=0)
        assert all_arms_at_once(make(), MEANS * 1e-6, 20, noise=0) == pytest.approx(asked)
        assert asked.std() > 0.01


def test_a_reward_that_is_not_known_moves_nothing() -> None:
    for policy in (Exp3(6), Learned(np.ones(6), rate=0.1)):
        before = policy.tilts(UNIFORM)
        policy.hear(UNIFORM.default, np.full(6, math.nan))
        assert np.array_equal(policy.tilts(UNIFORM), before)


def test_a_learned_policy_follows_rewards_only_at_a_rate() -> None:
    state = replace(UNIFORM, uncertainty=MEANS)
    for rate in (0.0, 0.1):
        policy = Learned(np.zeros(len(WEIGHTS)), rate=rate)
        for _ in range(30):
            policy.hear(shares(state.default, policy.tilts(state)), MEANS)
        assert (policy.weights[1] > 0.1) == (rate > 0)


@pytest.mark.parametrize(
    "make", [Fixed, lambda: Exp3(6), lambda: Learned(np.full(6, 0.1), rate=0.1)]
)
def test_a_policy_goes_on_bit_for_bit_from_its_state(make: Callable[[], Policy]) -> None:
    policy, resumed = make(), make()
    one_arm_at_a_time(policy, MEANS, 20, seed=1)
    policy.tilts(UNIFORM)
    state = policy.state_dict()
    resumed.load_state_dict(state)
    ends = [one_arm_at_a_time(one, MEANS, 20, seed=2) for one in (policy, resumed)]
    assert np.array_equal(*ends)
    assert np.array_equal(policy.tilts(UNIFORM), resumed.tilts(UNIFORM))
    again = make()
    again.load_state_dict(state)  # which what came after did not change
    assert again.state_dict() == state


def test_a_state_before_any_decision_can_be_loaded() -> None:
    policy = Learned(np.ones(6), rate=0.1)
    policy.load_state_dict(Learned(np.zeros(6)).state_dict())
    policy.hear(UNIFORM.default, MEANS)
    assert not policy.tilts(UNIFORM).any()


# --- weights


def test_the_policy_that_comes_along_goes_by_excess_first() -> None:
    """What is unlike trusted text gets less: that is what it was found to live on."""
    own = dict(zip(WEIGHTS, np.abs(weights()), strict=True))
    assert max(own, key=own.__getitem__) == "excess"


LINES = [f"{name} = {place}" for place, name in enumerate(WEIGHTS)]


def test_weights_are_read_by_name(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text("\n".join(reversed(LINES)))
    assert np.array_equal(weights(file), np.arange(len(WEIGHTS)))


@pytest.mark.parametrize(
    "lines",
    [
        LINES[1:],
        [*LINES, "more = 1"],
        ["excess = nan", *LINES[1:]],
        ["excess = inf", *LINES[1:]],
        ["excess = 1e3", *LINES[1:]],
        ["excess = true", *LINES[1:]],
        ["excess = '1'", *LINES[1:]],
        ["[excess]", "a = 1"],
        ["excess ="],
    ],
)
def test_wrong_weights_are_refused(tmp_path: Path, lines: list[str]) -> None:
    file = tmp_path / "policy.toml"
    file.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"policy\.toml"):
        weights(file)


# --- meta-training

OPTIMUM = np.array([0.5, -0.3, 0.0, 0.8, -0.6, 0.2])


def noisy(seed: int, scale: float = 1.0) -> Evaluate:
    random = np.random.default_rng(seed)
    return lambda theta: scale * (random.normal(0, 0.05) - ((theta - OPTIMUM) ** 2).sum())


def test_meta_training_finds_the_optimum_through_noise() -> None:
    ends = [
        meta_train(noisy(seed), np.zeros(6), sigma=0.1, rate=0.5, rounds=400, seed=seed)
        for seed in range(5)
    ]
    away = [np.linalg.norm(end - OPTIMUM) for end in ends]
    assert max(away) < 0.25 * np.linalg.norm(OPTIMUM)


def test_meta_training_is_decided_by_its_seed_and_not_by_the_unit_of_rewards() -> None:
    start, how = np.zeros(6), {"sigma": 0.1, "rate": 0.3, "rounds": 10}
    end = meta_train(noisy(0), start, seed=3, **how)
    assert np.array_equal(meta_train(noisy(0), start, seed=3, **how), end)
    assert meta_train(noisy(0, 1e6), start, seed=3, **how) == pytest.approx(end)
    assert not np.allclose(meta_train(noisy(0), start, seed=4, **how), end)
    assert not start.any()


@pytest.mark.parametrize("broken", [math.nan, -math.inf])
def test_meta_training_ignores_runs_that_diverged(broken: float) -> None:
    start = np.ones(6)
    end = meta_train(lambda _: broken, start, sigma=0.1, rate=1, rounds=5, seed=0)
    assert np.array_equal(end, start)


# --- alignment of gradients


class Head(HeadOnly):
    """Two rows pad its table."""

    def __init__(self, soft_cap: float, vocab: int = 11, width: int = 5) -> None:
        super().__init__(torch.randn(vocab + 2, width, dtype=torch.float64), soft_cap, vocab)

    def gradient(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The slope of the summed loss by the head, by autograd in float64."""
        logits = (features @ self.table.T)[..., : self.vocab_size]
        if self.soft_cap:
            logits = self.soft_cap * (logits / self.soft_cap).tanh()
        loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum")
        return torch.autograd.grad(loss, self.table)[0]


def text(sequences: int, time: int, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    features = torch.randn(sequences, time, width, dtype=torch.float64) + 0.3
    return features, torch.randint(0, 11, (sequences, time))


def cosine(one: torch.Tensor, other: torch.Tensor, weigh: torch.Tensor) -> float:
    products = [(a * weigh * b).sum() for a, b in ((one, other), (one, one), (other, other))]
    return float(products[0] / (products[1] * products[2]).sqrt())


@pytest.mark.parametrize("soft_cap", [0.0, 1.5])
@pytest.mark.parametrize("is_weighed", [False, True])
def test_alignment_is_the_cosine_of_the_gradients(soft_cap: float, is_weighed: bool) -> None:
    model = Head(soft_cap)
    weigh = torch.rand(5, dtype=torch.float64) * 4 + 0.1
    trusted, trusted_targets = text(3, 20)
    features, targets = text(4, 16)
    holdout = Holdout.of(model, trusted, trusted_targets, weigh if is_weighed else None)
    found = alignment(model, features, targets, holdout)
    goal = model.gradient(trusted, trusted_targets)
    for i in range(4):
        gradient = model.gradient(features[i], targets[i])
        expected = cosine(gradient, goal, weigh if is_weighed else torch.ones(5))
        assert float(found[i]) == pytest.approx(expected, abs=2e-6)
    norm = (goal.square() * (weigh if is_weighed else 1)).sum().sqrt()
    assert float(holdout.norm) == pytest.approx(float(norm), rel=1e-5)
    assert found.std() > 0.01


def test_a_preconditioner_changes_what_counts_but_not_by_its_unit() -> None:
    model = Head(0.0)
    (trusted, aims), (features, targets) = text(3, 20), text(4, 16)
    weigh = torch.tensor([10.0, 1.0, 1.0, 0.1, 0.1])
    plain, weighed, rescaled = (
        alignment(model, features, targets, Holdout.of(model, trusted, aims, by))
        for by in (None, weigh, 100 * weigh)
    )
    assert torch.allclose(weighed, rescaled, atol=1e-6)
    assert not torch.allclose(plain, weighed, atol=1e-3)


def test_residuals_are_the_slopes_of_the_loss_by_the_logits() -> None:
    model = Head(1.5, width=11)
    model.table.data = torch.eye(13, 11, dtype=torch.float64)  # features are logits
    raw = torch.randn(7, 11, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (7,))
    F.cross_entropy(1.5 * (raw / 1.5).tanh(), targets, reduction="sum").backward()
    assert torch.allclose(residuals(model, raw.detach(), targets), raw.grad.float(), atol=1e-6)


def test_text_is_aligned_with_itself_and_against_its_opposite() -> None:
    model = Head(0.0)
    features, targets = text(1, 16)
    holdout = Holdout.of(model, features, targets)
    assert float(alignment(model, features, targets, holdout)[0]) == pytest.approx(1, abs=1e-6)
    model.table.data[:] = 0  # then p is the same for φ and -φ
    holdout = Holdout.of(model, features, targets)
    assert float(alignment(model, -features, targets, holdout)[0]) == pytest.approx(-1, abs=1e-6)


def test_alignment_is_zero_where_nothing_is_left_to_learn() -> None:
    model = Head(0.0)
    model.table.data = torch.eye(13, 5, dtype=torch.float64) * 1e4
    sure = torch.eye(5, dtype=torch.float64)[[0, 1, 2, 3]][None]
    known, unknown = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[4, 4, 4, 4]])
    holdout = Holdout.of(model, sure, unknown)
    assert float(alignment(model, sure, known, holdout)[0]) == 0
    assert float(alignment(model, sure, unknown, Holdout.of(model, sure, known))[0]) == 0


def test_only_a_few_positions_are_looked_at_and_chunks_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Head(0.0)
    features, targets = text(100, 64)
    holdout = Holdout.of(model, features, targets)
    assert len(holdout.features) <= LARGEST_HOLDOUT
    assert holdout.residuals.shape == (len(holdout.features), 11)
    found = alignment(model, features, targets, holdout)
    places = spread(64, 16)
    shorter = alignment(model, features[:, places], targets[:, places], holdout)
    assert torch.allclose(found, shorter)
    monkeypatch.setattr("effcli.engine.selection.alignment._CHUNK_RESIDUALS", 1)
    assert torch.allclose(alignment(model, features, targets, holdout), found, atol=1e-6)


def test_a_holdout_of_one_kind_tells_this_kind_from_another() -> None:
    model = Head(0.0)
    features, _ = text(100, 64)
    kind = torch.zeros(100, 64, dtype=torch.long)
    holdout = Holdout.of(model, features, kind)
    own = alignment(model, features, kind, holdout)
    other = alignment(model, features, kind + 5, holdout)
    assert own.mean() > other.max()


@given(COUNTS, COUNTS)
def test_places_are_different_ordered_and_within(length: int, count: int) -> None:
    places = spread(length, count).tolist()
    assert len(places) == min(length, count)
    assert places == sorted(set(places))
    assert places[0] >= 0
    assert places[-1] < length


def test_the_bill_grows_with_what_is_multiplied() -> None:
    model = Head(0.0)
    features, targets = text(4, 16)
    holdout = Holdout.of(model, features, targets)  # 64 positions
    by_hand = 2 * (8 * 11 * 5) + 2 * 8 * (64 + 4) * (11 + 5)  # logits; products with both
    assert holdout.flops(2, positions=4) == by_hand
