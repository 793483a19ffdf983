"""Low-bit products are exact, by whomever they are made; and there is always somebody."""

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from effcli.engine.models.gpt import GPT
from effcli.engine.quant import kernels, products
from effcli.engine.quant.kernels import PATHS, tier
from effcli.engine.quant.products import LowBit
from effcli.engine.quant.weights import Weights, product
from effcli.errors import InputError
from effcli.settings.model import GPTSettings

TERNARY, TWO, FOUR, EIGHT = (-1, 1, 0.0), (-2, 1, 0.5), (-8, 7, 0.0), (-128, 127, 0.0)


@pytest.fixture(params=["torch", "torch, halves", *PATHS])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Somebody who makes products: torch, also where it adds in 16 bits, or a kernel."""
    name = str(request.param).partition(",")[0]
    monkeypatch.setenv("EFF_KERNELS", name)
    if name != request.param:
        monkeypatch.setattr(products, "_is_exact", lambda: False)
    if name != "torch" and tier().number == 1:
        pytest.skip(tier().reason)
    return name


def parts(
    kind: tuple[int, int, float], rows: int, columns: int, groups: int = 1, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Codes of all sizes, scales that float16 can hold, and the offset."""
    generator = torch.Generator().manual_seed(seed)
    low, high, offset = kind
    codes = torch.randint(low, high + 1, (rows, columns), generator=generator).to(torch.int8)
    codes[0, 0], codes[-1, -1] = low, high
    scales = torch.rand(rows, groups, generator=generator).half().float()
    return codes, scales, offset


def dense(codes: torch.Tensor, scales: torch.Tensor, offset: float) -> torch.Tensor:
    """The weights themselves, in float64."""
    grouped = codes.double().view(*scales.shape, -1) + offset
    return (grouped * scales.double().unsqueeze(-1)).view(codes.shape)


@settings(max_examples=25)
@given(
    kind=st.sampled_from([TERNARY, TWO, FOUR, EIGHT]),
    tokens=st.integers(1, 9),
    rows=st.integers(1, 70),
    size=st.integers(1, 140),
    groups=st.sampled_from([1, 1, 2, 5]),
    seed=st.integers(0, 99),
)
def test_any_shape_is_exact(
    kind: tuple[int, int, float], tokens: int, rows: int, size: int, groups: int, seed: int
) -> None:
    codes, scales, offset = parts(kind, rows, size * groups, groups, seed)
    whole = torch.randint(-127, 128, (tokens, size * groups))
    whole[:, 0] = 127  # so that a step is 1, and levels are the activations
    sums = whole.view(tokens, groups, size).transpose(0, 1) @ (
        (2 * codes.long() + round(2 * offset)).view(rows, groups, size).permute(1, 2, 0)
    )
    x = torch.randn(tokens, size * groups, generator=torch.Generator().manual_seed(seed))
    for name in ("torch", *PATHS):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EFF_KERNELS", name)
            if name != "torch" and tier().number == 1:
                continue
            ones = LowBit(codes, torch.ones_like(scales), offset)
            layer = LowBit(codes, scales, offset)
        assert torch.equal(2 * ones(whole.float()), sums.sum(0).float())
        assert torch.equal(layer(x), product(x, Weights(codes, scales, offset)))


@pytest.mark.parametrize("kind", [TERNARY, TWO, FOUR, EIGHT])
def test_products_are_those_of_the_weights(way: str, kind: tuple[int, int, float]) -> None:
    codes, scales, offset = parts(kind, 90, 384, 3)
    bias, gain = torch.randn(90), torch.rand(384) + 0.5
    x = 10 * torch.randn(4, 5, 384)
    found = LowBit(codes, scales, offset, bias=bias, gain=gain)(x)
    normed = F.rms_norm(x, (384,), gain, eps=1e-6)
    step = normed.abs().amax(-1, keepdim=True) / 127
    rounded = (normed / step).round().double() * step.double()
    expected = rounded @ dense(codes, scales, offset).T + bias
    # Levels are the same, unless the order of the norm's sum moves one over a half.
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


def test_ways_agree_on_norms_and_biases_bit_for_bit(way: str) -> None:
    codes, scales, offset = parts(TWO, 45, 70)
    options = {"bias": torch.randn(45), "gain": torch.rand(70)}
    x = torch.randn(6, 70)
    here = LowBit(codes, scales, offset, **options)(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFF_KERNELS", "torch")
        assert torch.equal(LowBit(codes, scales, offset, **options)(x), here)


def test_large_sums_stay_exact(way: str) -> None:
    columns = 100_000  # whose sums need 31 bits
    codes = torch.full((3, columns), -128, dtype=torch.int8)
    codes[1] = 127
    codes[2, ::2] = 0
    x = torch.full((1, columns), -0.3)
    scales = torch.ones(3, 1)
    assert torch.equal(LowBit(codes, scales)(x), product(x, Weights(codes, scales, 0.0)))


def test_extreme_activations(way: str) -> None:
    codes, scales, offset = parts(TERNARY, 40, 64)
    codes[3] = 0
    layer, x = LowBit(codes, scales, offset), torch.randn(6, 64)
    x[1], x[2], x[3] = x[1] * 1e-12, x[2] / x[2].abs().max() * 3e38, 0.0
    usual = layer(x)
    assert torch.equal(usual, product(x, Weights(codes, scales, offset)))
    assert (usual[[1, 3]] == 0).all()  # far below what a level can be
    assert (usual[:, 3] == 0).all()  # a row of zeros
    x[4, 7], x[5, 63] = float("nan"), float("-inf")
    y = layer(x)
    assert torch.equal(y[:4], usual[:4])
    assert y[4:].isnan().all()


def test_types_and_layouts_of_the_input_do_not_matter(way: str) -> None:
    codes, scales, offset = parts(FOUR, 33, 50)
    layer = LowBit(codes, scales, offset)
    x = torch.randn(3, 50, 2)[..., 0].T.contiguous().T.unsqueeze(1).requires_grad_()
    y = layer(x)
    assert y.shape == (3, 1, 33)
    assert not y.requires_grad
    assert torch.equal(y[:, 0], layer(x[:, 0].detach().contiguous()))
    assert torch.equal(layer(x[0, 0]), y[0, 0])
    half = x.detach().bfloat16()
    assert layer(half).dtype == torch.bfloat16
    assert torch.equal(layer(half), layer.float32(half).bfloat16())
    assert layer.float32(half).dtype == torch.float32
    assert layer(x[:0]).shape == (0, 1, 33)
    assert torch.equal(copy.deepcopy(layer)(x), y)


def test_the_number_of_tokens_and_threads_does_not_matter(way: str) -> None:
    codes, scales, offset = parts(TERNARY, 1050, 520)
    layer, x = LowBit(codes, scales, offset), torch.randn(70, 520)
    y = layer(x)
    assert torch.equal(torch.cat([layer(token) for token in x.split(1)]), y)
    torch.set_num_threads(2)
    try:
        assert torch.equal(layer(x), y)
        assert torch.equal(layer(x[:7]), y[:7])  # rows are shared, not tokens
    finally:
        torch.set_num_threads(1)


def test_processors_with_matrix_units_leave_many_tokens_to_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "capabilities", lambda: {"amx_int8": True})
    codes, scales, offset = parts(TWO, 35, 48)
    layer, x = LowBit(codes, scales, offset), torch.randn(40, 48)
    assert torch.equal(layer(x), product(x, Weights(codes, scales, offset)))
    assert torch.equal(layer(x[:3]), layer(x)[:3])


def test_whole_activations_are_not_rounded(way: str) -> None:
    codes, scales, offset = parts(TWO, 20, 60, 2)
    bias, gain, x = torch.randn(20), torch.rand(60), torch.randn(7, 60)
    found = LowBit(codes, scales, offset, bias=bias, gain=gain, act_bits=16)(x)
    normed = F.rms_norm(x.double(), (60,), gain.double(), eps=1e-6)
    expected = normed @ dense(codes, scales, offset).T + bias
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_logits_of_a_low_bit_head_are_float32(way: str) -> None:
    model = GPT(GPTSettings(width=32, context=8), 100)
    codes, scales, offset = parts(EIGHT, 100, 32)
    model.settled_head = LowBit(codes, scales / 1000, offset).float32
    features = torch.randn(2, 3, 32)
    expected = (
        30 * (product(features.flatten(0, 1), Weights(codes, scales / 1000, offset)) / 30).tanh()
    )
    assert torch.equal(model.logits(features), expected.view(2, 3, 100))
    assert model.logits(features.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("kind", "bits"), [(TERNARY, 2), (TWO, 2), (FOUR, 4), (EIGHT, 8)])
def test_packed_codes_take_their_bits(kind: tuple[int, int, float], bits: int) -> None:
    codes, _, _ = parts(kind, 64, 160)
    assert kernels.pack(codes, 2, bits).nbytes == 64 * 160 * bits // 8


@pytest.mark.parametrize(
    "wrong",
    [
        {"codes": torch.zeros(4, 6)},
        {"codes": torch.zeros(4, 0, dtype=torch.int8)},
        {"scales": torch.ones(4, 4)},
        {"scales": torch.ones(3, 1)},
        {"offset": 0.25},
        {"codes": torch.full((4, 6), 127, dtype=torch.int8), "offset": 0.5},
        {"bias": torch.ones(6)},
        {"gain": torch.ones(4)},
        {"act_bits": 4},
    ],
)
def test_parts_that_do_not_fit_are_refused(wrong: dict[str, object]) -> None:
    right = {"codes": torch.ones(4, 6, dtype=torch.int8), "scales": torch.ones(4, 1)}
    with pytest.raises(InputError):
        LowBit(**(right | wrong))  # type: ignore[arg-type]


# Who makes the products


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library that works, where there is a compiler."""
    monkeypatch.setenv("EFF_KERNELS", "auto")
    if tier().number == 1:
        pytest.skip(tier().reason)
    return next(Path(os.environ["EFF_CACHE"]).glob("kernels/*.so"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, where no compiler is known."""
    monkeypatch.setenv("EFF_KERNELS", "auto")
    monkeypatch.setenv("EFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    yield tmp_path / "cache" / "kernels"
    kernels._found.cache_clear()


def compile_by(cache: Path, script: str) -> Path:
    """Let a script be the compiler; returns where it notes its calls."""
    place = cache.parents[1] / "bin" / "cc"
    place.parent.mkdir(exist_ok=True)
    calls = place.with_name("calls")
    script = f'echo "$@" >> {calls}\nfor last; do :; done\n{script}'
    place.write_text(f"#!/bin/sh\nPATH=/bin:/usr/bin\n{script}\n")
    place.chmod(0o755)
    kernels._found.cache_clear()
    return calls


def reason() -> str:
    """Why torch makes the products; that it does, and right."""
    codes, scales, offset = parts(TWO, 5, 7)
    x = torch.randn(3, 7)
    assert torch.equal(LowBit(codes, scales, offset)(x), product(x, Weights(codes, scales, offset)))
    assert tier().name == "torch"
    return tier().reason


def test_without_a_compiler_torch_makes_the_products(cache: Path) -> None:
    assert reason() == "there is no C compiler: cc, gcc, clang"
    assert not cache.exists()


@pytest.mark.parametrize("script", ["exit 1", "echo nonsense > kernels.o; cp kernels.o kernels.so"])
def test_a_compiler_that_breaks_is_done_without(cache: Path, script: str) -> None:
    compile_by(cache, script)
    assert "built nothing that works" in reason()
    assert tier().number == 1


def test_a_compiler_that_hangs_is_not_waited_for(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_SECONDS", 0.05)
    compile_by(cache, "exec sleep 60")
    assert "timed out" in reason()


def test_a_library_is_built_once(library: Path, cache: Path) -> None:
    calls = compile_by(cache, f"cp {library} $PWD/kernels.so")
    assert tier().number == 2
    kernels._found.cache_clear()
    assert tier().number == 2
    assert len(calls.read_text().splitlines()) == 2  # compiled and linked
    assert [file.suffix for file in cache.iterdir()] == [".so"]


def test_a_damaged_library_is_built_again(library: Path, cache: Path) -> None:
    calls = compile_by(cache, f"cp {library} $PWD/kernels.so")
    assert tier().number == 2
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        kept.unlink()  # what is loaded is still in use
        kept.write_bytes(damaged)
        kernels._found.cache_clear()
        assert tier().number == 2
        assert kept.read_bytes() == whole
    assert len(calls.read_text().splitlines()) == 8


def test_nothing_is_loaded_that_others_can_write(library: Path, cache: Path) -> None:
    calls = compile_by(cache, f"cp {library} $PWD/kernels.so")
    assert tier().number == 2
    (kept,) = cache.iterdir()
    kept.chmod(0o666)
    kernels._found.cache_clear()
    assert tier().number == 2
    assert not kept.stat().st_mode & 0o022
    assert len(calls.read_text().splitlines()) == 4
    cache.chmod(0o777)
    kernels._found.cache_clear()
    assert "could be written by others" in reason()
    cache.chmod(0o700)
    cache.parent.chmod(0o777)
    kernels._found.cache_clear()
    assert "could be written by others" in reason()
    cache.parent.chmod(0o700)
    moved = cache.rename(cache.with_name("elsewhere"))
    cache.symlink_to(moved)
    kernels._found.cache_clear()
    assert "could be written by others" in reason()


def test_a_library_that_counts_wrong_is_not_used(
    library: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_by(cache, f"cp {library} $PWD/kernels.so")
    right = kernels.product
    monkeypatch.setattr(kernels, "product", lambda *given: right(*given) + 1)
    assert "failed their test" in reason()


def test_two_processes_can_build_at_once(library: Path, cache: Path) -> None:
    calls = compile_by(cache, f"sleep 1; cp {library} $PWD/kernels.so")
    code = "from effcli.engine.quant.kernels import tier; print(tier().number)"
    command = [sys.executable, "-c", code]
    root = str(Path(products.__file__).parents[3])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0] for process in both] == ["2\n", "2\n"]
    assert len(list(cache.iterdir())) == 1
    assert calls.exists()


def test_kernels_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFF_KERNELS", "torch")
    assert tier() == kernels.Tier(1, "torch", "EFF_KERNELS asks for it")
    monkeypatch.setenv("EFF_KERNELS", "mmx")
    with pytest.raises(InputError, match="mmx"):
        tier()


def test_the_machines_own_compiler_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFF_KERNELS", "auto")
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("there is no C compiler here")
    assert tier().number == 2, tier().reason
