"""What a student is told is what the textbook says, gradients included, and is billed."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from headonly import HeadOnly
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from effcli.engine.models.gpt import GPT
from effcli.engine.objectives.distillation import HIDDEN_UNTIL, Bridge, Distillation, taught_loss
from effcli.engine.objectives.divergence import divergence
from effcli.engine.objectives.next_token import NextToken
from effcli.engine.objectives.signals import Asked, Drawn, Likeliest, Said, TaughtBatch, Terms
from effcli.engine.protocols import Batch, Objective
from effcli.engine.teaching.making import drawn, likeliest
from effcli.engine.teaching.teachers import Teachers
from effcli.errors import InputError
from effcli.settings.model import GPTSettings

VOCAB, WIDTH, KINDS = 11, 5, ("forward", "reverse", "jsd")
GRID = [(3, 0.0), (7, 3.0), (1000, 3.0)]


def _divergence(kind: str, theirs: Tensor, mine: Tensor, b: float) -> Tensor:
    """By its definition, from log-probabilities."""
    p, q = theirs.exp(), mine.exp()
    if kind == "forward":
        return (p * (theirs - mine)).sum(-1)
    if kind == "reverse":
        return (q * (mine - theirs)).sum(-1)
    middle = (b * q + (1 - b) * p).log()
    return b * (q * (mine - middle)).sum(-1) + (1 - b) * (p * (theirs - middle)).sum(-1)


def _capped(logits: Tensor, soft_cap: float) -> Tensor:
    logits = logits[..., :VOCAB]
    return soft_cap * (logits / soft_cap).tanh() if soft_cap else logits


def _student(soft_cap: float) -> tuple[HeadOnly, Tensor, Tensor, Tensor]:
    model = HeadOnly(torch.randn(16, WIDTH, dtype=torch.float64), soft_cap, VOCAB)
    features = torch.randn(3, 8, WIDTH, dtype=torch.float64, requires_grad=True)
    return model, features, torch.randint(0, VOCAB, (3, 8)), torch.tensor([0.5, 1.0, 1.5])


def _teachers(count: int, soft_cap: float) -> tuple[Teachers, list[Tensor]]:
    models = [HeadOnly(torch.randn(16, 4 + n), soft_cap, VOCAB) for n in range(count)]
    return Teachers(models, [str(n) for n in range(count)]), [
        torch.randn(3, 8, 4 + n) for n in range(count)
    ]


def _probabilities(teachers: Teachers, features: list[Tensor]) -> Tensor:
    """The mean of what each says, in float64."""
    pairs = zip(teachers.models, features, strict=True)
    every = [_capped(x.double() @ m.head.double().T, m.soft_cap).softmax(-1) for m, x in pairs]
    return torch.stack(every).mean(0)


def _compare(student: Any, signal: Any, rows: int, kd: Tensor, alpha: float) -> None:
    """The loss in chunks against `kd` at every position, which autograd differentiates."""
    model, features, targets, weights = student
    mean, each = taught_loss(model, features, targets, signal, rows, weights)
    (mean * 2.5).backward()
    found = features.grad.clone(), model.table.grad.clone()
    features.grad = model.table.grad = None
    logits = _capped(features @ model.table.T, model.soft_cap)
    plain = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(3, 8)
    wanted = ((alpha * kd + (1 - alpha) * plain) * weights.unsqueeze(1)).mean()
    (wanted * 2.5).backward()
    assert torch.allclose(mean, wanted.float(), atol=2e-6)
    assert torch.allclose(each, plain.float(), atol=2e-6)
    assert torch.allclose(found[0], features.grad, atol=1e-6)
    assert torch.allclose(found[1], model.table.grad, atol=1e-6)
    assert not found[1][VOCAB:].any()  # rows that pad the table are never trained


@pytest.mark.parametrize(("rows", "soft_cap"), GRID)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "temperature"), [(1, 1.0), (1, 2.5), (3, 1.0), (2, 0.7)])
def test_asked_teachers_are_the_definition(
    kind: Any, rows: int, soft_cap: float, count: int, temperature: float
) -> None:
    student, (teachers, theirs) = _student(soft_cap), _teachers(count, soft_cap)
    model, features, *_ = student
    terms = Terms(kind, 0.3, temperature, 0.8)
    p = (_probabilities(teachers, theirs).log() / temperature).log_softmax(-1)
    logits = _capped(features @ model.table.T, soft_cap)
    q = (logits / temperature).log_softmax(-1)
    kd = temperature**2 * _divergence(kind, p, q, 0.8)
    _compare(student, Asked(teachers, theirs, terms), rows, kd, 0.3)


@pytest.mark.parametrize(("rows", "soft_cap"), GRID)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 4, VOCAB])
def test_the_likeliest_ids_and_the_rest_are_the_definition(
    kind: Any, rows: int, soft_cap: float, k: int
) -> None:
    student = _student(soft_cap)
    model, features, *_ = student
    ids, logs = likeliest((2 * torch.randn(24, VOCAB)).log_softmax(-1), k)
    said = Said(ids.view(3, 8, -1).to(torch.uint16), logs.view(3, 8, -1).half())
    theirs = said.logs.double().log_softmax(-1)
    q = _capped(features @ model.table.T, soft_cap).softmax(-1)
    known = q.gather(-1, ids.view(3, 8, -1))
    others = q.scatter(-1, ids.view(3, 8, -1), 0.0).sum(-1, keepdim=True).clamp(min=1e-30)
    kd = _divergence(kind, theirs, torch.cat((known, others), -1).log(), 0.8)
    _compare(student, Likeliest(said, Terms(kind, 0.3, mixture=0.8)), rows, kd, 0.3)


@pytest.mark.parametrize(("rows", "soft_cap"), GRID)
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_draws_are_the_definition(rows: int, soft_cap: float, alpha: float) -> None:
    student = _student(soft_cap)
    model, features, *_ = student
    ids = torch.randint(0, VOCAB, (3, 8, 6))  # some of them more than once
    q = _capped(features @ model.table.T, soft_cap).log_softmax(-1)
    kd = -q.gather(-1, ids).mean(-1)
    _compare(student, Drawn(Said(ids.to(torch.uint16)), Terms(alpha=alpha)), rows, kd, alpha)


@pytest.mark.parametrize("kind", KINDS)
def test_who_is_like_its_teacher_is_left_alone(kind: Any) -> None:
    logs = (3 * torch.randn(20, VOCAB)).log_softmax(-1)
    value, slope = divergence(kind, logs, logs.clone())
    assert value.abs().max() < 1e-6
    assert slope.abs().max() < 1e-6
    model = HeadOnly(torch.randn(VOCAB, WIDTH), 5.0)
    features = torch.randn(2, 4, WIDTH, requires_grad=True)
    teachers = Teachers([copy.deepcopy(model)], [""])
    signal = Asked(teachers, [features.detach()], Terms(kind, alpha=1.0))
    taught_loss(model, features, torch.zeros(2, 4).long(), signal)[0].backward()
    assert features.grad.abs().max() < 1e-6
    assert model.table.grad.abs().max() < 1e-6


def test_jsd_becomes_either_divergence_at_its_ends() -> None:
    theirs, mine = (torch.randn(20, VOCAB).double().log_softmax(-1) for _ in range(2))
    b = 1e-6
    for kind, mixture in (("reverse", b), ("forward", 1 - b)):
        value, slope = divergence(kind, theirs, mine)  # type: ignore[arg-type]
        limit, pull = divergence("jsd", theirs, mine, mixture)
        assert torch.allclose(limit / b, value, rtol=1e-4)
        assert torch.allclose(pull / b, slope, rtol=1e-3, atol=1e-6)
    one, other = divergence("jsd", theirs, mine)[0], divergence("jsd", mine, theirs)[0]
    assert torch.allclose(one, other)
    assert one.max() < np.log(2)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), k=st.integers(1, 30), scale=st.sampled_from([0.1, 1.0, 8.0]))
def test_outcomes_that_are_put_together_are_never_farther_apart(
    seed: int, k: int, scale: float
) -> None:
    random = torch.Generator().manual_seed(seed)
    theirs, mine = (
        (scale * torch.randn(9, 30, generator=random)).double().log_softmax(-1) for _ in range(2)
    )
    ids, logs = likeliest(theirs, k)
    q = mine.exp()
    others = q.scatter(1, ids, 0.0).sum(-1, keepdim=True).clamp(min=1e-30)
    together = torch.cat((q.gather(1, ids), others), 1).log()
    for kind in KINDS:
        whole, part = divergence(kind, theirs, mine)[0], divergence(kind, logs, together)[0]  # type: ignore[arg-type]
        assert (part <= whole + 1e-9).all()
        assert (part >= -1e-9).all()


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 20), scale=st.sampled_from([0.1, 2.0, 9.0]))
def test_an_id_is_drawn_as_often_as_is_likely(seed: int, count: int, scale: float) -> None:
    random = torch.Generator().manual_seed(seed)
    log_p = (scale * torch.randn(1, 30, generator=random)).log_softmax(-1)
    grid = (np.arange(5000) + 0.5) / 5000  # instead of chance
    ids = drawn(log_p.expand(5000, -1), grid, count)
    assert (ids.diff(dim=1) >= 0).all()
    counts = F.one_hot(ids, 30).sum(1)
    expected = count * log_p.exp()
    assert (counts >= (expected - 1e-4).floor()).all()
    assert (counts <= (expected + 1e-4).ceil()).all()
    assert torch.allclose(counts.double().mean(0), expected[0].double(), atol=1e-3)


def _gradient(signal: Any, logits: Tensor) -> Tensor:
    targets = torch.zeros(len(logits), 1, dtype=torch.long)
    return signal.grade(logits.clone(), targets, slice(None))[2]


def test_the_errors_of_gradients_are_ordered_as_the_evidence_says() -> None:
    theirs = 3 * torch.randn(64, 1000)
    mine = theirs + torch.randn(64, 1000)
    theirs, mine = theirs.log_softmax(-1), mine.log_softmax(-1)
    full = mine.exp() - theirs.exp()
    ids, logs = likeliest(theirs, 16)
    terms, known = Terms(alpha=1.0), theirs.gather(1, ids).softmax(-1)
    renormalized = mine.exp().scatter_add(1, ids, -known)
    rest = _gradient(Likeliest(Said(ids[None], logs[None]), terms), mine)
    random = np.random.default_rng(0)
    repeats = [_draw_gradient(theirs, mine, random) for _ in range(400)]
    mean = torch.stack(repeats).mean(0)

    def error(gradient: Tensor) -> float:
        return ((gradient - full).norm() / full.norm()).item()

    assert error(mean) < 0.5 * error(rest) < 0.25 * error(renormalized)
    # The mean is the whole gradient: what is left is the noise of so many repeats.
    noise = np.mean([error(gradient) ** 2 for gradient in repeats]) ** 0.5
    assert error(mean) == pytest.approx(noise / 400**0.5, rel=0.1)


def _draw_gradient(theirs: Tensor, mine: Tensor, random: np.random.Generator) -> Tensor:
    ids = drawn(theirs, random.random(len(theirs)), 12)
    return _gradient(Drawn(Said(ids[None]), Terms(alpha=1.0)), mine)


# Of a whole model

SHAPE = GPTSettings(layers=1, width=32, heads=2, context=16, soft_cap=5.0, tied=False)


def _model(seed: int, **changes: Any) -> GPT:
    model = GPT(SHAPE.model_copy(update=changes), 60, seed)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(seed * 100 + number)
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def _batch(count: int, *, weighted: bool = False) -> Batch:
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, 60, (count, 17)))
    weights = torch.linspace(0.5, 1.5, count) if weighted else None
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(count), weights)


def _gradients(model: GPT) -> list[Tensor]:
    found = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return [gradient.to_dense().clone() for gradient in found]


def _asking(terms: Terms, *teachers: GPT, loss: float = 0.0) -> Distillation:
    models = [copy.deepcopy(teacher) for teacher in teachers]
    asked = Teachers(models, [str(n) for n in range(len(models))])
    bridge = Bridge(SHAPE.width, asked.widths, 0) if terms.hidden else None
    return Distillation(terms, loss, asked, bridge)


def test_loss_and_gradient_of_a_model_are_those_of_the_definition() -> None:
    model, old, batch = _model(1), _model(2, width=48), _batch(6, weighted=True)
    objective = _asking(Terms(alpha=0.4, hidden=0.2), old)
    assert isinstance(objective, Objective)
    objective.progress = HIDDEN_UNTIL / 4
    loss = objective(model, batch)
    loss.mean.backward()  # type: ignore[no-untyped-call]
    mine = _gradients(model)

    logits, theirs = model(batch.inputs), old(batch.inputs).detach().log_softmax(-1)
    each = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    kd = (theirs.exp() * (theirs - logits.log_softmax(-1))).sum(-1)
    carried = objective._bridge.maps[0](model.features(batch.inputs))  # type: ignore[union-attr]
    apart = 1 - F.cosine_similarity(carried, old.features(batch.inputs).detach(), dim=-1)
    every = 0.4 * kd + 0.6 * each.view(6, -1) + 0.2 * 0.75 * apart
    wanted = (every * batch.weights.unsqueeze(1)).mean()
    wanted.backward()
    assert loss.mean.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert torch.allclose(loss.per_sequence, each.view(6, -1).mean(1), atol=1e-5)
    for one, other in zip(mine, _gradients(model), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("terms", [Terms(alpha=0.0), Terms("none"), Terms()])
def test_who_hears_no_teacher_has_the_plain_loss_bit_for_bit(terms: Terms) -> None:
    model, batch, plain = _model(1), _batch(5, weighted=True), NextToken()
    objective = _asking(terms, _model(2), loss=2.0)
    if terms.teaches:
        assert not torch.equal(objective(model, batch).mean, plain(model, batch).mean)
        assert objective.hear(2.0) is not None
    one, other = objective(model, batch), plain(model, batch)
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.per_sequence, other.per_sequence)
    one.mean.backward()  # type: ignore[no-untyped-call]
    mine = _gradients(model)
    other.mean.backward()  # type: ignore[no-untyped-call]
    assert all(map(torch.equal, mine, _gradients(model)))
    assert objective.flops(model, batch) == plain.flops(model, batch)


def test_nothing_is_asked_where_nothing_is_trained_or_nothing_was_said() -> None:
    model, batch, plain = _model(1), _batch(5), NextToken()
    with torch.no_grad():
        asking = _asking(Terms(), _model(2))
        assert torch.equal(asking(model, batch).mean, plain(model, batch).mean)
    cached = Distillation(Terms(), 0.0)
    assert torch.equal(cached(model, batch).mean, plain(model, batch).mean)
    said = TaughtBatch.of(batch, Said(torch.zeros(5, 16, 3).to(torch.uint16)))
    assert not torch.equal(cached(model, said).mean, plain(model, batch).mean)


def test_a_part_of_a_batch_brings_its_part_of_what_was_said() -> None:
    model, objective = _model(1), Distillation(Terms("jsd"), 0.0)
    ids, logs = likeliest(torch.randn(6 * 16, 60).log_softmax(-1), 4)
    said = Said(ids.view(6, 16, 4).to(torch.uint16), logs.view(6, 16, 5))
    batch = TaughtBatch.of(_batch(6, weighted=True), said).to(torch.device("cpu"))
    whole = objective(model, batch).mean
    parts = [objective(model, batch.part(start, start + 2)).mean for start in (0, 2, 4)]
    assert torch.allclose(torch.stack(parts).mean(), whole)


def test_a_teacher_that_is_no_better_is_not_heard() -> None:
    model, batch = _model(1), _batch(4)
    objective = _asking(Terms(hidden=0.1), _model(2), loss=3.0)
    assert objective.hear(3.1) is None
    told = objective.hear(3.0)
    assert told is not None
    assert "no better" in told.text
    assert objective.hear(2.9) is None
    assert "teacher" not in objective.flops(model, batch)
    again = _asking(Terms(hidden=0.1), _model(2), loss=3.0)
    again.load_state_dict(objective.state_dict())
    assert not again.listens
    told = again.hear(3.2)  # a student that is worse than it was, as when it is made coarser
    assert told is not None
    assert "better again" in told.text
    assert again.listens


def test_teachers_are_one_voice_and_are_not_trained() -> None:
    models, batch = [_model(1), _model(2, width=48)], _batch(3)
    teachers = Teachers([copy.deepcopy(m).train() for m in models], ["b", "a"])
    assert teachers.hashes == ("a", "b")
    assert teachers.widths == (48, 32)  # by their hashes
    features = teachers.features(batch.inputs)
    found = torch.cat([log_p for _, log_p in teachers.by_rows(features)]).exp()
    wanted = torch.stack([m(batch.inputs).softmax(-1) for m in models]).mean(0)
    assert torch.allclose(found, wanted.flatten(0, 1), atol=1e-6)
    assert not any(m.training for m in teachers.models)
    assert not any(p.requires_grad for m in teachers.models for p in m.parameters())
    assert not any(x.requires_grad for x in features)
    assert teachers.advice(models[0]) is None
    assert "times the student's weights" in str(
        teachers.advice(_model(3, width=2, heads=1, pair_rows=0))
    )


@pytest.mark.parametrize("terms", [Terms(), Terms(hidden=0.3), Terms("none", hidden=0.3)])
def test_the_bill_is_what_is_computed(terms: Terms) -> None:
    model, batch, old = _model(1), _batch(8), _model(2, width=64, layers=2)
    objective = _asking(terms, old)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(model, batch).mean.backward()  # type: ignore[no-untyped-call]
    bill = objective.flops(model, batch)
    assert sum(bill.values()) == pytest.approx(counter.get_total_flops(), rel=0.1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        old.features(batch.inputs) if terms.kind == "none" else old(batch.inputs)
    assert bill["teacher"] == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_what_was_said_before_costs_nothing_in_the_loop() -> None:
    model, batch = _model(1), _batch(4)
    said = TaughtBatch.of(batch, Said(torch.zeros(4, 16, 3).to(torch.uint16)))
    assert Distillation(Terms(), 0.0).flops(model, said) == NextToken().flops(model, batch)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": -0.1},
        {"alpha": 1.1},
        {"alpha": float("nan")},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": float("inf")},
        {"mixture": 0.0},
        {"mixture": 1.0},
        {"hidden": -1.0},
    ],
)
def test_terms_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Terms(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("terms", "mode"),
    [
        (Terms(temperature=2.0), "sampled"),
        (Terms(temperature=2.0), "topk"),
        (Terms(hidden=0.1), "topk"),
        (Terms("reverse"), "sampled"),
        (Terms("jsd"), "sampled"),
    ],
)
def test_what_a_cache_cannot_tell_is_refused(terms: Terms, mode: Any) -> None:
    terms.require("online")
    with pytest.raises(InputError):
        terms.require(mode)
