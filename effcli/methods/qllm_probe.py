"""What models can learn to keep, each trained from nothing on sequences that are made up."""

from itertools import product
from typing import Any

import torch

from effcli.engine.device import Device
from effcli.engine.models.gpt import GPT
from effcli.engine.models.phase import Phase
from effcli.engine.objectives.cross_entropy import head_loss
from effcli.engine.optim.optimizer import Optimizer
from effcli.engine.pacing import cosine
from effcli.engine.phase.probes import PROBES, Drawn, Probe
from effcli.engine.protocols import LanguageModel
from effcli.engine.records import Notice, Stop, Watch, never, unwatched
from effcli.errors import DivergedError, Stopped
from effcli.settings.model import GPTSettings
from effcli.settings.optim import AdamWSettings
from effcli.settings.phase import PhaseSettings
from effcli.settings.probe import ProbeSettings, Recipe
from effcli.settings.schedule import CosineSettings
from effcli.settings.train import DeviceSettings

BEYOND = 4
"""Times the trained length, at which answers are asked for too."""
ASKED = 256  # sequences
ASKED_SEED = 2**62  # beyond all seeds of training
GROWING = 0.6  # share of the steps at which sequences have come to their full length
SCHEDULE = CosineSettings(warmup=0.05, floor=0.0)
TURNED: dict[str, dict[str, Any]] = {
    "data": {"phase": "data", "tracker": True},
    "rope": {"phase": "rope"},
    "none": {"phase": "none"},
    "delta": {"phase": "data", "tracker": True, "write": "delta"},
    "hybrid": {"phase": "data", "tracker": True, "hybrid": 2},
}
"""Settings of the arms with phases."""
# So small a model is nowhere faster than on one thread, where it is also the same everywhere.
DEVICE = DeviceSettings(name="cpu", threads=1, precision="float32", compile="off")


def run(settings: ProbeSettings, watch: Watch = unwatched, stop: Stop = never) -> dict[str, Any]:
    """Every arm on every task, once for each seed."""
    device, results = Device(DEVICE), list[dict[str, Any]]()
    cells = [
        (task, arm, seed)
        for task in settings.tasks
        for arm, seed in product(settings.recipe(task).arms, range(settings.seeds))
    ]
    for done, (task, arm, seed) in enumerate(cells, 1):
        recipe = settings.recipe(task)
        model = _model(arm, settings, recipe, PROBES[task].vocab, seed)
        device.adopt(model)
        _train(model, PROBES[task], settings, recipe, seed, stop)
        near = _accuracy(model, PROBES[task], settings.length)
        far = _accuracy(model, PROBES[task], BEYOND * settings.length, settings.length)
        facts = {"accuracy_1x": near, "accuracy_4x": far, "parameters": model.parameter_count()}
        results.append({"task": task, "arm": arm, "seed": seed, **facts, **_made(recipe)})
        said = f"{task}, {arm}, seed {seed}: {near:.1%}, beyond the trained length {far:.1%}"
        watch(Notice(f"{said} ({done} of {len(cells)})"))
    return {
        "schema": 1,
        "command": "qllm probe",
        "length": settings.length,
        "longer": BEYOND * settings.length,
        "chance": {task: 1 / PROBES[task].answers for task in settings.tasks},
        "results": results,
    }


def _made(recipe: Recipe) -> dict[str, Any]:
    return {name: value for name, value in recipe._asdict().items() if name != "arms"}


def _model(arm: str, settings: ProbeSettings, recipe: Recipe, vocab: int, seed: int) -> GPT:
    """Of the modern recipe, without its tables, which would be most of so small a model."""
    shape: dict[str, Any] = {"layers": recipe.layers, "width": settings.width, "heads": 2}
    shape |= {"pair_rows": 0, "value_tables": False, "context": BEYOND * settings.length + 1}
    if arm == "gpt":
        return GPT(GPTSettings(**shape), vocab, seed)
    shape |= TURNED[arm]
    if arm == "hybrid":
        shape["window"] = shape["context"]  # attention sees all there is
    return Phase(PhaseSettings(**shape, score=settings.score), vocab, seed)


def _train(
    model: LanguageModel,
    probe: Probe,
    settings: ProbeSettings,
    recipe: Recipe,
    seed: int,
    stop: Stop,
) -> None:
    # Not the loop of a run: there is no corpus, and a minute's work need not be saved or resumed.
    rates = {"lr": recipe.lr, "scalar_rate": recipe.scalar_rate}
    optimizer = Optimizer(model, AdamWSettings(**rates, weight_decay=0.0))
    generator = torch.Generator().manual_seed(seed)
    for step in range(recipe.steps):
        if (number := stop()) is not None:
            raise Stopped(number, "on request, before all models were trained")
        most = min(1.0, step / (GROWING * recipe.steps)) * (settings.length - 2) + 2
        lengths = max(2, probe.shortest), max(round(most), probe.shortest)
        length = int(torch.randint(lengths[0], lengths[1] + 1, (), generator=generator))
        drawn = probe.draw(generator, settings.sequences, length)
        x, targets = model.features(drawn.tokens)[drawn.scored], drawn.targets[drawn.scored]
        loss, _ = head_loss(model, x[None], targets[None])
        if not loss.isfinite():
            raise DivergedError(f"the loss of step {step} is {loss.item()}", "a smaller lr")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.clip()
        optimizer.step(cosine(step / recipe.steps, SCHEDULE))


@torch.no_grad()
def _accuracy(model: LanguageModel, probe: Probe, length: int, after: int = 0) -> float:
    """Share of right answers `after` so many positions."""
    generator = torch.Generator().manual_seed(ASKED_SEED)
    drawn: Drawn = probe.draw(generator, ASKED, length)
    scored = drawn.scored.clone()
    scored[:, : after + 1] = False
    answers = model(drawn.tokens).argmax(-1)
    return float((answers == drawn.targets)[scored].double().mean())
