"""The processor and what it can do, as a run would use it."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from effcli.engine.checkup.rows import Row
from effcli.engine.device import Device, capabilities
from effcli.engine.measure.energy import open_counter
from effcli.engine.measure.peak import peak_flops
from effcli.engine.plan import compiler
from effcli.settings.train import DeviceSettings, EnergySettings
from effcli.units import size

UNITS = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_fp16")
BF16_UNITS = ("avx512_bf16", "amx_bf16")
LITTLE_MEMORY = 10**9
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def processor() -> Iterator[Row]:
    """Where a run would happen, with which kernels, in which precision, on how many threads."""
    device = Device(DeviceSettings())
    yield Row("device", "ok", device.describe())
    known = capabilities()
    kernels = [unit for unit in UNITS if known.get(unit)]
    if known:
        yield Row("kernels", "ok" if kernels else "note", ", ".join(kernels) or "none that help")
    else:
        yield Row("kernels", "note", "this version of torch cannot tell")
    yield from _gpus()
    yield Row("precision", "ok", f"auto takes {_name(device.dtype)}: {_reason(device)}")
    yield _threads(device)


def _gpus() -> Iterator[Row]:
    if torch.backends.mps.is_available():
        yield Row("gpu", "ok", "Apple GPU, through mps")
    elif not torch.cuda.is_available():
        is_plain = not (torch.version.cuda or torch.version.hip)
        built = "; this torch is built without support for one" if is_plain else ""
        yield Row("gpu", "ok", f"none{built}", number=0)
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        shown = f"{about.name}, {size(about.total_memory)}, compute {about.major}.{about.minor}"
        yield Row(f"gpu {index}", "ok", shown, number=about.total_memory)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _reason(device: Device) -> str:
    if device.kind == "cuda":
        has = torch.cuda.get_device_capability() >= (8, 0)
        return f"the GPU has {'' if has else 'no '}units for bfloat16"
    if device.kind != "cpu":
        return f"the safe choice on {device.kind}"
    if units := [unit for unit in BF16_UNITS if capabilities().get(unit)]:
        return f"the processor multiplies bfloat16 itself ({', '.join(units)})"
    return "the processor has no units for bfloat16"


def _threads(device: Device) -> Row:
    shown = f"{device.threads} of {os.cpu_count()} processors"
    if (quota := _cpu_quota()) is not None and quota < device.threads:
        hint = f"--set device.threads={max(1, int(quota))} may be faster"
        return Row("threads", "note", f"{shown}, but this container gets {quota:.3g}", hint)
    return Row("threads", "ok", shown, number=device.threads)


def _cpu_quota() -> float | None:
    """Processors' worth of time that a container may use, if there is a limit."""
    try:
        granted, period = _QUOTA.read_text().split()
        return int(granted) / int(period)
    except (OSError, ValueError):  # `max` is no number: no limit
        return None


def speed() -> Iterator[Row]:
    """The measured peak in both precisions, and what costs and saves time and energy."""
    for precision in ("float32", "bfloat16"):
        device = Device(DeviceSettings(precision=precision))
        peak = peak_flops(device)
        yield Row(f"peak {precision}", "ok", f"{peak / 1e12:.3g} TFLOP/s", number=peak)
    if path := compiler():
        yield Row("torch.compile", "ok", f"can work: {path}")
    else:
        hint = "install g++ or clang++; runs without it are slower and as good"
        yield Row("torch.compile", "note", "there is no C++ compiler", hint)
    yield _energy(Device(DeviceSettings()))


def _energy(device: Device) -> Row:
    source = open_counter(device.kind, EnergySettings()).source
    if source.startswith("measured"):
        return Row("energy", "ok", source)
    hint = "set energy.watts_per_core and energy.watts_per_gpu to what this machine draws"
    return Row("energy", "note", f"{source}: no counter can be read", hint)


def memory() -> Iterator[Row]:
    """What a run could still take."""
    there = Device(DeviceSettings()).available_bytes()
    if there is None:
        yield Row("memory", "note", "the system does not tell")
    elif there < LITTLE_MEMORY:
        hint = "close other programs, or use --preset nano"
        yield Row("memory", "note", f"only {size(there)} available", hint, there)
    else:
        yield Row("memory", "ok", f"{size(there)} available", number=there)


def low_bits() -> Iterator[Row]:
    """Who multiplies the codes of packed students."""
    from effcli.engine.quant.kernels import tier

    found = tier()
    if found.number == 2:
        yield Row("low-bit products", "ok", f"{found.name}, {found.reason}")
    else:
        hint = "install a C compiler: packed students then write several times as fast"
        yield Row("low-bit products", "note", f"in torch: {found.reason}", hint)
