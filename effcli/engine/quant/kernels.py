"""Kernels in C: built by the machine's own compiler, kept, tested and loaded; or not, and why.

Whatever goes wrong is no error: products are then torch's, with the same results.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from effcli.engine.measure.peak import cache_folder
from effcli.engine.quant.weights import Weights, product
from effcli.engine.runs.files import write_bytes
from effcli.errors import InputError

PATHS = ("avx512vnni", "avxvnni", "neon", "avx2", "plain")
"""Sets of instructions, the fastest first."""
ROWS, STEP = 32, 16  # as in kernels.c
_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ("-std=gnu11", "-O2", "-ftree-vectorize", "-fwrapv", "-ffp-contract=off", "-fPIC", "-w")
# With torch's threads, with one, and for compilers that do not know the instructions.
_VARIANTS = (("-fopenmp",), (), ("-DPLAIN",))
_COMPILERS = ("cc", "gcc", "clang")
_SECONDS = 120.0


class _Unusable(Exception):
    """Why there are no kernels."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Who makes the products of low-bit layers."""

    number: int
    """1 is torch, 2 are the kernels."""
    name: str
    reason: str


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "scales", "bias", "gain")),
        *((name, ctypes.c_int64) for name in ("rows", "groups", "size")),
        *((name, ctypes.c_int32) for name in ("bits", "times")),
    )


class Kernels:
    """A loaded library, and one of its sets of instructions, if the processor has it."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.name = name
        self.threads: int = library.eff_threads()
        library.eff_path.argtypes, library.eff_path.restype = (ctypes.c_char_p,), ctypes.c_void_p
        library.eff_product.argtypes = (*(4 * (ctypes.c_void_p,)), ctypes.c_int64)
        self.path: int | None = library.eff_path(name.encode())
        self.product = library.eff_product


class Packed:
    """A product by the kernels, whose codes take 2, 4 or 8 bits each."""

    def __init__(self, kernels: Kernels, weights: Weights) -> None:
        (self.rows, self.columns), groups = weights.codes.shape, weights.scales.shape[1]
        bits = next(b for b in (2, 4, 8) if weights.are_within(-(2 ** (b - 1)), 2 ** (b - 1) - 1))
        # An offset of a half doubles the sums, which the scales make up for.
        missing, times = -self.rows % ROWS, 2 if weights.offset else 1
        scales = F.pad(weights.scales / times, (0, 0, 0, missing))
        scales = scales.view(-1, ROWS, groups).transpose(1, 2).contiguous()
        bias = torch.zeros(self.rows) if weights.bias is None else weights.bias
        gain = None if weights.gain is None else weights.gain.contiguous()
        self._kept = (pack(weights.codes, groups, bits), scales, F.pad(bias, (0, missing)), gain)
        addresses = (None if part is None else part.data_ptr() for part in self._kept)
        size = self.columns // groups
        self._layer = _Layer(*addresses, self.rows, groups, size, bits, times)
        self._at, self._path = ctypes.addressof(self._layer), kernels.path
        self._product = kernels.product

    def __deepcopy__(self, _: dict[int, object]) -> "Packed":
        return self  # nothing in it changes, and it knows its own address

    def __call__(self, x: Float[Tensor, "*any columns"]) -> Float[Tensor, "*any rows"]:
        """The product, in float32."""
        x = x.float().contiguous()
        y = torch.empty(*x.shape[:-1], self.rows)
        tokens = x.numel() // self.columns
        if not self._product(self._path, self._at, x.data_ptr(), y.data_ptr(), tokens):
            raise MemoryError(f"no memory for a product with {tuple(x.shape)} activations")
        return y


def pack(codes: Int8[Tensor, "rows columns"], groups: int, bits: int) -> UInt8[Tensor, " bytes"]:
    """Codes in the order of kernels.c, each raised by half the range of its bits."""
    rows, size, per_byte = len(codes), codes.shape[1] // groups, 8 // bits
    raised = (codes.view(rows, groups, size).to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    raised = F.pad(raised, (0, -size % STEP, 0, 0, 0, -rows % ROWS))
    parts = raised.view(-1, ROWS, groups, raised.shape[2] // STEP, 4 // per_byte, per_byte, 4)
    parts = parts.permute(5, 0, 2, 3, 4, 1, 6)
    packed = torch.zeros(parts.shape[1:], dtype=torch.uint8)
    for at, part in enumerate(parts):
        packed |= part << (at * bits)
    return packed.flatten()


def kernels() -> Kernels | None:
    """The kernels, if there are any; EFF_KERNELS names a set of instructions, or is `torch`."""
    found = _found(os.environ.get("EFF_KERNELS") or "auto", cache_folder())
    return found if isinstance(found, Kernels) else None


def tier() -> Tier:
    """Who makes the products of low-bit layers here, and why."""
    found = _found(os.environ.get("EFF_KERNELS") or "auto", cache_folder())
    if isinstance(found, str):
        return Tier(1, "torch", found)
    threads = f"{found.threads} threads" if found.threads > 1 else "one thread"
    return Tier(2, found.name, f"built here and tested, {threads}")


@cache
def _found(wanted: str, folder: Path) -> Kernels | str:
    """The kernels, or why there are none."""
    if wanted == "torch":
        return "EFF_KERNELS asks for it"
    if wanted not in ("auto", *PATHS):
        known = ", ".join(("auto", "torch", *PATHS))
        raise InputError(f"EFF_KERNELS: there are no kernels named {wanted!r}", f"known: {known}")
    try:
        return _load(wanted, folder / "kernels")
    except (_Unusable, OSError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]


def _load(wanted: str, folder: Path) -> Kernels:
    """What was built before, else what can be built now."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if os.name != "posix" or compiler is None:
        raise _Unusable(f"there is no C compiler: {', '.join(_COMPILERS)}")
    folder.mkdir(0o700, parents=True, exist_ok=True)
    if not _is_own(folder) or any(map(_is_open, folder.resolve().parents)):
        raise _Unusable(f"{folder} could be written by others")
    failures = []
    for find in (_kept, _built):
        for variant in _VARIANTS:
            try:
                if file := find(folder, compiler, variant):
                    return _tested(ctypes.CDLL(str(file)), wanted)
            except (OSError, subprocess.SubprocessError) as error:
                failures.append(f"{compiler} built nothing that works: {error}")
    raise _Unusable(failures[-1])


def _kept(folder: Path, compiler: str, variant: tuple[str, ...]) -> Path | None:
    """A library that is here, and as it was when it was built."""
    for file in folder.glob(f"{_key(compiler, variant)}-*.so"):
        if _is_own(file) and file.stem.endswith(f"-{_digest(file.read_bytes())}"):
            return file
    return None


def _built(folder: Path, compiler: str, variant: tuple[str, ...]) -> Path:
    """A new library, named by what it is made from and by what is in it."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        Path(name, "kernels.c").write_bytes(_SOURCE.read_bytes())
        # Linked apart: OpenMP is found in torch, whose threads are then shared, or not at all.
        for command in (
            (compiler, *_FLAGS, *variant, "-c", "kernels.c", "-o", "kernels.o"),
            (compiler, "-shared", "kernels.o", "-o", "kernels.so", "-lm"),
        ):
            done = subprocess.run(
                command, cwd=name, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS
            )
            done.check_returncode()
        data = Path(name, "kernels.so").read_bytes()
    file = folder / f"{_key(compiler, variant)}-{_digest(data)}.so"
    write_bytes(file, data)
    return file


def _key(compiler: str, variant: tuple[str, ...]) -> str:
    about = Path(compiler).stat()
    made_from = (_SOURCE.read_bytes(), compiler, about.st_size, about.st_mtime_ns, _FLAGS, variant)
    return _digest(repr((*made_from, platform.machine())).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _is_own(path: Path) -> bool:
    """Whether nobody else could have written it."""
    about = path.lstat()
    is_shared = stat.S_ISLNK(about.st_mode) or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return about.st_uid == os.getuid() and not is_shared


def _is_open(folder: Path) -> bool:
    """Whether anybody could put another folder in the place of one in it."""
    mode = folder.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def _tested(library: ctypes.CDLL, wanted: str) -> Kernels:
    """The library in its fastest set of instructions, if it counts right."""
    ways = (Kernels(library, name) for name in (PATHS if wanted == "auto" else (wanted,)))
    if (found := next((way for way in ways if way.path), None)) is None:
        raise _Unusable(f"this processor or compiler has no {wanted}")
    generator = torch.Generator().manual_seed(0)
    for low, high, offset in ((-1, 1, 0.0), (-2, 1, 0.5), (-8, 7, 0.0), (-128, 127, 0.0)):
        for tokens, rows, groups, size in ((1, 35, 1, 75), (1, 16, 3, 16), (7, 33, 2, 50)):
            codes = torch.randint(low, high + 1, (rows, groups * size), generator=generator)
            scales = torch.rand(rows, groups, generator=generator)
            x = torch.randn(tokens, groups * size, generator=generator)
            codes, x[0] = codes.to(torch.int8), x[0].sign()
            codes[0], codes[1] = low, high
            weights = Weights(codes, scales, offset)
            if not torch.equal(Packed(found, weights)(x), product(x, weights)):
                raise _Unusable(f"the kernels for {found.name} failed their test")
    return found
