"""A phase model beside the GPT of equal size: seconds of a step and of a written token.

    python benchmarks/phase.py --preset tiny

Both take turns; what counts are the ratios of medians. A step is forward, backward and update of
as many tokens, in sequences of several lengths; a token is written after so many others.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from effcli.engine.device import Device
from effcli.engine.objectives.next_token import NextToken
from effcli.engine.optim.optimizer import Optimizer
from effcli.engine.protocols import Batch, LanguageModel
from effcli.engine.runs.trained import build_model, settle
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve

VOCAB, STEP_TOKENS, WRITTEN = 4096, 4096, 16
ARMS = {"gpt": [], "phase": ["model.name=phase"], "hybrid": ["model.name=phase", "model.hybrid=2"]}


def made(preset: str, arm: str, context: int, extra: list[str]) -> tuple[LanguageModel, Any]:
    """A new model without tables, and its settings."""
    sets = [*ARMS[arm], "model.pair_rows=0", "model.value_tables=false"]
    sets += [f"model.context={context}", *extra]
    settings = resolve(BaselineSettings, {"preset": preset, "steps": 1}, sets).settings
    model = build_model(settings.model, VOCAB, 0)
    Device(settings.device).adopt(model)
    return model, settings


def step(model: LanguageModel, settings: Any, length: int) -> Callable[[], None]:
    """One optimizer step on random tokens."""
    optimizer, objective = Optimizer(model, settings.optim), NextToken()
    tokens = torch.randint(VOCAB, (max(1, STEP_TOKENS // length), length))
    batch = Batch(tokens, tokens.roll(-1, 1), torch.arange(len(tokens)))

    def run() -> None:
        objective(model, batch).mean.backward()
        optimizer.step(1.0)
        optimizer.zero_grad()

    return run


def writing(model: LanguageModel, past: int) -> Callable[[], None]:
    """A few tokens after so many others."""
    settle(model.eval())
    cache, token = model.new_cache(1), torch.zeros(1, 1, dtype=torch.long)
    with torch.inference_mode():
        for part in torch.zeros(1, past, dtype=torch.long).split(512, dim=1):
            model.features(part, cache)

    @torch.inference_mode()
    def run() -> None:
        length = cache.length
        for _ in range(WRITTEN):
            model.logits(model.features(token, cache)[:, -1]).argmax()
        cache.length = length  # so that every turn is after as many

    return run


def compared(jobs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            begun = time.perf_counter()
            job()
            if number:  # the first warms up
                seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(some) for name, some in seconds.items()}


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description="a phase model beside a GPT")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="*", default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--pasts", type=int, nargs="*", default=[64, 512, 4096, 8192])
    parser.add_argument("--set", nargs="*", default=[], help="settings, as of eff baseline")
    parser.add_argument("--out", type=Path, help="keep the figures in this file")
    asked, found = parser.parse_args(), {"step": {}, "token": {}}
    for length in track(asked.lengths, "steps", console=Console(stderr=True), transient=True):
        jobs = {}
        for arm in ARMS:
            model, settings = made(asked.preset, arm, length, asked.set)
            jobs[arm] = step(model.train(), settings, length)
        found["step"][length] = compared(jobs, asked.rounds)
    for past in track(asked.pasts, "tokens", console=Console(stderr=True), transient=True):
        room = max(asked.pasts) + 2 * WRITTEN
        models = {arm: made(asked.preset, arm, room, asked.set)[0] for arm in ARMS}
        found["token"][past] = compared(
            {arm: writing(model, past) for arm, model in models.items()}, asked.rounds
        )
    table = Table(
        title=f"{asked.preset}: seconds of the GPT over those of each", title_justify="left"
    )
    for column in ("", "phase", "hybrid"):
        table.add_column(column, justify="right" if column else "left")
    for kind, label in (("step", "a step, sequences of"), ("token", "a token, after")):
        for length, seconds in found[kind].items():
            ratios = [f"{seconds['gpt'] / seconds[arm]:.2f}" for arm in ("phase", "hybrid")]
            table.add_row(f"{label} {length}", *ratios)
    Console().print(table)
    if asked.out is not None:
        asked.out.write_text(json.dumps({"preset": asked.preset, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
