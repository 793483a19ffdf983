"""When energies count: after language, on lines, and never where they hurt."""

from typing import Any

import pytest
import torch

from effcli.engine.phase.curriculum import ALL, AUTO, RAMP, SEED, WORSE, Curriculum, Stages
from effcli.engine.protocols import Batch, Loss
from effcli.engine.records import Notice, Record


class _Source:
    unique_tokens = 0

    def draw(self, progress: float) -> Batch:
        del progress
        tokens = torch.zeros(1, 2, dtype=torch.long)
        return Batch(tokens, tokens, tokens[:, 0])

    def feedback(self, batch: Batch, loss: Loss) -> None:
        pass

    def hear(self, loss: float) -> list[Record]:
        del loss
        return []

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _at(curriculum: Curriculum, progress: float, loss: float) -> list[str]:
    curriculum.draw(progress)
    return [one.text for one in curriculum.hear(loss) if isinstance(one, Notice)]


def _made(stages: Stages = AUTO, floor: float | None = None) -> Curriculum:
    return Curriculum(_Source(), stages, floor)


@pytest.mark.parametrize("stages", [AUTO, SEED, ALL])
def test_weights_change_on_lines(stages: Stages) -> None:
    curriculum, last = _made(stages), dict(stages[0][2])
    for number in range(2001):
        curriculum.draw(number / 2000)
        now = curriculum.weights
        for name in {*now, *last}:
            step = abs(now.get(name, 0.0) - last.get(name, 0.0))
            assert step <= 0.02 * (1 / 2000 / RAMP) * 1.001  # weights are at most 0.02
        last = now
    reached = {name: weight for name, weight in last.items() if weight}
    assert reached == {name: weight for name, weight in stages[-1][2].items() if weight}


def test_nothing_counts_before_trigrams_are_beaten() -> None:
    curriculum = _made(floor=2.0)
    assert _at(curriculum, 0.5, 2.1) == []
    assert curriculum.weights == {}
    assert _at(curriculum, 0.55, 1.9) == [
        "below what trigrams reach, 2.000: energies may count, stage: global_interference"
    ]
    assert curriculum.weights == dict(AUTO[3][2])


def test_where_nothing_has_counted_the_end_says_so() -> None:
    curriculum = _made(floor=2.0)
    told = [one for n in range(11) for one in _at(curriculum, n / 10, 3.0)]
    assert told == ["no energy has counted: trigrams were not beaten in time"]


def test_a_stage_that_hurts_is_halved_and_then_off() -> None:
    curriculum = _made()
    _at(curriculum, 0.5, 2.0)
    whole = dict(AUTO[3][2])
    assert curriculum.weights == whole
    assert _at(curriculum, 0.52, 2.0 * WORSE - 1e-3) == []
    (halved,) = _at(curriculum, 0.54, 2.0 * WORSE + 1e-3)
    assert "rose in global_interference: its energies are halved" in halved
    assert curriculum.weights == {name: weight / 2 for name, weight in whole.items()}
    (off,) = _at(curriculum, 0.56, 2.1)
    assert "are off" in off
    assert not any(curriculum.weights.values())
    _at(curriculum, 0.8, 1.9)
    assert curriculum.weights["concepts"] == AUTO[4][2]["concepts"]  # a stage of its own


def test_a_stage_without_energies_is_not_to_blame() -> None:
    curriculum = _made()
    assert [*_at(curriculum, 0.01, 2.0), *_at(curriculum, 0.1, 3.0)] == []
    _at(curriculum, 0.3, 1.0)
    assert curriculum.weights == dict(AUTO[2][2])


def test_it_goes_on_from_its_state() -> None:
    curriculum, other = _made(floor=2.0), _made(floor=2.0)
    for progress, loss in ((0.3, 1.9), (0.5, 1.8), (0.52, 1.9)):
        _at(curriculum, progress, loss)
    other.load_state_dict(curriculum.state_dict())
    for progress, loss in ((0.6, 1.95), (0.75, 1.7), (0.97, 1.6)):
        assert _at(curriculum, progress, loss) == _at(other, progress, loss)
        assert curriculum.weights == other.weights
