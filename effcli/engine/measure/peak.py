"""The machine's own limit: how fast it multiplies matrices. Measured once and kept."""

import os
import time
from pathlib import Path

import torch
from torch import Tensor

from effcli import __version__
from effcli.engine.device import Device
from effcli.engine.runs.files import read_json, write_json
from effcli.errors import InputError

_SECONDS = 0.6


def cache_folder() -> Path:
    """Where facts about this machine are kept: `~/.cache/eff`, or what EFF_CACHE says."""
    return Path(os.environ.get("EFF_CACHE") or Path.home() / ".cache" / "eff")


def peak_flops(device: Device, *, keep: bool = True, seen: float = 0.0) -> float:
    """FLOPs per second of a large product in the run's precision, all processes together.

    A run that was seen to be faster shows that others computed while that was measured, so it is
    measured again, and is not less than what was seen.
    """
    path = cache_folder() / "peaks.json"
    key = f"{device.describe()} torch {torch.__version__} eff {__version__}"
    try:
        known = read_json(path)
        if isinstance(known, dict) and isinstance(known.get(key), float) and known[key] >= seen:
            return float(known[key])
    except InputError:
        known = {}
    measured = max(_measure(device) * device.processes.world, seen)
    if keep and device.processes.is_first:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {**(known if isinstance(known, dict) else {}), key: measured})
        except OSError:
            pass  # it will be measured again
    return measured


def large_product(device: Device) -> tuple[Tensor, Tensor, float]:
    """The two sides of a product that takes this device to its limit, and its FLOPs."""
    m, k, n = (8192, 8192, 8192) if device.kind == "cuda" else (2048, 768, 3072)
    # Not random: measuring must leave no trace in a run's random numbers.
    a = torch.linspace(-1, 1, m * k, device=device.torch).view(m, k).to(device.dtype)
    b = torch.linspace(-1, 1, n * k, device=device.torch).view(n, k).to(device.dtype)
    return a, b.T, 2 * m * k * n


def _measure(device: Device) -> float:
    a, b, flops = large_product(device)
    best, end = 0.0, time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        a @ b
        device.synchronize()
        best = max(best, flops / (time.perf_counter() - started))
    return best
