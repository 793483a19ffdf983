"""Kernels of another library: used where they say what the plain form says, and else refused.

What stands in for the library computes what its documentation says, position by position.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from effcli.engine.device import Device
from effcli.engine.models import fused, interference
from effcli.engine.models.interference import Told
from effcli.engine.models.phase import Phase
from effcli.engine.runs.trained import build_model
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve
from effcli.settings.train import DeviceSettings

CPU, TIME, KEY, VALUE = torch.device("cpu"), 141, 6, 4
Kernel = Callable[..., tuple[Tensor, Tensor | None]]


def _chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """S_t = e^{g_t} S_{t-1} + k_t v_tᵀ, o_t = scale S_tᵀ q_t; (batch, time, heads, channels)."""
    assert g is not None
    assert g_gamma is None
    assert not kwargs
    (batch, time, heads, keys), values = q.shape, v.shape[-1]
    assert k.shape == q.shape
    assert v.shape == (batch, time, heads, values)
    assert g.shape == (batch, time, heads)
    assert g.dtype == torch.float32
    state = torch.zeros(batch, heads, keys, values)
    if initial_state is not None:
        assert initial_state.shape == state.shape
        assert initial_state.dtype == torch.float32
        state = initial_state
    scale, reads = keys**-0.5 if scale is None else scale, []
    for t in range(time):
        written = k[:, t].float().unsqueeze(-1) * v[:, t].float().unsqueeze(-2)
        state = state * g[:, t, :, None, None].exp() + written
        reads.append(torch.einsum("bhk,bhkv->bhv", scale * q[:, t].float(), state))
    return torch.stack(reads, 1).to(q.dtype), state if output_final_state else None


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Kernel | None], list[int]]]:
    """Puts a kernel in the library's place, or nothing; the CPU counts as a GPU. Counts calls."""

    def put(kernel: Kernel | None) -> list[int]:
        calls: list[int] = []

        def counted(*args: Any, **kwargs: Any) -> Any:
            assert kernel is not None
            calls.append(1)
            return kernel(*args, **kwargs)

        modules = {name: ModuleType(name) for name in ("fla", "fla.ops", "fla.ops.simple_gla")}
        modules["fla.ops.simple_gla"].chunk_simple_gla = counted  # type: ignore[attr-defined]
        modules["fla"].ops = modules["fla.ops"]  # type: ignore[attr-defined]
        modules["fla.ops"].simple_gla = modules["fla.ops.simple_gla"]  # type: ignore[attr-defined]
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        if kernel is None:
            monkeypatch.delitem(sys.modules, "fla.ops.simple_gla")
            monkeypatch.delitem(sys.modules, "fla.ops")
            monkeypatch.setitem(sys.modules, "fla", None)
        fused.refusal.cache_clear()
        return calls

    monkeypatch.setattr(fused, "_is_gpu", lambda device: True)
    yield put
    fused.refusal.cache_clear()


def _told(*, states: int = 1, dtype: torch.dtype = torch.float32) -> Told:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(2, 3, *shape, generator=generator)

    q, k = (torch.nn.functional.normalize(normal(TIME, KEY), dim=-1) for _ in range(2))
    parts = [x.to(dtype).requires_grad_() for x in (q, k, normal(TIME, VALUE))]
    return Told(*parts, (-normal(states, TIME).exp() / 10).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("goes_on", [False, True])
def test_kernels_say_what_the_plain_form_says(
    install: Any, goes_on: bool, dtype: torch.dtype
) -> None:
    calls, told = install(_chunk_simple_gla), _told(dtype=dtype)
    before = torch.randn(2, 3, 1, KEY, VALUE).requires_grad_() if goes_on else None
    inputs = [told.q, told.k, told.v, told.decays, *([] if before is None else [before])]
    found = []
    for form in (fused.interfere, interference.interfere):
        reads, state = form(told, 64, None, before, keeps=True)
        assert state is not None
        assert state.shape == (2, 3, 1, KEY, VALUE)
        assert state.dtype == torch.float32
        assert reads.shape == told.v.shape
        assert reads.dtype == dtype
        total = reads.float().square().sum() + state.square().sum()
        found.append([reads, state, *torch.autograd.grad(total, inputs)])
    assert len(calls) == 3  # two of the trial, whatever is asked for afterwards
    assert fused.refusal(CPU, dtype, KEY, VALUE) is None
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= fused.ALLOWED[dtype] * other.abs().max()
    assert fused.interfere(told, 64)[1] is None


def _wrong(**changes: Any) -> Kernel:
    """The same with other arguments: a function of what was given, or a value."""

    def kernel(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        for name, change in changes.items():
            if kwargs[name] is not None:
                kwargs[name] = change(kwargs[name]) if callable(change) else change
        return _chunk_simple_gla(*args, **kwargs)

    return kernel


def _no_number(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    reads, state = _chunk_simple_gla(*args, **kwargs)
    return reads * torch.nan, state


def _without_slope(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    kwargs["g"] = 0.9 * kwargs["g"].detach() + 0.1 * kwargs["g"]
    exact = _chunk_simple_gla(*args, **kwargs)
    return exact[0] + 0 * kwargs["g"].sum(), exact[1]


def _broken(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    raise RuntimeError("no shared memory\nfor so much")


WRONG: dict[str, tuple[Kernel, str]] = {
    "scale": (_wrong(scale=None), "gradients of queries are"),
    "decays": (_wrong(g=lambda g: 0 * g), "are"),
    "start": (_wrong(initial_state=lambda state: 0 * state), "are 1.0e+00 apart"),
    "state": (_wrong(initial_state=lambda state: state.mT.reshape(state.shape)), "apart"),
    "slopes": (_without_slope, "gradients of decays are 9.0e-01 apart"),
    "number": (_no_number, "reads are inf apart"),
    "error": (_broken, "no shared memory"),
}


@pytest.mark.parametrize("way", WRONG)
def test_kernels_that_are_wrong_are_refused_with_one_line(install: Any, way: str) -> None:
    kernel, said = WRONG[way]
    calls, told = install(kernel), _told()
    reads, _state = fused.interfere(told, 64, keeps=True)
    after, why = len(calls), fused.refusal(CPU, torch.float32, KEY, VALUE)
    assert why is not None
    assert said in why
    assert why.startswith("fla's kernels")
    assert "\n" not in why
    assert torch.equal(reads, interference.interfere(told, 64, keeps=True)[0])
    fused.interfere(told, 64)
    assert len(calls) == after  # nobody tries again


def test_what_kernels_do_not_know_is_never_asked_of_them(install: Any) -> None:
    calls, told = install(_chunk_simple_gla), _told()
    several = _told(states=2)
    double = Told(*(x.double() for x in (told.q, told.k, told.v, told.decays)))
    asked: list[tuple[Told, int, Tensor | None]] = [
        (several, 64, torch.full((3, 2), 0.5)),
        (replace(told, strength=torch.rand(2, 3, TIME)), 64, None),
        (told, 32, None),
        (double, 64, None),
    ]
    for one, chunk, blend in asked:
        reads = fused.interfere(one, chunk, blend)[0]
        assert torch.equal(reads, interference.interfere(one, chunk, blend)[0])
    assert not calls


def test_without_the_library_or_a_gpu_nothing_changes(
    install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(None)
    told = _told()
    assert fused.refusal(CPU, torch.float32, KEY, VALUE) == ""
    assert torch.equal(fused.interfere(told, 64)[0], interference.interfere(told, 64)[0])
    monkeypatch.undo()
    fused.refusal.cache_clear()
    assert fused.refusal(CPU, torch.float32, KEY, VALUE) == ""
    assert fused.refusal(torch.device("meta"), torch.float32, KEY, VALUE) == ""


def _model(*assignments: str, recompute: bool = False) -> Phase:
    small: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "context": 80}
    small |= {"pair_rows": 0, "value_tables": False}
    named = ["model.name=phase", *(f"model.{name}={value}" for name, value in small.items())]
    model = build_model(resolve(BaselineSettings, {}, [*named, *assignments]).settings.model, 77, 0)
    assert isinstance(model, Phase)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    where = DeviceSettings(name="cpu", threads=1, precision="float32", recompute=recompute)
    Device(where).adopt(model)
    return model


@pytest.mark.parametrize("score", ["real", "complex"])
@pytest.mark.parametrize("recompute", [False, True])
def test_models_learn_and_write_the_same(install: Any, score: str, recompute: bool) -> None:
    model = _model(f"model.score={score}", recompute=recompute)
    tokens, found = torch.randint(77, (2, 80)), []
    for kernel in (_chunk_simple_gla, None):
        calls = install(kernel)
        before = torch.get_rng_state()
        logits = model(tokens)
        logits.square().mean().backward()
        slopes = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        with torch.inference_mode():
            cache = model.new_cache(2)
            first, then = (model.features(part, cache) for part in tokens.split([70, 10], 1))
        assert torch.equal(before, torch.get_rng_state())
        found.append([logits.detach(), *slopes, first, then])
        assert bool(calls) == (kernel is not None)
        assert not model.unfused
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() < 1e-4 * max(1.0, other.abs().max().item())
    install(_wrong(scale=None))
    assert model.unfused
    assert not _model("model.states=2").unfused


def test_a_compiled_model_has_the_plain_form(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, told = install(_chunk_simple_gla), _told()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(fused.interfere(told, 64)[0], interference.interfere(told, 64)[0])
    assert not calls
