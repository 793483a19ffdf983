"""Memories by interference, against what they are said to be."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from effcli.engine.device import Device
from effcli.engine.measure.causality import require_causal
from effcli.engine.models.interference import SMALLEST, Told, interfere, one_more, times_i
from effcli.engine.models.mixers import Interference, half_lives
from effcli.engine.models.phase import Phase
from effcli.engine.models.positions import Positions
from effcli.engine.models.turning import CIRCLE, Phases
from effcli.engine.phase.coherence import rotate
from effcli.engine.protocols import LanguageModel
from effcli.engine.runs.trained import build_model
from effcli.errors import CheckError
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve
from effcli.settings.phase import PhaseSettings
from effcli.settings.train import DeviceSettings

TIME, KEY, VALUE = 37, 6, 4
EPS = {torch.float32: 5e-5, torch.float64: 1e-12}


def _told(states: int = 1, *, delta: bool = False, dtype: torch.dtype = torch.float64) -> Told:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64)

    k = torch.nn.functional.normalize(normal(TIME, KEY), dim=-1)
    decays = -normal(states, TIME).exp() / 10
    strength = normal(TIME).sigmoid()
    told = Told(normal(TIME, KEY), k, normal(TIME, VALUE), decays, strength if delta else None)
    cast = {n: getattr(told, n).to(dtype) for n in ("q", "k", "v", "decays")}
    return replace(told, **cast, strength=None if told.strength is None else strength.to(dtype))


def _by_steps(told: Told, blend: Tensor | None) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written down."""
    states = told.decays.shape[2]
    state = told.q.new_zeros(2, 3, states, KEY, VALUE)
    share = told.q.new_ones(3, 1) if blend is None else blend
    reads = []
    for t in range(TIME):
        k, v = told.k[:, :, t], told.v[:, :, t]
        state = told.decays[..., t, None, None].exp() * state
        if told.strength is not None:
            known = torch.einsum("bhk,bhskv->bhv", k, state)
            v = v - told.strength[:, :, t, None] * known
        state = state + (k.unsqueeze(-1) * v.unsqueeze(-2)).unsqueeze(2)
        reads.append(torch.einsum("bhk,bhskv,hs->bhv", told.q[:, :, t], state, share))
    return torch.stack(reads, 2), state


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("chunk", [1, 5, 16, 64])
@pytest.mark.parametrize("way", ["one state", "three states", "delta"])
def test_chunks_compute_the_recurrence(way: str, chunk: int, dtype: torch.dtype) -> None:
    told = _told(3 if way == "three states" else 1, delta=way == "delta", dtype=dtype)
    blend = torch.rand(3, 3, dtype=dtype) if way == "three states" else None
    expected, last = _by_steps(told, blend)
    read, state = interfere(told, chunk, blend, keeps=True)
    assert state is not None
    assert (read - expected).abs().max() < EPS[dtype]
    assert (state - last).abs().max() < EPS[dtype]
    state, singles = None, []
    for t in range(TIME):
        one = _part(told, slice(t, t + 1))
        if state is None:
            single, state = interfere(one, chunk, blend, keeps=True)
        else:
            single, state = one_more(one, state, blend, is_complex=False)
        singles.append(single)
    assert (torch.cat(singles, 2) - expected).abs().max() < EPS[dtype]
    cut = 20
    first, second = (_part(told, s) for s in (slice(0, cut), slice(cut, TIME)))
    head, middle = interfere(first, chunk, blend, keeps=True)
    tail, end = interfere(second, chunk, blend, middle, keeps=True)
    assert (torch.cat((head, tail), 2) - expected).abs().max() < EPS[dtype]
    assert end is not None
    assert (end - last).abs().max() < EPS[dtype]


def _part(told: Told, part: slice) -> Told:
    strength = None if told.strength is None else told.strength[:, :, part]
    q, k, v = told.q[:, :, part], told.k[:, :, part], told.v[:, :, part]
    return Told(q, k, v, told.decays[..., part], strength)


def test_the_complex_score_is_that_of_complex_numbers() -> None:
    told = _told()
    pairs, values = KEY // 2, VALUE // 2
    as_complex = [
        torch.complex(x[..., :n], x[..., n:])
        for x, n in ((told.q, pairs), (told.k, pairs), (told.v, values))
    ]
    q, k, v = as_complex
    sums = told.decays[:, :, 0].cumsum(-1)
    left = (sums[..., :, None] - sums[..., None, :]).tril().exp().tril()
    expected = ((k.conj().unsqueeze(2) * q.unsqueeze(3)).sum(-1) * left) @ v
    real = interfere(told, 8)[0]
    imaginary = interfere(replace(told, q=-times_i(told.q)), 8)[0]
    found = real + times_i(imaginary)
    assert (torch.cat((expected.real, expected.imag), -1) - found).abs().max() < 1e-10
    _, before = interfere(_part(told, slice(0, 20)), 8, keeps=True)
    assert before is not None
    single, _ = one_more(_part(told, slice(20, 21)), before, None, is_complex=True)
    assert (single - found[:, :, 20:21]).abs().max() < 1e-10


@pytest.mark.parametrize("delta", [False, True])
def test_extreme_decays_leave_gradients_finite(delta: bool) -> None:
    told = _told(delta=delta, dtype=torch.float32)
    decays = torch.where(torch.rand(2, 3, 1, TIME) < 0.5, SMALLEST, -1e-6).requires_grad_()
    q = told.q.clone().requires_grad_()
    interfere(replace(told, q=q, decays=decays), 16)[0].square().sum().backward()
    for gradient in (q.grad, decays.grad):
        assert gradient is not None
        assert gradient.isfinite().all()


def test_parity_is_exact_for_phases_that_are_made_for_it() -> None:
    bits = torch.randint(2, (10_000,), generator=torch.Generator().manual_seed(0))
    angles = (bits * math.pi).cumsum(0).remainder(CIRCLE).view(1, 1, -1, 1)
    phasor = torch.tensor([1.0, 0.0]).expand(1, 1, len(bits), 2)
    is_first = torch.zeros(1, 1, len(bits), 1)
    is_first[:, :, 0] = 1.0
    told = Told(
        rotate(phasor, angles), rotate(phasor, angles), is_first, torch.zeros(1, 1, 1, len(bits))
    )
    read = interfere(told, 64)[0].flatten()
    odd = (bits.cumsum(0) - bits[0]) % 2
    assert torch.equal((read < 0).long(), odd)
    assert (read.abs() - 1).abs().max() < 1e-4


def _settings(*assignments: str, **shape: Any) -> Any:
    small = {"layers": 2, "width": 32, "heads": 4, "context": 64, "pair_rows": 0, **shape}
    named = [f"model.{name}={value}" for name, value in small.items()]
    return resolve(BaselineSettings, {}, ["model.name=phase", *named, *assignments]).settings.model


def _model(*assignments: str, spread: float = 0.3) -> Phase:
    model = build_model(_settings(*assignments), 77, 0)
    assert isinstance(model, Phase)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=spread, generator=generator)
        if name.endswith("decay.bias"):
            torch.nn.init.constant_(parameter, -4.0)
    return model.eval()


def test_phases_add_up_exactly_for_a_long_time() -> None:
    s = _settings()
    phases = Phases(s)
    torch.nn.init.normal_(phases.narrow.weight)
    torch.nn.init.normal_(phases.widen.weight, std=0.1)
    x, cache = torch.randn(1, 2000, s.width), Phase(s, 77).new_cache(1)
    steps = phases.widen(phases.narrow(x)).detach().view(2000, s.heads, -1)
    steps = (steps * phases.get_buffer("rates")).double()
    with torch.no_grad():
        for _ in range(100):
            angles = phases(x, cache, "0")
    expected = (steps.sum(0) * 100).unsqueeze(1)
    off = angles[0, :, -1:].double() - expected
    assert (off - CIRCLE * (off / CIRCLE).round()).abs().max() < 1e-2  # after 200,000 steps


def test_what_does_not_turn_is_as_if_there_were_no_phases() -> None:
    still, turning = _settings("model.phase=none"), _settings()
    first, second = Interference(still, 0), Interference(turning, 0)
    torch.nn.init.zeros_(second.phases.widen.weight)
    second.load_state_dict(first.state_dict(), strict=False)
    x, told = torch.randn(2, 40, 32), Positions(torch.zeros(2, 40, dtype=int), None, None, None)
    assert torch.equal(first(x, told, None, 0, None), second(x, told, None, 0, None))


@pytest.mark.parametrize(
    "extra",
    [[], ["model.write=delta"], ["model.hybrid=2", "model.window=9"], ["model.resets=true"]],
)
def test_memory_does_not_grow(extra: list[str]) -> None:
    model = _model(*extra)
    sizes = []
    for length in (64, 512, 4096):
        cache = model.new_cache(1)
        with torch.no_grad():
            model.features(torch.randint(77, (1, length)), cache)
        sizes.append(cache.floats)
    assert len(set(sizes)) == 1


def test_a_text_alone_is_what_it_is_in_a_batch_and_its_order_matters() -> None:
    model, tokens = _model(), torch.randint(77, (3, 60))
    with torch.no_grad():
        assert (model(tokens)[1:2] - model(tokens[1:2])).abs().max() < 1e-4
        turned = tokens.clone()
        turned[:, :40] = turned[:, :40].flip(1)
        assert (model(tokens) - model(turned))[:, -1].abs().max() > 1e-3


class _NoComplex(TorchDispatchMode):
    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = call(*args, **(kwargs or {}))
        assert not any(
            isinstance(o, Tensor) and o.is_complex()
            for o in (out if isinstance(out, tuple | list) else [out])
        )
        return out


@pytest.mark.parametrize("algebra", ["pair", "complex"])
def test_both_halves_of_phasors_learn_in_bfloat16(algebra: str) -> None:
    gradients: dict[str, list[Tensor]] = {}
    for precision in ("float32", "bfloat16"):
        model = _model(f"model.algebra={algebra}", spread=0.1)
        Device(DeviceSettings(name="cpu", precision=precision)).adopt(model)
        with _NoComplex():
            model(torch.randint(77, (4, 64), generator=torch.Generator().manual_seed(0)))[
                ..., 0
            ].square().sum().backward()
        for name in ("query", "key", "phases.widen"):
            weight = model.trunk.get_submodule(f"blocks.0.attention.{name}").weight.grad
            assert weight is not None
            is_complex = algebra == "complex" and name != "phases.widen"
            rows = weight if is_complex else weight.view(4, -1, weight.shape[1])
            halves = rows.chunk(2, 1)
            for half, part in zip(("re", "im"), halves, strict=True):
                gradients.setdefault(f"{name} {half}", []).append(part.flatten())
    for name, (exact, rough) in gradients.items():
        assert torch.cosine_similarity(exact, rough, 0) > 0.98, name
        assert 0.9 < rough.norm() / exact.norm() < 1.1, name


@pytest.mark.parametrize("preset", ["nano", "tiny", "small", "base", "seed"])
@pytest.mark.parametrize(
    "extra", [[], ["states=3"], ["phase=none"], ["hybrid=2"], ["algebra=complex"]]
)
def test_there_are_as_many_weights_as_in_a_gpt(preset: str, extra: list[str]) -> None:
    sizes = []
    for name, own in (("gpt", []), ("phase", [f"model.{one}" for one in extra])):
        layers = [f"model.name={name}", *own]
        settings = resolve(BaselineSettings, {"preset": preset}, layers).settings
        with torch.device("meta"):
            model = build_model(settings.model, 4096, 0)
        sizes.append(sum(p.numel() for p in model.trunk.blocks.parameters()))
    assert abs(sizes[1] / sizes[0] - 1) < 0.01


def test_memories_begin_with_half_lives_of_all_scales() -> None:
    settings = resolve(BaselineSettings, {"preset": "tiny"}, ["model.name=phase"]).settings.model
    assert isinstance(settings, PhaseSettings)
    model = build_model(settings, 77, 0)
    lives = torch.stack([half_lives(settings, layer) for layer in range(settings.layers)])
    for block, wanted in zip(model.trunk.blocks, lives, strict=True):
        rate = torch.nn.functional.softplus(block.attention.decay.bias)
        assert torch.allclose((-rate * wanted.flatten()).exp(), torch.tensor(0.5).double())
    steps = lives.flatten().sort()[0].log().diff()
    assert torch.allclose(steps, steps[0])  # even over scales
    assert lives.min() > 4
    assert lives.max() < 1024


class _Leaky(Phase):
    def features(self, tokens: Tensor, cache: Any = None) -> Tensor:
        x = super().features(tokens, cache)
        return x + 0.01 * x.mean(1, keepdim=True)


class _LeakyBeyondChunks(Phase):
    def features(self, tokens: Tensor, cache: Any = None) -> Tensor:
        x = super().features(tokens, cache)
        return x + 0.01 * x[:, 64:].sum(1, keepdim=True)


class _LeakyInTraining(_Leaky):
    def features(self, tokens: Tensor, cache: Any = None) -> Tensor:
        return super().features(tokens, cache) if self.training else Phase.features(self, tokens)


class _Blind(Phase):
    def features(self, tokens: Tensor, cache: Any = None) -> Tensor:
        return torch.zeros_like(super().features(tokens, cache))


def test_a_model_that_looks_ahead_is_refused() -> None:
    require_causal(Phase(_settings(), 77))
    with pytest.raises(CheckError, match="looks ahead"):
        require_causal(_Leaky(_settings(), 77))
    with pytest.raises(CheckError, match="does not see"):
        require_causal(_Blind(_settings(), 77))
    for leak in (_LeakyBeyondChunks, _LeakyInTraining):
        with pytest.raises(CheckError, match="looks ahead"):
            require_causal(leak(_settings(context=256), 77))
    assert issubclass(Phase, LanguageModel)
