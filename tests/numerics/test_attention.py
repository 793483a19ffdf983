"""Both forms of attention are the one of the definition."""

import math

import pytest
import torch

from effcli.engine.models.layers import (
    KeyValueCache,
    Rotary,
    Shift,
    attend,
    dropped,
    rms_norm,
    rotate,
)


def _reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None = None
) -> torch.Tensor:
    out = torch.zeros_like(q)
    time, past = q.shape[-2], k.shape[-2]
    for t in range(time):
        end = past - time + t + 1
        seen = slice(max(0, end - (window or end)), end)
        scores = (k[:, :, seen] @ q[:, :, t, :, None]).squeeze(-1) / math.sqrt(q.shape[-1])
        out[:, :, t] = (scores.softmax(-1).unsqueeze(-1) * v[:, :, seen]).sum(-2)
    return out


@pytest.mark.parametrize("by_products", [True, False])
@pytest.mark.parametrize(("time", "past"), [(9, 9), (1, 9), (4, 9), (1, 1)])
def test_attention_is_causal_and_exact(by_products: bool, time: int, past: int) -> None:
    q = torch.randn(2, 3, time, 8, dtype=torch.float64)
    k, v = (torch.randn(2, 3, past, 8, dtype=torch.float64) for _ in range(2))
    found = attend(q, k, v, by_products=by_products)
    assert torch.allclose(found, _reference(q, k, v), atol=1e-12)


@pytest.mark.parametrize("window", [1, 3, 4, 8, 30])
@pytest.mark.parametrize(("time", "past"), [(9, 9), (12, 12), (1, 9), (4, 9)])
def test_a_window_sees_the_last_positions(window: int, time: int, past: int) -> None:
    q = torch.randn(2, 3, time, 8, dtype=torch.float64)
    k, v = (torch.randn(2, 3, past, 8, dtype=torch.float64) for _ in range(2))
    found = attend(q, k, v, by_products=True, window=window)
    assert torch.allclose(found, _reference(q, k, v, window), atol=1e-12)


def test_both_forms_have_the_same_gradient() -> None:
    gradients = []
    for by_products in (True, False):
        generator = torch.Generator().manual_seed(3)
        q, k, v = (torch.randn(2, 2, 12, 8, generator=generator).requires_grad_() for _ in range(3))
        attend(q, k, v, by_products=by_products).square().sum().backward()
        gradients.append((q.grad, k.grad, v.grad))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_rotation_depends_on_the_distance_only() -> None:
    rotary = Rotary(8, 64)
    q, k = torch.randn(8), torch.randn(8)

    def score(at: int, other: int) -> torch.Tensor:
        turned = rotate(q.view(1, 1, 1, 8), rotary(at, 1, torch.float32)).flatten()
        return turned @ rotate(k.view(1, 1, 1, 8), rotary(other, 1, torch.float32)).flatten()

    assert torch.allclose(score(5, 2), score(45, 42), atol=1e-4)
    assert torch.allclose(score(0, 0), q @ k, atol=1e-5)
    assert not torch.allclose(score(5, 2), score(5, 3), atol=1e-3)


def test_rotation_is_a_product_of_complex_numbers() -> None:
    x, (cosine, sine) = torch.randn(2, 3, 5, 8), Rotary(8, 16)(7, 5, torch.float32)
    assert cosine.shape == sine.shape == (5, 8)
    found = rotate(x, (cosine, sine))
    turned = torch.complex(*x.double().chunk(2, -1)) * torch.complex(
        *(part[:, 4:].double() for part in (cosine, sine))
    )
    assert torch.allclose(found.double(), torch.cat((turned.real, turned.imag), -1), atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_shift_is_the_same_one_position_at_a_time(count: int) -> None:
    shift, x = Shift(8, count), torch.randn(2, 7, 8)
    for weight in shift.weights:
        torch.nn.init.normal_(weight)
    cache = KeyValueCache(0, (2, 1, 7, 8), x)
    parts = [shift(part, cache, "here") for part in (x[:, :3], *x[:, 3:].split(1, dim=1))]
    assert torch.equal(torch.cat(parts, dim=1), shift(x, None, "here"))


def test_dropout_drops_where_it_is_trained() -> None:
    drop, x = torch.nn.Dropout(0.5), torch.ones(1000)
    assert 300 < int((dropped(drop, x) == 0).sum()) < 700
    assert dropped(drop.eval(), x) is x


def test_rms_norm_has_a_mean_square_of_one() -> None:
    x = torch.randn(4, 16) * 50
    assert torch.allclose(rms_norm(x).square().mean(-1), torch.ones(4), atol=1e-4)
