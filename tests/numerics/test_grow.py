"""A model that grows computes what it did, and learns with all that it has."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from effcli.engine.device import Device
from effcli.engine.growing import apart
from effcli.engine.models.gpt import GPT
from effcli.engine.models.grow import Growth, grown
from effcli.engine.models.phase import Phase
from effcli.engine.optim.optimizer import Optimizer
from effcli.errors import CheckError, InputError
from effcli.settings.model import GPTSettings, LowBitSettings
from effcli.settings.optim import AdamWSettings, MuonSettings, OptimizerSettings, SGDSettings
from effcli.settings.phase import PhaseSettings
from effcli.settings.train import DeviceSettings

VOCAB = 61
TEXTBOOK: dict[str, Any] = {
    "positions": "learned",
    "norm": "layer",
    "qk_norm": False,
    "activation": "gelu",
    "bias": True,
    "tied": True,
    "zero_init": False,
    "embedding_norm": False,
    "soft_cap": 0.0,
    "shift": 0,
    "pair_rows": 0,
    "value_tables": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "modern": {"pair_rows": 128},
    "swiglu": {"activation": "swiglu", "embedding_norm": False, "bias": True, "shift": 2},
    "textbook": TEXTBOOK,
    "untied": {**TEXTBOOK, "tied": False, "pair_rows": 32, "value_tables": True, "shift": 1},
    "phase": {"phase": "data", "pair_rows": 32, "bias": True},
    "rope": {"phase": "rope", "states": 2},
    "tracker": {"phase": "data", "tracker": True, "score": "complex", "activation": "swiglu"},
    "delta": {"phase": "none", "write": "delta"},
    "hybrid": {"phase": "data", "hybrid": 2, "window": 5},
    "concepts": {"phase": "data", "concepts": 16},
    "complex": {"phase": "data", "algebra": "complex", "pair_rows": 32},
    "gated": {"phase": "rope", "algebra": "complex", "activation": "swiglu", "concepts": 8},
    "resets": {"phase": "data", "resets": True, "hybrid": 2, "window": 4},
    "layered": {"phase": "data", "norm": "layer", "embedding_norm": False, "concepts": 8},
}
SMALL, WIDE, DEEP = (32, 2, 2), (48, 3, 2), (32, 2, 4)
BOTH = (80, 5, 5)


def _settings(kind: str, size: tuple[int, int, int]) -> GPTSettings:
    width, heads, layers = size
    cls = PhaseSettings if {"phase"} & KINDS[kind].keys() else GPTSettings
    sizes = {"width": width, "heads": heads, "layers": layers, "context": 16}
    return cls(**{"pair_rows": 0, **sizes, **KINDS[kind]})


def _model(settings: GPTSettings) -> GPT:
    """Weights as of a model that was trained: nothing is 0 any more."""
    model = (Phase if isinstance(settings, PhaseSettings) else GPT)(settings, VOCAB)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim < 2 or "table" in name else parameter.shape[1] ** -0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=spread)
    return model.eval()


def _tokens(rows: int = 3) -> Tensor:
    return torch.randint(VOCAB, (rows, 16), generator=torch.Generator().manual_seed(2))


def _loss(model: GPT) -> Tensor:
    tokens = _tokens(16)
    return F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())


@pytest.mark.parametrize("size", [WIDE, DEEP, BOTH], ids=["wide", "deep", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_grown_model_computes_what_it_did(kind: str, size: tuple[int, int, int]) -> None:
    small = _model(_settings(kind, SMALL))
    large = grown(small, _settings(kind, size), 7).eval()
    with torch.no_grad():
        before, after = small(_tokens()), large(_tokens())
    assert before.std() > 0.3
    assert (after - before).abs().max() <= 1e-4
    for name, buffer in small.named_buffers():
        if "concepts" in name and size[2] == 2:
            assert torch.equal(buffer, large.get_buffer(name))


@pytest.mark.parametrize("kind", ["textbook", "swiglu", "phase"])
def test_faint_streams_grow_exactly_too(kind: str) -> None:
    """Norms add eps to a mean square; where streams are faint it counts."""
    faint = {"embedding_norm": False}
    settings = _settings(kind, SMALL).model_copy(update=faint)
    small = _model(settings)
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            if any(part in name for part in ("embedding.", "output", "down", "positions", "pair")):
                parameter.mul_(1e-3)
        if not settings.tied:
            small.head.mul_(1e3)
        large = grown(small, _settings(kind, BOTH).model_copy(update=faint), 7).eval()
        assert (large(_tokens()) - small(_tokens())).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_new_is_trained_within_two_steps(kind: str) -> None:
    small = _model(_settings(kind, SMALL))
    large = grown(small, _settings(kind, (64, 4, 4)), 7).train()
    optimizer = Optimizer(large, AdamWSettings(lr=1e-3))
    seen: dict[str, Tensor] = {}
    for step in range(3):
        _loss(large).backward()
        for name, parameter in large.named_parameters():
            assert parameter.grad is not None, name
            gradient = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            if step < 2 or name.endswith(".center"):  # which follows queries that have moved
                seen[name] = seen.get(name, torch.zeros_like(gradient)) + gradient.abs()
        optimizer.step(1.0)
        optimizer.zero_grad()
    for name, gradient in seen.items():
        rows = "table" in name or "embedding" in name or "positions" in name
        channels = gradient.sum(0) if rows and gradient.ndim == 2 else gradient
        assert (channels != 0).double().mean() > 0.8, name


@pytest.mark.parametrize(
    "optim", [AdamWSettings(), MuonSettings(), SGDSettings()], ids=["adamw", "muon", "sgd"]
)
@pytest.mark.parametrize("kind", ["modern", "swiglu", "hybrid", "complex"])
def test_moments_are_those_of_the_grown_weights(kind: str, optim: OptimizerSettings) -> None:
    """What is remembered is what the grown model would remember of the old weights.

    Behind a LayerNorm that is so but for the mean, which new channels share.
    """
    small = _model(_settings(kind, SMALL))
    settings = _settings(kind, WIDE)
    growth = Growth(small.settings, settings, VOCAB)
    large = grown(small, settings, 7)
    states = []
    for model in (small, large):
        optimizer = Optimizer(model, optim.model_copy(update={"clip": 0.0}))
        _loss(model).backward()
        optimizer.step(1e-6)
        states.append(optimizer.state_dict())
    moved = growth.moments(states[0])
    assert moved.keys() == states[1].keys()
    new = Optimizer(large, optim)
    new.load_state_dict(moved)
    assert new.state_dict().keys() == moved.keys()
    for path, value in moved.items():
        if path.endswith("/squares"):
            assert value.shape == states[1][path].shape
        elif value.ndim:
            is_old = value != 0
            there = states[1][path]
            assert value.shape == there.shape
            exact = 1e-5 * value.abs().max().item() + 1e-7  # of sums in another order
            assert torch.allclose(value[is_old], there[is_old], rtol=1e-3, atol=exact), path
        else:
            assert torch.equal(value, states[1][path])


def test_growing_is_a_function_of_the_seed_and_draws_no_other_numbers() -> None:
    small = _model(_settings("concepts", SMALL))
    before = torch.get_rng_state()
    one, same, other = (grown(small, _settings("concepts", BOTH), seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    names = {name for name, tensor in one.state_dict().items() if tensor.is_floating_point()}
    assert all(torch.equal(one.state_dict()[name], same.state_dict()[name]) for name in names)
    assert not torch.equal(one.head, other.head)


def test_phases_of_tokens_stay_what_they_are() -> None:
    small = _model(_settings("phase", SMALL))
    large = grown(small, _settings("phase", WIDE), 7)
    old = small.phases.view(VOCAB, 2, -1)
    kept = large.phases.view(VOCAB, 2, -1)[..., :16]
    assert (kept - old).abs().mean() < 1e-3  # but for the eps in their lengths


@pytest.mark.parametrize(
    ("kind", "small", "changes", "message"),
    [
        ("modern", SMALL, {"width": 48}, "heads keep their channels"),
        ("modern", WIDE, {"width": 32, "heads": 2}, "does not shrink"),
        ("modern", DEEP, {"layers": 3}, "does not shrink"),
        ("modern", SMALL, {"shift": 2}, "alone"),
        ("hybrid", (32, 2, 3), {"layers": 3, "hybrid": 3}, "alone"),
        ("textbook", SMALL, {"width": 48, "heads": 3, "embedding_norm": True}, "alone"),
    ],
)
def test_sizes_that_do_not_nest_are_refused(
    kind: str, small: tuple[int, int, int], changes: dict[str, Any], message: str
) -> None:
    settings = _settings(kind, small)
    with pytest.raises(InputError, match=message):
        Growth(settings, settings.model_copy(update=changes), VOCAB)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tied": True}, "tied tables"),
        ({"norm": "layer"}, "normed embedding"),
    ],
)
def test_what_cannot_be_exact_is_refused(changes: dict[str, Any], message: str) -> None:
    small, large = (_settings("modern", s).model_copy(update=changes) for s in (SMALL, WIDE))
    with pytest.raises(InputError, match=message):
        Growth(small, large, VOCAB)
    deeper = _settings("modern", DEEP).model_copy(update=changes)
    Growth(small, deeper, VOCAB)  # depth alone is exact


def test_complex_maps_behind_a_layer_norm_grow_in_depth_alone() -> None:
    changes = {"norm": "layer", "embedding_norm": False}
    small, large, deeper = (
        _settings("complex", size).model_copy(update=changes) for size in (SMALL, WIDE, DEEP)
    )
    with pytest.raises(InputError, match="write no mean"):
        Growth(small, large, VOCAB)
    Growth(small, deeper, VOCAB)


def test_blocks_become_ones_of_their_kind() -> None:
    settings = _settings("hybrid", SMALL)
    sizes = [settings.model_copy(update={"layers": n}) for n in (3, 5, 6)]
    for large in sizes[1:]:
        Growth(sizes[0], large, VOCAB)
    depths = ({"layers": layers, "concepts": 8} for layers in (4, 6, 8))
    small, same, other = (settings.model_copy(update=depth) for depth in depths)
    Growth(small, same, VOCAB)
    with pytest.raises(InputError, match="do not keep their order"):
        Growth(small, other, VOCAB)  # concepts would be behind a memory, not attention


@pytest.mark.parametrize("kind", ["modern", "concepts"])
def test_a_run_does_not_go_on_with_another_function(kind: str) -> None:
    """Whatever the precision of training is, functions are compared in float32."""
    small = _model(_settings(kind, SMALL)).train()
    large = grown(small, _settings(kind, WIDE), 7)
    device = Device(DeviceSettings(name="cpu", precision="bfloat16", threads=1))
    for model in (small, large):
        device.adopt(model)
    assert apart(small, large, _tokens(1)) < 1e-4
    assert small.training
    assert small.dtype == small.trunk.dtype == torch.bfloat16
    with torch.no_grad():
        large.trunk.blocks[0].mlp.down.weight.mul_(1.01)
    with pytest.raises(CheckError, match="computes something else"):
        apart(small, large, _tokens(1))


def test_models_of_few_bits_do_not_grow() -> None:
    few = LowBitSettings(width=32, heads=2)
    with pytest.raises(InputError, match="low-bit cannot grow"):
        Growth(few, few, VOCAB)
