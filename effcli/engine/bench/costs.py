"""What the cells of a suite will cost, before they are run."""

from dataclasses import dataclass

import torch

from effcli.engine.assemble import assemble
from effcli.engine.data.corpus import Corpus
from effcli.engine.device import Device
from effcli.engine.measure.peak import peak_flops
from effcli.engine.plan import ASSUMED_MFU
from effcli.engine.runs.trained import build_model, require_memory
from effcli.settings.train import TrainSettings


@dataclass(frozen=True)
class StepCost:
    """Of one optimizer step."""

    tokens: int
    flops: float


class Costs:
    """Assembles what a run would move, where nothing takes room or time, and asks it."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._known: dict[str, StepCost] = {}
        self._measured: dict[str, tuple[float, float]] = {}
        self._guess: float | None = None

    def step(self, settings: TrainSettings) -> StepCost:
        """What one step costs."""
        key = settings.model_dump_json(include={"model", "optim", "batch", "device"})
        if key not in self._known:
            device = Device(settings.device)
            vocab_size = self._corpus.tokenizer.vocab_size
            require_memory(settings.model, vocab_size, device)
            with torch.device("meta"):
                model = build_model(settings.model, vocab_size, settings.seed)
                parts = assemble(settings, model, self._corpus.train, device)
            sequences = settings.batch.sequences
            self._known[key] = StepCost(sequences * model.context, parts.step_flops(sequences))
            if self._guess is None:
                self._guess = peak_flops(device, keep=False) * ASSUMED_MFU
        return self._known[key]

    def flops(self, settings: TrainSettings, shared: int = 0) -> float:
        """What a run costs without its first `shared` steps."""
        step = self.step(settings)
        each = {"steps": 1.0, "tokens": float(step.tokens), "flops": step.flops}
        limits = {name: getattr(settings, name) for name in each}
        steps = min(
            -int(-limit // each[name]) for name, limit in limits.items() if limit is not None
        )
        return max(0, steps - shared) * step.flops

    def learn(self, arm: str, flops: float, seconds: float) -> None:
        """Remember how long something took."""
        before = self._measured.get(arm, (0.0, 0.0))
        self._measured[arm] = (before[0] + flops, before[1] + seconds)

    def seconds(self, arm: str, flops: float) -> float:
        """How long it will take: by what the arm took so far, else any arm, else a guess."""
        done, took = self._measured.get(arm, (0.0, 0.0))
        if not done:
            done = sum(flops for flops, _ in self._measured.values())
            took = sum(seconds for _, seconds in self._measured.values())
        rate = done / took if done and took else self._guess
        return flops / rate if rate else 0.0
