"""What measures of uncertainty say is what the formulas and the exact posterior say."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from headonly import HeadOnly
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from effcli.engine.models.gpt import GPT
from effcli.engine.protocols import Batch, LanguageModel
from effcli.engine.selection.dropout import Dropout
from effcli.engine.selection.ensemble import BUCKETS, Ensemble, bucketed
from effcli.engine.selection.entropy import Entropy
from effcli.engine.selection.laplace import (
    CLIP,
    RIDGE,
    Laplace,
    factorized,
    leverage,
    unusualness,
)
from effcli.engine.selection.uncertainty import (
    Uncertainty,
    disagreement,
    entropies,
    places,
    probabilities,
)
from effcli.errors import InputError
from effcli.settings.model import GPTSettings

VOCAB, WIDTH, TIME = 29, 12, 24
MEASURES = [Laplace, Ensemble, Dropout, Entropy]
Measure = Callable[..., Any]


def _random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _batch(sequences: int, time: int = TIME, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (sequences, time + 1), generator=generator)
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(sequences))


def _gpt(dropout: float = 0.1, vocab: int = VOCAB) -> GPT:
    settings = GPTSettings(
        layers=1, width=16, heads=2, context=TIME, dropout=dropout, pair_rows=0, zero_init=False
    )
    model = GPT(settings, vocab)
    nn.init.normal_(model.head, generator=torch.Generator().manual_seed(1))
    return model.eval()  # so that features are the same whenever they are asked for


def _alone(tensors: list[Tensor]) -> None:
    """One process has nothing to add up."""


def _received(sums: list[Tensor], tensors: list[Tensor]) -> None:
    for tensor, sum_ in zip(tensors, sums, strict=True):
        tensor.copy_(sum_)


def _step(measure: Any, model: LanguageModel, seed: int = 0, sequences: int = 8) -> None:
    batch = _batch(sequences, seed=seed)
    with torch.no_grad():
        measure.observe(model, batch, model.features(batch.inputs))
    measure.commit(_alone)


def _score(measure: Any, model: LanguageModel, seed: int = 99) -> Tensor:
    batch = _batch(4, seed=seed)
    with torch.no_grad():
        features = model.features(batch.inputs)
    return measure.score(model, batch, features)


# --- The posterior of the head -------------------------------------------------------------


def _hessian(features: Tensor, chances: Tensor, prior: float) -> Tensor:
    """The whole of H + prior, as a matrix over (class, feature)."""
    spread = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None, :]
    whole = torch.einsum("nvw,ni,nj->viwj", spread, features, features)
    size = chances.shape[1] * features.shape[1]
    return whole.reshape(size, size) + prior * torch.eye(size, dtype=features.dtype)


def _full_variances(features: Tensor, chances: Tensor, prior: float, at: Tensor) -> Tensor:
    classes, width = chances.shape[1], features.shape[1]
    inverse = torch.linalg.inv(_hessian(features, chances, prior)).view(classes, width, -1)
    inverse = inverse.view(classes, width, classes, width)
    return torch.einsum("viwj,ti,tj->tvw", inverse, at, at)


def _diagonal_variances(features: Tensor, chances: Tensor, prior: float, at: Tensor) -> Tensor:
    curvature = (chances * (1 - chances)).T @ features.square() + prior
    return at.square() @ curvature.reciprocal().T


AT = torch.tensor([[0.5, -0.2, 0.1, 0.9], [3.0, 2.0, -1.0, 0.5]], dtype=torch.float64)


def _toy() -> tuple[Tensor, Tensor]:
    n = torch.arange(40, dtype=torch.float64)
    waves = (n.sin(), (0.7 * n).cos(), (0.3 * n + 1).sin(), 0.5 * (1.9 * n).cos())
    rows = [[1.0, -0.5, 0.3, 0.2], [-0.4, 0.8, 0.1, -0.6], [0.2, -0.1, -0.7, 0.5]]
    features, head = torch.stack(waves, 1), torch.tensor(rows, dtype=torch.float64)
    return features, (features @ head.T).softmax(-1)


# laplace-torch 0.3 with torch 2.13 in float64: a net of Identity and Linear(4, 3, bias=False)
# with the head of `_toy`, `Laplace(net, "classification", subset_of_weights="last_layer",
# hessian_structure="full" or "diag", prior_precision=0.7)`, fitted on the features of `_toy`
# with any labels; then `_glm_predictive_distribution(AT)[1]`.
LAPLACE_TORCH_FULL = [
    [
        [0.8269429015548956, 0.36245203772531814, 0.396319346434072],
        [0.3624520377253182, 0.856220693861269, 0.3670415541276991],
        [0.3963193464340721, 0.3670415541276991, 0.8223533851525147],
    ],
    [
        [8.170870964547529, 6.095703735458543, 6.090568157136794],
        [6.095703735458545, 8.335720269164483, 5.92571885251984],
        [6.0905681571367944, 5.925718852519842, 8.340855847486232],
    ],
]
LAPLACE_TORCH_DIAGONAL = [
    [0.5629193665997894, 0.5639674414878347, 0.5514502410958387],
    [3.326801280403734, 3.3735455514752912, 3.20136304464794],
]
# The same with a head of zeros and, as features, five copies of diag(1, 2, 0.5, 1.5).
LAPLACE_TORCH_APART = [0.40916446051298605, 6.847715223077748]


def test_the_formulas_are_those_of_laplace_torch() -> None:
    features, chances = _toy()
    full = torch.tensor(LAPLACE_TORCH_FULL, dtype=torch.float64)
    diagonal = torch.tensor(LAPLACE_TORCH_DIAGONAL, dtype=torch.float64)
    assert torch.allclose(_full_variances(features, chances, 0.7, AT), full, rtol=1e-10)
    assert torch.allclose(_diagonal_variances(features, chances, 0.7, AT), diagonal, rtol=1e-10)


def test_where_the_posterior_separates_ours_is_that_of_laplace_torch() -> None:
    # Equal chances everywhere and features at right angles: nothing is approximate.
    features = torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=torch.float64).diag().repeat(5, 1)
    count, curvature, prior = 20, 2 / 9, 0.7
    ridge = prior / (count * curvature) * torch.eye(4, dtype=torch.float64)
    factor = torch.linalg.cholesky(features.T @ features / count + ridge)
    variances = leverage(AT, factor) / (count * curvature)
    assert torch.allclose(
        variances, torch.tensor(LAPLACE_TORCH_APART, dtype=torch.float64), rtol=1e-12
    )


def test_information_is_half_the_trace_of_curvature_and_variance() -> None:
    model, features = HeadOnly(_random(VOCAB, WIDTH)), _random(6, TIME, WIDTH, seed=1)
    measure = Laplace(positions=TIME)
    measure.observe(model, _batch(6), features)
    measure.commit(_alone)

    seen = features[:, TIME // 4 :].reshape(-1, WIDTH)  # all that is behind the beginning
    chances = (seen @ model.table.T).softmax(-1)
    second_moment = seen.T @ seen / len(seen)
    curvature = (chances * (1 - chances)).mean(0)
    damped = second_moment + RIDGE * second_moment.diagonal().mean() * torch.eye(WIDTH)
    at = _random(50, WIDTH, seed=2)
    new = (at @ torch.linalg.inv(damped) * at).sum(1)
    variances = new[:, None] / (6 * TIME * (curvature + RIDGE * curvature.mean()))
    p = (at @ model.table.T).softmax(-1)
    expected = (p * (1 - p) * variances).sum(1) / 2
    assert torch.allclose(measure.information(at, p.float()).double(), expected, rtol=1e-3)


@pytest.mark.parametrize(("width", "vocab", "seed"), [(8, 20, 0), (8, 20, 1), (12, 30, 2)])
def test_information_ranks_as_the_exact_posterior_does(width: int, vocab: int, seed: int) -> None:
    """Against Monte-Carlo BALD (Houlsby et al. 2011), inside and outside of what was seen."""
    scales = torch.linspace(0, -2, width, dtype=torch.float64).exp()
    model = HeadOnly(0.5 * _random(vocab, width, seed=seed))
    features = _random(200, 20, width, seed=seed + 10) * scales
    chances = (features.flatten(0, 1) @ model.table.T).softmax(-1).detach()
    hessian = _hessian_in_parts(features.flatten(0, 1), chances)
    noise = _random(vocab * width, 300, seed=seed + 20)
    upper = torch.linalg.cholesky(hessian).T
    draws = torch.linalg.solve_triangular(upper, noise, upper=True).T.view(-1, vocab, width)
    inside = _random(150, width, seed=seed + 30) * scales
    outside = _random(150, width, seed=seed + 40) * torch.linspace(0.5, 3, 150)[:, None]
    at = torch.cat((inside, outside))
    with torch.no_grad():
        exact = disagreement(torch.einsum("ti,svi->stv", at, model.table + draws).softmax(-1))
        measure = Laplace(positions=15)
        measure.observe(model, _batch(200, 20), features)
        measure.commit(_alone)
        p = probabilities(model, at)
        found = measure.information(at, p)

    agreement = spearmanr(found, exact).statistic
    assert agreement >= 0.9
    assert agreement >= spearmanr(entropies(p), exact).statistic + 0.3
    assert spearmanr(found[:150], exact[:150]).statistic >= 0.9
    assert 0.7 < (found / exact).median() < 1.6


def _hessian_in_parts(features: Tensor, chances: Tensor) -> Tensor:
    parts = zip(features.split(500), chances.split(500), strict=True)
    return sum(_hessian(f, p, prior=1 / 8) for f, p in parts)  # type: ignore[return-value]


def test_what_is_read_again_and_again_is_ever_better_known() -> None:
    model, batch = HeadOnly(_random(VOCAB, WIDTH)), _batch(4)
    measure = Laplace(refresh=1)
    measure.observe(model, batch, _random(4, TIME, WIDTH, seed=1))
    measure.commit(_alone)
    again = 2 * _random(4, TIME, WIDTH, seed=2)
    left = []
    for _ in range(30):
        left.append(measure.information(again, probabilities(model, again)).mean())
        measure.observe(model, batch, again)
        measure.commit(_alone)
    assert all(later < sooner for sooner, later in pairwise(left))
    assert left[-1] < left[0] / 30  # faster than by the number of tokens alone


def test_what_is_certain_carries_no_information() -> None:
    measure, model = Laplace(), HeadOnly(_random(VOCAB, WIDTH))
    measure.observe(model, _batch(4), _random(4, TIME, WIDTH, seed=1))
    measure.commit(_alone)
    sure = torch.eye(VOCAB)
    features = 5 * _random(VOCAB, WIDTH, seed=2)
    assert not measure.information(features, sure).any()
    assert measure.information(features, (sure + 1e-3) / (1 + VOCAB * 1e-3)).min() > 0
    assert not entropies(sure).any()
    assert not disagreement(sure.expand(3, -1, -1)).any()


def test_nothing_that_was_never_seen_is_infinitely_uncertain() -> None:
    features = torch.zeros(10, WIDTH)
    features[:, 0] = 1.0
    factor = factorized(features.T @ features / 10)
    assert leverage(torch.eye(WIDTH), factor).max() <= 1.01 * WIDTH / RIDGE
    only = torch.zeros(VOCAB)
    only[0] = 0.1
    assert unusualness(torch.full((VOCAB,), 1 / VOCAB), only) <= 1.01 * 10 * VOCAB / RIDGE
    assert unusualness(torch.full((VOCAB,), 1 / VOCAB), torch.zeros(VOCAB)).isfinite()


def test_the_statistics_do_not_know_labels_or_the_size_of_a_batch() -> None:
    model, features = HeadOnly(_random(VOCAB, WIDTH)), _random(4, TIME, WIDTH, seed=1)
    once, twice = Laplace(), Laplace()
    once.observe(model, _batch(4, seed=1), features)
    twice.observe(model, _batch(8, seed=2), features.repeat(2, 1, 1))
    states = []
    for measure in (once, twice):
        measure.commit(_alone)
        states.append(measure.state_dict())
    for name in ("second_moment", "curvature", "factor"):
        assert torch.allclose(states[0][name], states[1][name], rtol=1e-5)
    assert states[1]["tokens"] == 2 * states[0]["tokens"] == 8 * TIME


def test_averages_are_those_of_adam_with_its_correction() -> None:
    model, measure = HeadOnly(_random(VOCAB, WIDTH)), Laplace(rho=0.2, positions=TIME)
    average, spread, weight = torch.zeros(WIDTH, WIDTH), torch.zeros(VOCAB), 0.0
    for step in range(7):
        features = _random(3, TIME, WIDTH, seed=step)
        measure.observe(model, _batch(3), features)
        measure.commit(_alone)
        seen = features[:, TIME // 4 :].flatten(0, 1)
        p = (seen @ model.table.T).softmax(-1)
        average = 0.8 * average + 0.2 * seen.T @ seen / len(seen)
        spread = 0.8 * spread + 0.2 * (p * (1 - p)).mean(0)
        weight = 0.8 * weight + 0.2
        found = measure.state_dict()
        assert torch.allclose(found["second_moment"].double(), average / weight, atol=1e-5)
        assert torch.allclose(found["curvature"].double(), spread / weight, atol=1e-6)


def test_the_factor_is_renewed_when_it_is_due() -> None:
    model, measure, factors = HeadOnly(_random(VOCAB, WIDTH)), Laplace(refresh=3), []
    for step in range(9):
        measure.observe(model, _batch(2), _random(2, TIME, WIDTH, seed=step))
        measure.commit(_alone)
        factors.append(measure.state_dict()["factor"])
    renewed = [not torch.equal(a, b) for a, b in pairwise(factors)]
    assert renewed == [True, True, False, False, True, False, False, True]


def test_scores_compare_with_what_is_usual_at_such_a_position() -> None:
    table, rare = _random(VOCAB, WIDTH) / 3, WIDTH // 2
    table[:, rare:] = 0  # directions that change no prediction, only how new a context is
    model, measure = HeadOnly(table), Laplace()
    scales = torch.linspace(1, 4, TIME)[:, None].repeat(1, WIDTH)  # uncertainty grows by itself
    scales[:, rare:] /= 10
    for step in range(40):
        measure.observe(model, _batch(16), _random(16, TIME, WIDTH, seed=step) * scales)
        measure.commit(_alone)
    usual = _random(200, TIME, WIDTH, seed=99) * scales
    new = usual.clone()
    new[..., rare:] *= 10
    early = usual[:, 4:8].repeat(1, 2, 1)  # short sequences, where only t = 4...7 compare
    scores = [measure.score(model, _batch(200), features) for features in (usual, new, early)]
    assert abs(scores[0].mean()) < 0.1
    assert scores[1].mean() > 2
    assert abs(scores[2].mean()) < 0.2
    assert max(score.abs().max() for score in scores) <= CLIP


# --- What every measure obeys --------------------------------------------------------------


@pytest.mark.parametrize("make", MEASURES)
def test_it_is_a_measure(make: Measure) -> None:
    assert isinstance(make(seed=3), Uncertainty)


@pytest.mark.parametrize("make", MEASURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_is_one_finite_score_for_each_sequence(make: Measure, dtype: torch.dtype) -> None:
    model, measure = _gpt(), make()
    model.trunk.dtype = dtype
    for seed in range(3):
        assert _score(measure, model).isfinite().all()
        _step(measure, model, seed)
    scores = _score(measure, model)
    assert scores.shape == (4,)
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    assert len(set(scores.tolist())) == 4


@pytest.mark.parametrize("make", [Laplace, Ensemble])
def test_before_anything_is_known_all_are_alike(make: Measure) -> None:
    measure, model = make(), _gpt()
    assert not _score(measure, model).any()
    batch = _batch(4)
    measure.observe(model, batch, model.features(batch.inputs).detach())
    assert not _score(measure, model).any()  # heard, and not yet taken in
    measure.load_state_dict(measure.state_dict())
    measure.commit(_alone)
    assert measure.state_dict() == {"commits": 0}  # what was pending is gone


@pytest.mark.parametrize("make", MEASURES)
@pytest.mark.parametrize("parts", [2, 4])
def test_a_step_may_come_in_parts(make: Measure, parts: int) -> None:
    model, whole, in_parts = _gpt(), make(), make()
    for seed in range(4):
        _step(whole, model, seed)
        batch = _batch(8, seed=seed)
        for start in range(0, 8, 8 // parts):
            part = batch.part(start, start + 8 // parts)
            in_parts.observe(model, part, model.features(part.inputs).detach())
        in_parts.commit(_alone)
    assert torch.allclose(_score(whole, model), _score(in_parts, model), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", MEASURES)
def test_two_processes_know_what_one_would(make: Measure) -> None:
    model, alone, first, second = _gpt(), make(), make(), make()
    for seed in range(4):
        _step(alone, model, seed)
        batch = _batch(8, seed=seed)
        said: list[list[Tensor]] = []
        for measure, part in ((first, batch.part(0, 3)), (second, batch.part(3, 8))):
            features = model.features(part.inputs).detach()
            measure.observe(model, part, features)
            state = measure.state_dict()
            measure.commit(said.append)  # to hear what it would send
            measure.load_state_dict(state)
            measure.observe(model, part, features)
        sums = [mine + other for mine, other in zip(*said, strict=True)] if said else []
        for measure in (first, second):
            measure.commit(partial(_received, sums))
    assert torch.equal(_score(first, model), _score(second, model))
    assert torch.allclose(_score(alone, model), _score(first, model), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", MEASURES)
def test_a_state_restores_exactly_and_stays_what_it_was(make: Measure) -> None:
    model, measure = _gpt(), make(seed=5)
    for seed in range(3):
        _step(measure, model, seed)
    state = measure.state_dict()
    assert all(isinstance(value, int | float | str | Tensor) for value in state.values())
    then = _score(measure, model)
    for seed in range(3, 6):
        _step(measure, model, seed)
    after = _score(measure, model)

    again = make(seed=5)
    again.load_state_dict(state)
    assert torch.equal(_score(again, model), then)
    for seed in range(3, 6):
        _step(again, model, seed)
    assert torch.equal(_score(again, model), after)


@pytest.mark.parametrize("make", MEASURES)
def test_listening_leaves_the_model_and_its_random_numbers_alone(make: Measure) -> None:
    model, measure = _gpt(), make()
    model.train()
    before = torch.get_rng_state()
    batch = _batch(4)
    features = torch.zeros(4, TIME, 16).normal_(generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        measure.observe(model, batch, features)
        measure.commit(_alone)
        measure.score(model, batch, features)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    measure.score(model, batch, features)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("make", MEASURES)
def test_flops_are_the_products_that_are_counted(make: Measure) -> None:
    model, measure, batch = _gpt(vocab=2048), make(), _batch(8)
    with torch.no_grad():
        features = model.features(batch.inputs)
    _step(measure, model)
    with FlopCounterMode(display=False) as counter:
        measure.observe(model, batch, features)
        measure.commit(_alone)
        measure.score(model, batch, features)
    # Half of the attention's products are masked, and factors are not counted.
    assert counter.get_total_flops() == pytest.approx(measure.flops(model, 8, TIME), rel=0.05)


# --- Each of the others ----------------------------------------------------------------------


def test_entropy_is_that_of_the_capped_logits() -> None:
    model, features = HeadOnly(_random(VOCAB, WIDTH), soft_cap=2.0), _random(3, TIME, WIDTH, seed=1)
    logits = 2.0 * (features[:, places(TIME, 16)] @ model.table.T / 2.0).tanh()
    expected = torch.distributions.Categorical(logits=logits).entropy().mean(1)
    found = Entropy().score(model, _batch(3), features)
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_small_heads_learn_what_the_model_says_and_disagree_elsewhere() -> None:
    model, measure = HeadOnly(_random(400, WIDTH)), Ensemble(lr=0.01)
    seen = _random(64, TIME, WIDTH, seed=1)
    seen[..., WIDTH // 2 :] = 0  # a half of the directions is never seen
    elsewhere = _random(64, TIME, WIDTH, seed=2)
    scores = []
    for _ in range(60):
        measure.observe(model, _batch(64), seen)
        measure.commit(_alone)
        scores.append(measure.score(model, _batch(64), seen).mean())
    assert scores[-1] < 0.5 * max(scores)
    assert measure.score(model, _batch(64), elsewhere).mean() > 2 * scores[-1]
    assert measure.score(model, _batch(64), 100 * elsewhere).max() <= math.log(3) + 1e-5


def test_heads_begin_apart_from_each_other_and_from_another_seed() -> None:
    model, states = HeadOnly(_random(VOCAB, WIDTH)), []
    for seed in (0, 0, 1):
        measure = Ensemble(seed=seed, lr=0.0)
        measure.observe(model, _batch(2), _random(2, TIME, WIDTH))
        measure.commit(_alone)
        states.append(measure.state_dict()["weights"])
    assert torch.equal(states[0], states[1])
    assert not torch.allclose(states[0], states[2])
    assert not torch.allclose(states[0][0], states[0][1])


def test_each_head_learns_from_its_half_of_the_positions() -> None:
    model, features = HeadOnly(_random(VOCAB, WIDTH)), _random(3, TIME, WIDTH, seed=1)

    def gradient(features: Tensor) -> Tensor:
        measure = Ensemble()
        measure.observe(model, _batch(len(features)), features)
        measure.commit(_alone)
        return measure.state_dict()["mean"]

    whole = gradient(features)
    assert torch.allclose(gradient(features.repeat(2, 1, 1)), whole, atol=1e-7)  # a mean
    listens = []
    for place in places(TIME, 16):
        other = features.clone()
        other[:, place] += 1
        listens.append((gradient(other) - whole).abs().amax(1) > 1e-6)
    assert torch.stack(listens).sum(0).tolist() == [8, 8, 8]
    assert not torch.equal(*torch.stack(listens).T[:2])


@pytest.mark.parametrize("vocab", [3, 256, 1000, 50_257])
def test_buckets_share_out_all_of_the_chances_evenly(vocab: int) -> None:
    chances = _random(2, vocab).softmax(-1)
    dealt = bucketed(chances)
    assert dealt.shape == (2, BUCKETS)
    assert torch.allclose(dealt.sum(-1), torch.ones(2, dtype=torch.float64))
    sizes = bucketed(torch.ones(vocab))
    assert sizes.max() - sizes.min() <= 1


def test_dropout_needs_a_model_that_has_some() -> None:
    model, batch = _gpt(dropout=0.0), _batch(2)
    features = model.features(batch.inputs).detach()
    for ask in (Dropout().score, Dropout().observe):
        with pytest.raises(InputError) as caught:
            ask(model, batch, features)
        assert caught.value.hint == "set model.dropout=0.1"


def test_more_dropout_is_more_uncertainty() -> None:
    little, much = (_score(Dropout(passes=8), _gpt(dropout)).mean() for dropout in (0.02, 0.3))
    assert 0 < little < much


def test_after_each_step_other_activations_are_dropped() -> None:
    model, measure = _gpt(), Dropout()
    first = _score(measure, model)
    assert torch.equal(_score(measure, model), first)
    _step(measure, model)
    assert not torch.equal(_score(measure, model), first)
    assert not torch.equal(_score(Dropout(seed=1), model), first)


# --- What is shared ------------------------------------------------------------------------


@given(st.integers(1, 3000), st.integers(1, 64))
def test_places_are_different_and_spread_behind_the_beginning(time: int, count: int) -> None:
    chosen = places(time, count)
    first = min(32, time // 4)
    assert len(chosen) == min(count, time - first)
    assert chosen[0] == first
    assert chosen[-1] <= time - 1
    gaps = chosen.diff()
    assert len(chosen) == 1 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


@given(st.integers(2, 6), st.integers(2, 9), st.integers(0, 2**31))
def test_disagreement_is_between_zero_and_its_bound(members: int, vocab: int, seed: int) -> None:
    chances = (8 * _random(members, 5, vocab, seed=seed)).softmax(-1)
    found = disagreement(chances)
    assert found.min() >= -1e-12
    assert found.max() <= math.log(min(members, vocab)) + 1e-12
    assert disagreement(chances[:1].expand(members, -1, -1)).abs().max() < 1e-12
