"""Where a run happens: processor, precision, threads, compilation, memory, randomness."""

import ctypes
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from effcli import launch
from effcli.engine.processes import join
from effcli.engine.protocols import LanguageModel
from effcli.errors import InputError
from effcli.settings.train import DeviceSettings

LONGEST_BY_PRODUCTS = (
    512  # beyond, the square of the context costs more than the fused kernel loses
)


class Device:
    """The processor of a run, and how it is used."""

    def __init__(self, settings: DeviceSettings) -> None:
        self.kind = _kind(settings.name)
        self.torch = torch.device(self.kind)
        if self.kind == "cuda":
            self.torch = torch.device("cuda", launch.local_rank())
            torch.cuda.set_device(self.torch)
        self.processes = join(self.kind)
        self.threads = settings.threads or max(1, _cores() // launch.local_world())
        torch.set_num_threads(self.threads)
        if settings.allocator == "keep":
            _keep_freed_memory()
        self.dtype = _precision(settings.precision, self.kind)
        self._recompute = settings.recompute

    def adopt(self, model: LanguageModel) -> None:
        """Move a model here and set it up for this processor."""
        model.to(self.torch)
        is_short = model.context <= LONGEST_BY_PRODUCTS
        ways = {
            "dtype": self.dtype,
            "recompute": self._recompute,
            "by_products": self.kind == "cpu" and is_short,
        }
        for module in model.modules():
            for name, value in ways.items():
                if hasattr(module, name):
                    setattr(module, name, value)

    def describe(self) -> str:
        """What decides speed, in one line."""
        name = torch.cuda.get_device_name() if self.kind == "cuda" else _cpu_name()
        threads = f", {self.threads} threads" if self.kind == "cpu" else ""
        times = "" if launch.is_alone() else f"{launch.world()} × "
        return f"{times}{name}{threads}, {str(self.dtype).removeprefix('torch.')}"

    def synchronize(self) -> None:
        """Wait until everything asked for is done."""
        if self.kind == "cuda":
            torch.cuda.synchronize()
        elif self.kind == "mps":
            torch.mps.synchronize()

    def peak_memory_bytes(self) -> int:
        """The most memory this process has held, on the GPU if it runs there."""
        if self.kind == "cuda":
            return torch.cuda.max_memory_allocated()
        if own := _high_water():
            return own
        try:
            import resource
        except ImportError:  # Windows
            return 0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def forget_peak(self) -> None:
        """Measure the most memory from now on, where the system can."""
        if self.kind == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def gpu_bytes(self) -> int:
        """All the memory of the GPU; 0 where none is used."""
        return (
            torch.cuda.get_device_properties(self.torch).total_memory if self.kind == "cuda" else 0
        )

    def available_bytes(self) -> int | None:
        """Memory that a run could still take, if the system tells."""
        if self.kind == "cuda":
            return torch.cuda.mem_get_info()[0]
        try:
            pages, size = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return None
        free = max(pages * size, _meminfo_available() or 0)
        allowed = _group_available()
        return free if allowed is None else min(free, allowed)

    def rng_state(self) -> dict[str, Tensor]:
        """The state of every random generator of this device."""
        state = {"cpu": torch.get_rng_state()}
        if self.kind == "cuda":
            state["cuda"] = torch.cuda.get_rng_state()
        elif self.kind == "mps":
            state["mps"] = torch.mps.get_rng_state()
        return state

    def set_rng_state(self, state: dict[str, Tensor]) -> None:
        """Go on with random numbers as if nothing had happened."""
        torch.set_rng_state(state["cpu"])
        if self.kind == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"])
        elif self.kind == "mps" and "mps" in state:
            torch.mps.set_rng_state(state["mps"])


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed: else every large tensor is fresh zeroed pages, each step."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    for parameter in (trim_threshold, mmap_threshold):
        mallopt(parameter, 2**31 - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of the ways in which memory runs out."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and ("can't allocate memory" in text or "out of memory" in text)
    )


def _kind(name: str) -> str:
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if has[kind])
    if not has[name]:
        raise InputError(f"device.name: there is no {name} device here", "use auto or cpu")
    return name


def _precision(name: str, kind: str) -> torch.dtype:
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float32
    has_bf16_units = any(capabilities().get(unit) for unit in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if kind == "cpu" and has_bf16_units else torch.float32


def capabilities() -> dict[str, Any]:
    """What the CPU can do, as far as this version of torch can tell."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    return dict(ask()) if ask else {}


def _cpu_name() -> str:
    return str(capabilities().get("cpu_name") or platform.processor() or platform.machine())


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def _group_available() -> int | None:
    """What a container's limit leaves, where there is one (Linux, control groups v2)."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text() for name in ("memory.max", "memory.current"))
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(limit) - int(used) + int(kept.get("inactive_file", 0))
    except (OSError, ValueError):
        return None


def _high_water() -> int:
    """Where Linux tells; its getrusage begins with what the process held that started this one."""
    try:
        with Path("/proc/self/status").open() as stream:
            line = next((line for line in stream if line.startswith("VmHWM")), "")
        return int(line.split()[1]) * 1024
    except (OSError, IndexError, ValueError):
        return 0


def _meminfo_available() -> int | None:
    try:
        with Path("/proc/meminfo").open() as stream:
            line = next((line for line in stream if line.startswith("MemAvailable")), "")
        return int(line.split()[1]) * 1024
    except (OSError, IndexError, ValueError):
        return None
