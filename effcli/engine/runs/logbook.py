"""Everything that is written down during a run, and shown to whoever watches."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from effcli.engine.device import Device
from effcli.engine.measure.energy import EnergyCounter
from effcli.engine.measure.meter import Meter
from effcli.engine.records import Ledger, Record, Watch
from effcli.engine.runs.rundir import RunDir


class Logbook:
    """Keeps the records and the parts of the ledger that only a clock can tell."""

    def __init__(self, run: RunDir, meter: Meter, device: Device, watch: Watch) -> None:
        self._run, self._meter, self._device, self._watch = run, meter, device, watch
        device.forget_peak()  # another run of this process may have taken more
        self._started = time.perf_counter()
        self._counter: EnergyCounter | None = None
        self.wall_before = 0.0
        """Seconds of earlier processes that worked on this run."""

    def tell(self, record: Record) -> None:
        """Show a record without keeping it."""
        self._watch(record)

    def note(self, record: Record) -> None:
        """Keep a record and show it."""
        self._run.append(record)
        self._watch(record)

    def wall(self) -> float:
        """Seconds since the run began, pauses between processes left out."""
        return self.wall_before + time.perf_counter() - self._started

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time that no account and no total of this run includes."""
        started = time.perf_counter()
        yield
        self.wall_before -= time.perf_counter() - started

    def bill(self, account: str, flops: float, seconds: float) -> None:
        """Book work that was done for this run, whoever did it."""
        self._meter.charge(account, flops)
        self._meter.seconds[account] += seconds
        self.wall_before += seconds

    def count_energy(self, counter: EnergyCounter) -> None:
        """Book joules from now on."""
        self._counter, self._read = counter, counter.read()

    def book_energy(self) -> float:
        """Book the joules since the last time, under the counter's name; returns the total."""
        assert self._counter is not None
        now, joules = self._counter.read(), self._meter.joules
        source = self._counter.source
        spent = self._device.processes.total(now - self._read)
        joules[source] = joules.get(source, 0.0) + spent
        self._read = now
        return sum(joules.values())

    def ledger(self, status: str, unique_tokens: int) -> None:
        """Keep all accounts as they stand."""
        if self._counter is not None:
            self.book_energy()
        meter, peak = self._meter, self._device.peak_memory_bytes()
        meter.peak_memory_bytes = max(meter.peak_memory_bytes, peak)
        self.note(
            Ledger(
                status,
                meter.steps,
                meter.tokens,
                unique_tokens,
                dict(meter.flops),
                {**meter.seconds, "total": self.wall()},
                dict(meter.joules),
                meter.peak_memory_bytes,
            )
        )
