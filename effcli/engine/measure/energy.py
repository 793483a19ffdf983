"""Joules, always with the name of where they come from."""

import time
from pathlib import Path
from typing import Protocol, runtime_checkable

from effcli import launch
from effcli.settings.train import EnergySettings

_POWERCAP = Path("/sys/class/powercap")


@runtime_checkable
class EnergyCounter(Protocol):
    """Counts joules from an arbitrary zero."""

    source: str

    def read(self) -> float:
        """Joules so far."""
        ...


def open_counter(device_kind: str, settings: EnergySettings) -> EnergyCounter:
    """The best counter there is: the GPU's, the CPU's, else an estimate that says so."""
    if device_kind == "cuda":
        return _Nvml.open() or _Estimate(settings, settings.watts_per_gpu)
    rapl = _Rapl.open()
    if rapl is not None and launch.local_rank() > 0:
        rapl.is_shared = True
    return rapl or _Estimate(settings, 0.0)


class _Nvml:
    source = "measured:nvml"

    def __init__(self, nvml: object, handle: object) -> None:
        self._nvml, self._handle = nvml, handle

    @classmethod
    def open(cls) -> "_Nvml | None":
        try:
            import pynvml
            import torch

            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except Exception:  # no library, no driver, no counter: all mean that it cannot be read
            return None
        return cls(pynvml, handle)

    def read(self) -> float:
        millijoules: int = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)  # type: ignore[attr-defined]
        return millijoules / 1000


class _Rapl:
    """The CPU packages' own counters; Linux lets only some users read them."""

    source = "measured:rapl"
    is_shared = False
    """Whether another process on this machine counts the same joules."""

    def __init__(self, zones: list[Path]) -> None:
        self._files = [zone / "energy_uj" for zone in zones]
        self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
        self._last = [int(file.read_text()) for file in self._files]
        self._microjoules = 0

    @classmethod
    def open(cls) -> "_Rapl | None":
        try:  # deeper zones are parts of a package, and `psys` has the packages as its parts
            tops = sorted(_POWERCAP.glob("intel-rapl:[0-9]"))
            zones = [top for top in tops if (top / "name").read_text().startswith("package")]
            return cls(zones) if zones else None
        except (OSError, ValueError):
            return None

    def read(self) -> float:
        for index, file in enumerate(self._files):
            now = int(file.read_text())
            self._microjoules += (now - self._last[index]) % (self._ranges[index] + 1)
            self._last[index] = now
        return 0.0 if self.is_shared else self._microjoules / 1e6


class _Estimate:
    """Busy core-seconds times an assumed power."""

    source = "estimated:tdp"

    def __init__(self, settings: EnergySettings, device_watts: float) -> None:
        self._watts_per_core, self._device_watts = settings.watts_per_core, device_watts

    def read(self) -> float:
        return time.process_time() * self._watts_per_core + time.monotonic() * self._device_watts
