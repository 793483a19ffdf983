"""Coherence and energies equal their definitions over all pairs, and know no angle's jump."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from effcli.engine.phase import coherence, energies
from effcli.engine.phase.coherence import SCALES, phasors, rotate

shapes = st.tuples(st.integers(1, 3), st.integers(2, 40), st.integers(1, 24), st.integers(0, 999))


def _numbers(batch: int, time: int, pairs: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, time, 2 * pairs, dtype=torch.float64, generator=generator)


def _complex(x: Tensor) -> Tensor:
    return torch.complex(*x.chunk(2, dim=-1))


def _of_angles(angles: Tensor) -> Tensor:
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def _all_pairs(time: int) -> tuple[Tensor, Tensor]:
    first, second = torch.triu_indices(time, time, 1)
    return first, second


@given(shape=shapes)
@settings(max_examples=25)
def test_coherences_are_what_their_definitions_say(shape: tuple[int, int, int, int]) -> None:
    x = _numbers(*shape)
    u, z = phasors(x), _complex(phasors(x))
    time = u.shape[1]
    found = coherence.scale_coherences(u)
    lags = [lag for lag in SCALES if lag < time]
    wanted = [(z[:, lag:] * z[:, :-lag].conj()).real.mean((1, 2)) for lag in lags]
    torch.testing.assert_close(found, torch.stack(wanted, -1), rtol=0, atol=1e-12)
    i, j = _all_pairs(time)
    overlaps = (z[:, i] * z[:, j].conj()).real
    all_pairs = coherence.mean_coherence(u)
    torch.testing.assert_close(all_pairs, overlaps.mean((1, 2)), rtol=0, atol=1e-12)
    concepts = _numbers(shape[0], time, 3, 7).relu() + 0.01
    weights = (concepts[:, i] * concepts[:, j]).sum(-1)
    semantic = (weights[..., None] * overlaps).sum(1).mean(-1) / weights.sum(1)
    torch.testing.assert_close(
        coherence.semantic_coherence(u, concepts), semantic, rtol=0, atol=1e-10
    )


def test_where_no_concept_is_shared_nothing_coheres() -> None:
    u = phasors(_numbers(2, 5, 3))
    assert (coherence.semantic_coherence(u, torch.eye(5).expand(2, 5, 5)) == 0).all()


@given(shape=shapes, window=st.integers(1, 50), decay=st.floats(0.01, 0.999))
@settings(max_examples=25)
def test_windows_and_moving_means_are_causal_means(
    shape: tuple[int, int, int, int], window: int, decay: float
) -> None:
    u = phasors(_numbers(*shape))
    z = _complex(u)
    mean = torch.zeros_like(z[:, 0])
    resultants, steady = coherence.resultant(u, window), coherence.stability(u, decay)
    for t in range(u.shape[1]):
        last = z[:, max(0, t + 1 - window) : t + 1].mean(1).abs()
        torch.testing.assert_close(resultants[:, t], last, rtol=0, atol=1e-10)
        mean = decay * mean + (1 - decay) * z[:, t]
        wanted = mean.abs().mean(-1) / (1 - decay ** (t + 1))
        torch.testing.assert_close(steady[:, t], wanted, rtol=0, atol=1e-10)
    assert resultants.max() <= 1 + 1e-12
    assert steady.max() <= 1 + 1e-12


def test_prefix_sums_stay_exact_in_float32() -> None:
    u = phasors(torch.ones(1, 50_000, 2))
    torch.testing.assert_close(coherence.resultant(u, 1), torch.ones(1, 50_000, 1))
    torch.testing.assert_close(coherence.stability(u, 0.99), torch.ones(1, 50_000))


Energy = Callable[[Tensor], Tensor]
ENERGIES: dict[str, Energy] = {
    "local": lambda x: energies.local_energy(phasors(x)),
    "frame": energies.frame_potential,
    "entanglement": energies.entanglement_energy,
    "cka": energies.half_similarity,
    "mean": lambda x: coherence.mean_coherence(phasors(x)),
}


def _brute_entanglement(x: Tensor) -> Tensor:
    z, half = _complex(energies.projected(x)), x.shape[1] // 2
    m = sum(z[:, t, :, None] * z[:, t + half, None, :].conj() for t in range(half))
    assert isinstance(m, Tensor)
    shares = torch.linalg.svdvals(m).square()
    shares = shares / shares.sum(-1, keepdim=True)
    return 1 - (1 - shares.square().sum(-1)) / (1 - 1 / m.shape[-1])


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 40), st.integers(2, 40), st.integers(0, 9))
)
@settings(max_examples=25)
def test_energies_equal_brute_force_and_stay_in_bounds(shape: tuple[int, int, int, int]) -> None:
    x = _numbers(*shape)
    i, j = _all_pairs(x.shape[1])
    unit = x / x.norm(dim=-1, keepdim=True)
    overlaps = (unit[:, i] * unit[:, j]).sum(-1).square().mean(-1)
    torch.testing.assert_close(energies.frame_potential(x), overlaps, rtol=0, atol=1e-10)
    found = energies.entanglement_energy(x)
    torch.testing.assert_close(found, _brute_entanglement(x), rtol=0, atol=1e-10)
    slow = _complex(phasors(x))[..., -math.ceil(shape[2] / 4) :]
    smooth = (slow[:, 1:] * slow[:, :-1].conj()).real.mean((1, 2))
    local = energies.local_energy(phasors(x))
    torch.testing.assert_close(local, (1 - smooth) / 2, rtol=0, atol=1e-10)
    for energy in (energies.frame_potential(x), found, local, energies.half_similarity(x)):
        assert energy.min() >= -1e-12
        assert energy.max() <= 1 + 1e-12


@pytest.mark.parametrize("name", ENERGIES)
def test_energies_know_no_global_phase_no_jump_and_no_chance(name: str) -> None:
    energy = ENERGIES[name]
    x = _numbers(2, 20, 24)
    turned = rotate(x, torch.full((24,), 1.234, dtype=torch.float64))
    torch.testing.assert_close(energy(turned), energy(x), rtol=0, atol=1e-10)
    assert torch.equal(energy(x), energy(x))
    angles = torch.linspace(-1e-3, 1e-3, 20, dtype=torch.float64).repeat(3).view(1, 20, 3)
    scattered = _of_angles(torch.remainder(angles + 2 * math.pi, 2 * math.pi) - math.pi)
    torch.testing.assert_close(energy(scattered), energy(_of_angles(angles)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ENERGIES)
def test_gradients_are_right(name: str) -> None:
    x = _numbers(2, 6, 3).requires_grad_()
    assert torch.autograd.gradcheck(ENERGIES[name], (x,))
    wide = _numbers(1, 4, 20).requires_grad_()
    assert torch.autograd.gradcheck(ENERGIES[name], (wide,))


@pytest.mark.parametrize("name", ENERGIES)
def test_silence_is_no_number_out_of_bounds_and_has_a_finite_gradient(name: str) -> None:
    x = torch.zeros(2, 8, 36, requires_grad=True)
    energy = ENERGIES[name](x)
    energy.sum().backward()
    assert ((energy >= 0) & (energy <= 1)).all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", ENERGIES)
def test_half_precision_outside_changes_nothing_inside(name: str) -> None:
    x = _numbers(2, 16, 24).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = ENERGIES[name](x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), ENERGIES[name](x.double()), rtol=0, atol=1e-5)


def test_aligned_phases_have_less_local_energy() -> None:
    angles = _numbers(1, 32, 8)[..., :8]
    calm = phasors(_of_angles(0.1 * angles)).requires_grad_()
    wild = phasors(_of_angles(3 * angles))
    assert energies.local_energy(calm) < 0.02 < 0.3 < energies.local_energy(wild)
    assert energies.local_energy(torch.ones_like(calm) / math.sqrt(2)).abs() < 1e-12
    free = angles.clone().requires_grad_()
    before = energies.local_energy(_of_angles(free))
    before.sum().backward()
    assert free.grad is not None
    assert energies.local_energy(_of_angles(free - free.grad)) < before
    assert (free.grad[..., :6] == 0).all()  # the other pairs are left alone


def test_the_frame_potential_lies_between_the_welch_bound_and_one() -> None:
    assert energies.welch_bound(257, 48) == pytest.approx(0.0170, abs=5e-5)
    assert energies.welch_bound(40, 48) == 0
    keys = torch.eye(48, dtype=torch.float64).repeat(4, 1)[None]
    assert energies.frame_potential(keys).item() == pytest.approx(energies.welch_bound(192, 48))
    assert energies.frame_potential(_numbers(1, 257, 24)).item() == pytest.approx(0.0209, abs=1e-3)
    assert energies.frame_potential(keys[:, :1].expand(1, 9, 48)).item() == pytest.approx(1)


def test_entanglement_tells_a_loop_from_rich_text() -> None:
    tokens = _numbers(1, 512, 16)
    constant = tokens[:, :1].expand(1, 512, 32)
    assert energies.entanglement_energy(constant).item() == pytest.approx(1)
    assert energies.entanglement_energy(tokens).item() == pytest.approx(0.07, abs=0.02)
    for overlap, energy in ((0.0, 1 - 0.5 / (1 - 1 / 16)), (0.25, 0.585)):  # 1/√16 is usual
        two = torch.eye(32, dtype=torch.float64)[:2]
        two[1] = overlap * two[0] + math.sqrt(1 - overlap**2) * two[1]
        loop = energies.entanglement_energy(two.repeat(128, 1)[None]).item()
        assert loop == pytest.approx(energy, abs=5e-4)
    loops = phasors(_numbers(400, 2, 16)).repeat(1, 128, 1)
    assert energies.entanglement_energy(loops).mean().item() == pytest.approx(0.58, abs=0.02)
    assert energies.hinged(energies.entanglement_energy(tokens)).item() == 0
    assert energies.hinged(torch.tensor([0.8])).item() == pytest.approx(0.5)


def test_similarity_of_halves_is_one_only_where_they_say_the_same() -> None:
    first, other = _numbers(64, 32, 16).chunk(2, dim=1)
    halves = {"same": first, "turned": rotate(first, torch.ones(16)), "other": other}
    found = {
        name: energies.half_similarity(torch.cat((first, half), dim=1)).item()
        for name, half in halves.items()
    }
    assert found["same"] == pytest.approx(1)
    assert found["turned"] == pytest.approx(1)
    assert found["other"] < 0.05


def test_projections_are_orthonormal() -> None:
    basis = _complex(energies.projected(torch.eye(128, dtype=torch.float64)[:64]))
    torch.testing.assert_close(
        basis.mH @ basis, torch.eye(16, dtype=torch.complex128), rtol=0, atol=1e-12
    )
    assert basis.abs().std() < 1e-12
