"""The training loop. There is one."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from effcli.engine.device import Device
from effcli.engine.measure.meter import Budget, Meter
from effcli.engine.optim.optimizer import Optimizer
from effcli.engine.protocols import Batch, BatchSource, LanguageModel, Objective
from effcli.engine.records import Diverged, Step, Stop, never
from effcli.errors import EffError, Stopped


@dataclass
class Parts:
    """What a loop moves. A method replaces the one part that it is about."""

    model: LanguageModel
    batches: BatchSource
    objective: Objective
    optimizer: Optimizer
    schedule: Callable[[float], float]
    """Learning-rate factor as a function of progress."""
    meter: Meter
    budget: Budget
    device: Device
    micro: int
    """Sequences per forward pass; the gradients of a step's parts add up."""

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly, but for the model's weights."""
        return {
            "batches": self.batches.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "meter": self.meter.state_dict(),
            "rng": self.device.rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.batches.load_state_dict(state["batches"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.meter.load_state_dict(state["meter"])
        self.device.set_rng_state(state["rng"])

    def step_flops(self, sequences: int) -> float:
        """What one optimizer step will cost, all accounts together."""
        shape = (sequences, self.model.context)
        nothing = torch.empty(shape, dtype=torch.long, device="meta")
        bill = self.objective.flops(self.model, Batch(nothing, nothing, nothing[:, 0]))
        return sum(bill.values()) + self.update_flops

    @property
    def update_flops(self) -> float:
        """What moving the weights costs: every process does it."""
        return self.optimizer.flops * self.device.processes.world

    def compile(self, sequences: int) -> None:
        """Compile the model and run every shape once, leaving no trace but speed.

        This process's share of `sequences` is cut into micro-batches and perhaps a shorter
        last one; evaluation has whole micro-batches only.
        """
        rng = self.device.rng_state()
        start, stop = self.device.processes.share(sequences)
        whole, last = divmod(stop - start, self.micro)
        sizes = {True: [self.micro] * min(whole, 1) + [last] * min(last, 1), False: [self.micro]}
        self.model.trunk.compile(dynamic=False)
        for is_training, size in [(way, size) for way in sizes for size in sizes[way]]:
            shape = (size, self.model.context)
            zeros = torch.zeros(shape, dtype=torch.long, device=self.device.torch)
            self.model.train(is_training)
            with torch.set_grad_enabled(is_training):
                loss = self.objective(self.model, Batch(zeros, zeros, zeros[:, 0].cpu())).mean
            if is_training:
                loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.zero_grad()
        self.device.synchronize()
        self.device.set_rng_state(rng)


def train(parts: Parts, *, until: float = 1.0, stop: Stop = never) -> Iterator[Step | Diverged]:
    """Train until this share of the budget is spent, yielding one record per optimizer step.

    The caller drives: between two steps it may evaluate, save or end. A signal ends the
    loop inside a step, too; the parts are then as they were before that step.
    """
    meter, optimizer, batches = parts.meter, parts.optimizer, parts.batches
    processes = parts.device.processes
    parts.model.train()
    while True:
        progress = processes.begin_step(parts.budget.progress(meter), meter.steps)
        if progress >= until:
            return
        with meter.timing("train"):
            factor = parts.schedule(progress)
            boundary = (batches.state_dict(), parts.device.rng_state())
            batch = batches.draw(progress)
            bill = parts.objective.flops(parts.model, batch)
            try:
                losses = _accumulate(parts, batch, stop)
                processes.add_up([*optimizer.gradients(), losses])
            except EffError:  # a signal, or another process that is gone
                optimizer.zero_grad()
                batches.load_state_dict(boundary[0])
                parts.device.set_rng_state(boundary[1])
                raise
            # The first look at a result, so that a GPU never waits inside a step.
            mean, norm = losses.item(), optimizer.clip().item()
            lr = optimizer.groups[0].lr * factor
            if is_finite := math.isfinite(mean) and math.isfinite(norm):
                optimizer.step(factor)
                bill["train"] = bill.get("train", 0.0) + parts.update_flops
            optimizer.zero_grad()
        for account, flops in bill.items():
            meter.charge(account, flops)
        if not is_finite:
            yield Diverged(meter.steps + 1, f"{mean:.4g}", f"{norm:.4g}", lr)
            return
        meter.tokens += batch.inputs.numel()
        meter.steps += 1
        spent = (meter.tokens, meter.spent_flops(), meter.spent_seconds())
        yield Step(meter.steps, progress, mean, lr, norm, *spent)


def _accumulate(parts: Parts, batch: Batch, stop: Stop) -> Tensor:
    """Add up the gradients of this process's part of a batch; returns its part of the loss."""
    losses: list[Tensor] = []
    mine = batch.part(*parts.device.processes.share(len(batch)))
    for micro in _micro_batches(mine, parts.micro):
        if (signal_number := stop()) is not None:
            raise Stopped(signal_number, "on request, inside a step")
        micro = micro.to(parts.device.torch)
        share = len(micro) / len(batch)
        loss = parts.objective(parts.model, micro)
        (loss.mean * share).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.mean.detach() * share)
        parts.batches.feedback(micro, loss)
    return torch.stack(losses).double().sum()


def _micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(batch), size):
        yield batch.part(start, start + size)
