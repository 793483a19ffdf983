"""The processes of a run: one, or several under torchrun, each with its share of every step.

All of them hold the whole model, draw the same batch, work on their own part of it and
add up the gradients; so the order of the data and the result do not depend on their
number. What a process decides from its own clock or signals is agreed on first, else
one would wait forever for another. A model in parts (FSDP) would enter here, too.
"""

import atexit
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from effcli import launch
from effcli.engine.data.order import mix64
from effcli.engine.records import Stop, never
from effcli.errors import InputError, ResourceError, Stopped

BUCKET = 2**24  # elements that are added up at once
WAIT = timedelta(seconds=0.25)  # at a time: signals are seen between waits only
PATIENCE = timedelta(days=365)  # while one works alone: who is gone is seen, however long it takes
WAITS = 12  # after a signal, until the others are taken for gone


class ProcessLost(ResourceError):
    """Another process of the run is gone."""


class Processes:
    """What the processes of a run do together. Alone, every method is trivial."""

    def __init__(self) -> None:
        self.rank, self.world = launch.rank(), launch.world()
        self._is_lost = False
        self._signal: int | None = None
        self._asks: Stop = never
        self._seed = 0
        self._group: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def meet(self, backend: str) -> None:
        """Find the others; whoever waits for one of them later is as patient as it takes."""
        dist.init_process_group(backend)
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)

    def enter(self, stop: Stop, seed: int) -> Stop:
        """Begin a run; returns how to ask whether any process was told to stop."""
        if self.world == 1:
            return stop
        self._asks, self._seed = stop, seed
        return lambda: self._signal

    def begin_step(self, progress: float, step: int) -> float:
        """Agree on the progress (the first one's) and on signals, and draw random numbers apart."""
        if self.world == 1:
            return progress
        asked = self._asks()
        mine = torch.tensor([progress if self.is_first else 0.0, asked or 0], dtype=torch.float64)
        self._together(dist.all_reduce, mine, op=dist.ReduceOp.MAX)
        self._signal = int(mine[1].item()) or None
        own = mix64(mix64(self._seed) ^ mix64(step) ^ self.rank)
        torch.manual_seed(own % 2**63)  # a function of the step, so that resuming is exact
        return mine[0].item()

    def share(self, items: int) -> tuple[int, int]:
        """The part of a step's sequences that is this process's."""
        if items < self.world:
            message = f"{self.world} processes cannot share a step of {items} sequences"
            raise InputError(message, "start fewer, or raise batch.sequences")
        return items * self.rank // self.world, items * (self.rank + 1) // self.world

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.world == 1:
            return
        bucket: list[Tensor] = []
        for tensor in tensors:
            if tensor.is_sparse:
                self._add_up_rows(tensor)
                continue
            is_other = bool(bucket) and bucket[0].dtype != tensor.dtype
            if is_other or sum(map(Tensor.numel, bucket)) + tensor.numel() > BUCKET:
                self._add_up(bucket)
                bucket = []
            bucket.append(tensor)
        self._add_up(bucket)

    def total(self, value: float) -> float:
        """The sum of a number over all processes that are left."""
        if self.world == 1 or self._is_lost:
            return value
        sum_ = torch.tensor(value, dtype=torch.float64)
        self._together(dist.all_reduce, sum_)
        return sum_.item()

    def first(self, value: Any) -> Any:
        """What the first process says: numbers and strings, as JSON has them."""
        if self.world == 1:
            return value
        said = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        size = torch.tensor(len(said))
        self._together(dist.broadcast, size, src=0)
        heard = said if self.is_first else torch.empty(int(size), dtype=torch.uint8)
        self._together(dist.broadcast, heard, src=0)
        return json.loads(bytes(heard.tolist()))

    def wait(self) -> None:
        """Until all are here."""
        self.total(0.0)

    def leave(self) -> None:
        """Part from the others, unless one is lost: what is not answered would be waited for."""
        if not self._is_lost:
            dist.destroy_process_group()

    def _add_up(self, bucket: Sequence[Tensor]) -> None:
        if not bucket:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        self._together(dist.all_reduce, flat)
        parts = torch.split(flat, [tensor.numel() for tensor in bucket])
        for tensor, part in zip(bucket, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def _add_up_rows(self, tensor: Tensor) -> None:
        """The sum of tensors that hold different rows: everyone's rows, in everyone's order."""
        rows, values = tensor.indices()[0], tensor.values()
        counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(self.world)]
        self._together(dist.all_gather, counts, rows.new_tensor([len(rows)]))
        most = max(int(count) for count in counts)
        index, value = (
            torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])
            for parts in (self._gathered(rows, most), self._gathered(values, most))
        )
        sparse = torch.sparse_coo_tensor(index[None], value, tensor.shape, check_invariants=False)
        tensor.copy_(sparse.coalesce())

    def _gathered(self, mine: Tensor, most: int) -> list[Tensor]:
        """Everyone's tensor, each filled up to `most` rows."""
        full = torch.cat([mine, mine.new_zeros(most - len(mine), *mine.shape[1:])])
        everyone = [torch.empty_like(full) for _ in range(self.world)]
        self._together(dist.all_gather, everyone, full)
        return everyone

    def _together(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Do what takes all processes; the last argument is this one's tensor.

        When a process dies at the wrong moment, gloo may close the connection without telling
        what waits for it. But whoever started the processes then sends the others a signal.
        """
        is_here = arguments[-1].is_cpu  # what is on a GPU is waited for there
        try:
            group = self._group if is_here else None
            pending = work(*arguments, group=group, async_op=is_here, **options)
            if is_here:
                self._wait_for(pending)
        except RuntimeError as error:
            self._is_lost = True
            if (asked := self._asks()) is not None:  # which the other was told, too
                raise Stopped(asked, "on request, while another process ended") from error
            raise ProcessLost("another process of this run has ended") from error

    def _wait_for(self, pending: dist.Work) -> None:
        """Wait for the others; after a signal not for long, as they were told, too, or are gone."""
        waits = 0
        while True:
            with suppress(RuntimeError):  # others are not here yet, or it is raised again below
                pending.wait(WAIT)
                return
            if pending.is_completed():
                pending.wait()
                return
            if (asked := self._asks()) is not None and (waits := waits + 1) == WAITS:
                self._is_lost = True
                raise Stopped(asked, "on request, while another process did not answer")


@cache
def join(kind: str) -> Processes:
    """Meet the other processes, once; `kind` is the device's."""
    processes = Processes()
    if processes.world > 1:
        try:
            processes.meet("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
        except (RuntimeError, ValueError) as error:
            raise ResourceError(f"the processes of this run do not meet: {error}") from None
        atexit.register(processes.leave)
    return processes
