"""The loop computes what it says: accumulation, order, determinism, golden curves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Settings

from effcli.engine.data.batches import Shuffled
from effcli.engine.data.corpus import Corpus
from effcli.engine.loop import train
from effcli.engine.records import Step
from effcli.engine.session import Session
from effcli.methods import baseline

GOLDEN = Path(__file__).parent / "golden"


def _losses(settings: Any) -> list[float]:
    losses: list[float] = []
    baseline.run(settings, lambda r: losses.append(r.loss) if isinstance(r, Step) else None)
    return losses


def test_accumulating_micro_batches_equals_the_big_batch(tiny: Settings) -> None:
    for recipe, tolerance in (("textbook", 1e-5), ("modern", 5e-4)):  # Muon rounds to bfloat16
        whole = _losses(tiny("batch.sequences=12", "batch.micro=12", recipe=recipe))
        for micro in (1, 4, 5):
            parts = _losses(tiny("batch.sequences=12", f"batch.micro={micro}", recipe=recipe))
            assert parts == pytest.approx(whole, abs=tolerance)


def test_two_equal_runs_are_equal_bit_for_bit(tiny: Settings) -> None:
    settings = tiny("model.dropout=0.1")
    assert _losses(settings) == _losses(settings)
    assert _losses(settings) != _losses(settings.model_copy(update={"seed": 1}))


@pytest.mark.parametrize("recipe", ["modern", "textbook"])
def test_the_first_losses_are_still_the_same(
    tiny: Settings, recipe: str, request: pytest.FixtureRequest
) -> None:
    """`make golden` rewrites them; a change of computation is reviewed as a diff."""
    losses = _losses(tiny(recipe=recipe, steps=20))
    path = GOLDEN / f"baseline-{recipe}.json"
    if request.config.getoption("--golden"):
        path.write_text(json.dumps([round(loss, 5) for loss in losses], indent=0) + "\n")
    assert losses == pytest.approx(json.loads(path.read_text()), rel=2e-4)


@pytest.mark.parametrize("recipe", ["modern", "textbook"])
def test_training_learns(tiny: Settings, recipe: str) -> None:
    losses = _losses(tiny(recipe=recipe, steps=60))
    assert losses[0] > 5.3  # about ln 257
    assert sum(losses[-5:]) / 5 < 3.2


def test_every_window_is_read_once_per_epoch(corpus: Corpus) -> None:
    source = Shuffled(corpus.train, context=512, sequences=4, seed=3)
    count = corpus.train.windows(512)
    epochs = [[source.draw(0.0).ids for _ in range(-(-count // 4))] for _ in range(2)]
    first, second = (torch.cat(ids)[:count].tolist() for ids in epochs)
    assert sorted(first) == list(range(count))
    assert first != second
    assert source.unique_tokens == count * 512


def test_targets_are_the_next_tokens(corpus: Corpus) -> None:
    batch = Shuffled(corpus.train, context=16, sequences=8, seed=0).draw(0.0)
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    tokens = corpus.train.read([0], corpus.train.tokens)[0]
    for window, inputs, targets in zip(batch.ids, batch.inputs, batch.targets, strict=True):
        start = int(window) * 16
        assert inputs.tolist() == tokens[start : start + 16].tolist()
        assert targets.tolist() == tokens[start + 1 : start + 17].tolist()


def test_the_loop_stops_at_a_share_of_the_budget_and_goes_on(tiny: Settings) -> None:
    settings = tiny(steps=10)
    with Session("baseline", settings, lambda _: None, lambda: None) as session:
        first = [record.loss for record in train(session.parts, until=0.5)]
        second = [record.loss for record in train(session.parts)]
    assert len(first) == len(second) == 5
    assert first + second == _losses(settings)


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"steps": 5}, 5),
        ({"tokens": 128 * 7}, 7),
        ({"tokens": 128 * 6 + 1}, 7),
        ({"flops": 1.0}, 1),
    ],
)
def test_a_budget_ends_the_run(tiny: Settings, budget: dict[str, Any], steps: int) -> None:
    assert baseline.run(tiny(**budget)).steps == steps


def test_a_budget_of_minutes_ends_the_run(tiny: Settings) -> None:
    report = baseline.run(tiny(minutes=0.01))
    assert 0.6 <= report.cost_seconds < 3


def test_the_first_budget_to_be_reached_ends_the_run(tiny: Settings) -> None:
    settings = tiny(tokens=10**6).model_copy(update={"steps": 3})
    assert baseline.run(settings).steps == 3
