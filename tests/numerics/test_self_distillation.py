"""The divergence from a snapshot is exact, billed, and comes back after a restart."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from effcli.engine.models.gpt import GPT
from effcli.engine.objectives.next_token import NextToken
from effcli.engine.objectives.self_distillation import HARD, SelfDistillation, Snapshot
from effcli.engine.protocols import Batch
from effcli.settings.model import GPTSettings

SHAPE = GPTSettings(layers=1, width=32, heads=2, context=16, soft_cap=5.0, tied=False)


def _model(seed: int) -> GPT:
    model = GPT(SHAPE, 60, seed)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(seed * 100 + number)
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def _batch(count: int) -> Batch:
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, 60, (count, 17)))
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(count))


def _gradients(model: GPT) -> list[torch.Tensor]:
    found = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return [gradient.to_dense().clone() for gradient in found]


def test_loss_and_gradient_are_those_of_the_definition() -> None:
    model, old, batch = _model(1), _model(2), _batch(9)
    snapshot = Snapshot(model)
    snapshot.take(old)
    loss = SelfDistillation(snapshot, 0.7, 5)(model, batch)
    loss.mean.backward()  # type: ignore[no-untyped-call]
    mine = _gradients(model)

    logits = model(batch.inputs)
    each = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    losses = each.view(9, -1).mean(1)
    hard = losses.topk(9 // HARD).indices
    theirs = old(batch.inputs[hard]).detach().softmax(-1)
    apart = (theirs * (theirs.log() - logits[hard].log_softmax(-1))).sum()
    wanted = losses.mean() + 0.7 * apart / batch.inputs.numel()
    wanted.backward()
    assert loss.mean.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert torch.allclose(loss.per_sequence, losses, atol=1e-5)
    for one, other in zip(mine, _gradients(model), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_nothing_is_added_before_a_snapshot_is_taken_or_where_nothing_is_trained() -> None:
    model, batch = _model(1), _batch(8)
    snapshot = Snapshot(model)
    objective, plain = SelfDistillation(snapshot, 0.7), NextToken()
    assert torch.equal(objective(model, batch).mean, plain(model, batch).mean)
    assert objective.flops(model, batch) == plain.flops(model, batch)
    snapshot.take(_model(2))
    with torch.no_grad():
        assert torch.equal(objective(model, batch).mean, plain(model, batch).mean)
    assert not torch.equal(objective(model, batch).mean, plain(model, batch).mean)


def test_the_bill_is_what_is_computed() -> None:
    model, batch = _model(1), _batch(8)
    snapshot = Snapshot(model)
    snapshot.take(_model(2))
    objective = SelfDistillation(snapshot, 0.7)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(model, batch).mean.backward()  # type: ignore[no-untyped-call]
    billed = sum(objective.flops(model, batch).values())
    assert billed == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_a_snapshot_stays_what_it_was_and_goes_into_a_state() -> None:
    model, batch = _model(1), _batch(4)
    snapshot = Snapshot(model)
    snapshot.take(model)
    before, state = snapshot.model(batch.inputs), snapshot.state_dict()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert torch.equal(snapshot.model(batch.inputs), before)
    snapshot.take(model)
    assert not torch.equal(snapshot.model(batch.inputs), before)
    assert all(torch.equal(state[name], kept[name]) for name in kept)
    snapshot.load_state_dict(state)
    assert torch.equal(snapshot.model(batch.inputs), before)
