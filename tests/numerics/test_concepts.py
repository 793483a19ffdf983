"""The concept layer starts as nothing, stays pointwise, and uses its codes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from effcli.engine.phase.concepts import (
    LIGHT,
    PRIOR,
    Concepts,
    information,
    strongest,
    usage_perplexity,
)

WIDTH, CODES = 16, 24


def _layer(*, awake: bool = True, **how: int) -> Concepts:
    layer = Concepts(WIDTH, CODES, **how)
    if awake:  # an output, and priors that differ
        generator = torch.Generator().manual_seed(1)
        for name, parameter in layer.named_parameters():
            if name != "log_sharpness" and not parameter.any():
                parameter.data.normal_(generator=generator)
    return layer


def test_at_first_nothing_is_added() -> None:
    layer = _layer(awake=False, vocab_size=9)
    x = torch.randn(2, 7, WIDTH)
    out, _ = layer(x, torch.randint(9, (2, 7)))
    assert torch.equal(out, x)
    out.square().sum().backward()
    assert layer.output.weight.grad is not None
    assert layer.output.weight.grad.abs().sum() > 0  # and it can begin to move


def test_weights_depend_on_the_seed_alone() -> None:
    one, same, other = _layer(seed=3), _layer(seed=3), _layer(seed=4)
    assert torch.equal(one.codes_embedding, same.codes_embedding)
    assert not torch.equal(one.codes_embedding, other.codes_embedding)


def test_each_position_sees_itself_alone() -> None:
    layer = _layer(vocab_size=9)
    x, tokens = torch.randn(2, 7, WIDTH), torch.randint(9, (2, 7))
    changed = x.clone()
    changed[0, 3] += 1
    before, after = (layer(each, tokens)[0] for each in (x, changed))
    is_other = (before != after).any(-1)
    assert is_other.nonzero().tolist() == [[0, 3]]


@given(top=st.integers(1, 40), sharpness=st.floats(0.1, 60), seed=st.integers(0, 999))
@settings(max_examples=25)
def test_the_strongest_codes_share_a_weight_of_one(top: int, sharpness: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probable = (sharpness * torch.randn(3, 5, CODES, generator=generator)).softmax(-1)
    weights = strongest(probable, min(top, CODES))
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 5))
    assert ((weights > 0).sum(-1) <= top).all()
    assert torch.equal(weights.argmax(-1), probable.argmax(-1))
    assert 0 <= information(probable) + 1e-6 <= 1 + 2e-6


def test_information_is_one_for_sure_and_even_codes_and_zero_for_one_answer() -> None:
    assert information(torch.eye(CODES)).item() == pytest.approx(1)
    assert information(torch.full((4, 6, CODES), 1 / CODES)).item() == pytest.approx(0, abs=1e-6)
    alike = torch.eye(CODES)[3].expand(4, 6, CODES)
    assert information(alike).item() == pytest.approx(0, abs=1e-6)
    assert usage_perplexity(torch.ones(CODES)).item() == pytest.approx(1)
    assert usage_perplexity(torch.eye(CODES)[0]).item() == pytest.approx(1 / CODES)
    sure = torch.eye(CODES).requires_grad_()
    information(sure).backward()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()


def test_gradients_reach_all_codes_and_all_else() -> None:
    layer = _layer(vocab_size=9)
    out, probable = layer(torch.randn(2, 7, WIDTH), torch.randint(9, (2, 7)))
    (out.square().mean() - information(probable)).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        gradient = parameter.grad.to_dense()
        assert gradient.isfinite().all(), name
        assert gradient.abs().sum() > 0, name
    assert layer.codes_embedding.grad is not None
    assert (layer.codes_embedding.grad.abs().sum(1) > 0).all()


def test_the_balance_moves_against_what_is_used() -> None:
    layer, x = _layer(), torch.randn(4, 9, WIDTH)
    out, probable = layer(x)
    out.sum().backward()
    used = strongest(probable, layer.top).sum((0, 1))
    assert layer.balance.grad is not None
    torch.testing.assert_close(layer.balance.grad / LIGHT, used - 36 / CODES)
    whole, layer.balance.grad = layer.balance.grad, None
    for part in (x[:1], x[1:]):  # however a batch is cut, and whatever the loss is
        (3 * layer(part)[0].square().sum()).backward()
    torch.testing.assert_close(layer.balance.grad / LIGHT, whole / LIGHT)
    before = probable[..., 5].mean()
    layer.balance.data[5] += 1.0
    assert layer.assign(x)[..., 5].mean() > before


def _train(layer: Concepts, centers: Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    meaning = torch.randn(16, WIDTH, generator=generator)
    for _ in range(steps):
        topics = torch.randint(16, (8, 16), generator=generator)
        x = centers[topics] + 0.3 * torch.randn(8, 16, WIDTH, generator=generator)
        out, probable = layer(x)
        loss = F.mse_loss(out - x, meaning[topics]) - 0.01 * information(probable)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_topics_spread_over_the_codes_and_are_told_apart() -> None:
    layer, generator = Concepts(WIDTH, 32), torch.Generator().manual_seed(2)
    centers = torch.randn(16, WIDTH, generator=generator)
    _train(layer, centers, 150)
    x = centers.expand(8, 16, WIDTH) + 0.3 * torch.randn(8, 16, WIDTH, generator=generator)
    probable = layer.assign(x).detach()
    assert usage_perplexity(strongest(probable, 4).mean((0, 1))) >= 0.3
    most = math.log(16) / math.log(32)  # that a code can tell of 16 topics
    assert 0.75 * most < information(probable) <= most + 0.01
    assert len(layer.assign(centers[None])[0].argmax(-1).unique()) == 16


def test_the_center_comes_to_be_the_mean_of_all_queries() -> None:
    layer, generator = Concepts(WIDTH, CODES), torch.Generator().manual_seed(2)
    x = 1.0 + torch.randn(8, 16, WIDTH, generator=generator)  # nearly all in one direction
    optimizer = torch.optim.AdamW([layer.center], lr=0.02, weight_decay=0.0)
    before = layer.queries(x).mean((0, 1)).norm()
    for _ in range(100):
        optimizer.zero_grad()
        layer(x)[0].sum().backward()
        optimizer.step()
    after = layer.queries(x).mean((0, 1)).norm()
    assert before > 0.5
    assert after < 0.1


def test_balance_alone_brings_all_codes_into_use() -> None:
    layer, generator = Concepts(WIDTH, 64), torch.Generator().manual_seed(2)
    with torch.no_grad():  # all but a few are far from everything
        layer.codes_embedding.normal_(generator=generator)
        layer.codes_embedding[6:] -= layer.query.weight.sum(1)
        layer.codes_embedding[:6] += layer.query.weight.sum(1)
    x = 0.5 + torch.randn(64, 16, WIDTH, generator=generator)
    optimizer = torch.optim.AdamW([layer.balance], lr=0.02, weight_decay=0.0)
    used = []
    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 200)
        out, probable = layer(x)
        used.append(usage_perplexity(strongest(probable, layer.top).mean((0, 1))).item())
        optimizer.zero_grad()
        out.sum().backward()
        optimizer.step()
    assert used[0] < 0.3
    assert used[-1] > 0.9


def test_half_precision_reaches_codes_in_full() -> None:
    layer, x = _layer(), torch.randn(2, 7, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        out, probable = layer(x.bfloat16())
    assert out.dtype == torch.bfloat16
    assert probable.dtype == torch.float32
    torch.testing.assert_close(probable.sum(-1), torch.ones(2, 7))
    torch.testing.assert_close(probable, layer(x)[1], rtol=0, atol=0.05)


def test_a_prior_biases_tokens_of_a_cluster_to_one_concept() -> None:
    layer = Concepts(WIDTH, 2, vocab_size=7)
    coordinates = np.array([[1, 0], [1.1, 0], [0.9, 0], [-1, 1], [-1, 1.1], [0, 0], [-1, 0.9]])
    layer.set_prior(coordinates)
    prior = layer.prior_table.weight
    assert not prior[5].any()  # not known
    assert prior[0].max() == PRIOR
    assert torch.equal(prior[0], prior[1])
    assert torch.equal(prior[3], prior[6])
    assert not torch.equal(prior[0], prior[3])
    x, tokens = torch.zeros(1, 7, WIDTH), torch.arange(7)[None]
    assert torch.equal(layer.assign(x, tokens)[0, 0].argmax(), prior[0].argmax())


def test_work_is_counted_by_products() -> None:
    layer = Concepts(WIDTH, CODES, channels=8)
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(2, 5, WIDTH))
    assert layer.forward_flops(2, 5) == counter.get_total_flops()
