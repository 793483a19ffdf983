"""Complex-linear maps and the MLP that phases pass through, against complex numbers."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from effcli.engine.models.algebra import ComplexLinear, ComplexMLP
from effcli.engine.models.gpt import MLP
from effcli.engine.models.phase import Phase
from effcli.engine.phase.coherence import rotate
from effcli.engine.runs.trained import settle
from effcli.settings.phase import PhaseSettings

VOCAB = 61
EPS = {torch.float32: 1e-5, torch.float64: 1e-13}
HEADS = [(1, 1), (1, 4), (4, 1), (2, 3)]


def _drawn(module: torch.nn.Module, spread: float = 0.3) -> Any:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=spread, generator=generator)
    return module


def _x(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(2))


def _complex(x: Tensor, heads: int = 1) -> Tensor:
    """Complex channels of [re | im], one group of each after the other."""
    re, im = x.unflatten(-1, (heads, 2, -1)).unbind(-2)
    return torch.complex(re, im).flatten(-2)


def _turned(x: Tensor, angle: float, heads: int = 1) -> Tensor:
    by_head = x.unflatten(-1, (heads, -1))
    return rotate(by_head, by_head.new_tensor([angle])).flatten(-2)


def _settings(**shape: Any) -> PhaseSettings:
    small = {"layers": 2, "width": 24, "heads": 3, "context": 16, "pair_rows": 0}
    return PhaseSettings(**{**small, "algebra": "complex", **shape})


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize(("from_heads", "to_heads"), HEADS)
def test_a_map_is_that_of_complex_numbers(
    from_heads: int, to_heads: int, dtype: torch.dtype
) -> None:
    one = _drawn(ComplexLinear(16, 24, from_heads=from_heads, to_heads=to_heads)).to(dtype)
    x = _x(5, 7, 16, dtype=dtype).requires_grad_()
    w = torch.complex(*one.weight.chunk(2, dim=1))
    expected = _complex(x, from_heads) @ w.T
    found = one(x)
    assert (_complex(found, to_heads) - expected).abs().max() < EPS[dtype]
    own = torch.autograd.grad(found.square().sum(), (x, one.weight))
    theirs = torch.autograd.grad(torch.view_as_real(expected).square().sum(), (x, one.weight))
    for ours, other in zip(own, theirs, strict=True):
        assert torch.allclose(ours, other, rtol=10 * EPS[dtype], atol=100 * EPS[dtype])
    one.settle(dtype)
    assert torch.equal(one(x), found)


@pytest.mark.parametrize(("from_heads", "to_heads"), HEADS)
def test_a_map_commutes_with_a_global_phase(from_heads: int, to_heads: int) -> None:
    one = _drawn(ComplexLinear(16, 24, from_heads=from_heads, to_heads=to_heads)).double()
    x = _x(5, 16)
    for angle in (0.1, math.pi / 2, 3.0):
        turned = one(_turned(x, angle, from_heads))
        assert (turned - _turned(one(x), angle, to_heads)).abs().max() < 1e-13
    # Heads that were cut from halves of the stream would not be turned.
    assert to_heads == 1 or (turned - _turned(one(x), angle)).abs().max() > 0.1


@pytest.mark.parametrize("activation", ["relu2", "gelu", "swiglu"])
def test_the_whole_mlp_commutes_with_a_global_phase(activation: str) -> None:
    s, x = _settings(activation=activation), _x(2, 5, 24)
    mlp, real = _drawn(ComplexMLP(s)).double(), _drawn(MLP(s)).double()
    for angle in (0.1, math.pi / 2, 3.0):
        off = [(one(_turned(x, angle)) - _turned(one(x), angle)).abs().max() for one in (mlp, real)]
        assert off[0] < 1e-13
        assert off[1] > 0.01
    assert (mlp(2 * x) - 2 * mlp(x)).abs().max() > 0.01  # it is not linear


@pytest.mark.parametrize("activation", ["relu2", "gelu", "swiglu"])
def test_the_mlp_is_that_of_complex_numbers(activation: str) -> None:
    mlp, x = _drawn(ComplexMLP(_settings(activation=activation))).double(), _x(2, 5, 24)
    h = _complex(mlp.up(x))
    z = (h if activation != "swiglu" else _complex(mlp.gate(x))).abs() * mlp.gains + mlp.offsets
    gates = {
        "relu2": z.clamp(min=0),
        "gelu": torch.special.ndtr(z),
        "swiglu": z * z.sigmoid(),
    }
    expected = (h * gates[activation]) @ torch.complex(*mlp.down.weight.chunk(2, dim=1)).T
    assert (_complex(mlp(x)) - expected).abs().max() < 1e-10


def test_an_mlp_of_nothing_has_finite_gradients() -> None:
    mlp, x = ComplexMLP(_settings()), torch.zeros(1, 3, 24, requires_grad=True)
    _drawn(mlp)(x).square().sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mlp.parameters())


def test_maps_begin_with_the_spread_of_real_ones() -> None:
    for algebra in ("pair", "complex"):
        model = Phase(_settings(width=96, algebra=algebra, zero_init=False), VOCAB)
        attention, x = model.trunk.blocks[0].attention, _x(64, 96, dtype=torch.float32)
        for one in (attention.query, attention.gate):
            assert one(x).square().mean().item() == pytest.approx(1.0, abs=0.1)
    mlp = model.trunk.blocks[0].mlp
    assert (mlp.gains == 1).all()
    counts = mlp.up(x).unflatten(-1, (2, -1)).norm(dim=-2) > -mlp.offsets
    assert counts.double().mean().item() == pytest.approx(1 / 7, abs=0.02)


def test_a_settled_model_computes_the_same() -> None:
    model = _drawn(Phase(_settings(), VOCAB)).eval()
    tokens = torch.randint(VOCAB, (2, 16), generator=torch.Generator().manual_seed(0))
    names = set(model.state_dict())
    with torch.no_grad():
        before = model(tokens)
        settle(model)
        assert torch.equal(model(tokens), before)
    assert set(model.state_dict()) == names
