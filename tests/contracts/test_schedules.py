"""The laws that every schedule obeys."""

from functools import partial
from itertools import pairwise

import pytest

from effcli.catalog import SCHEDULES
from effcli.engine.pacing import cosine, wsd
from effcli.registry import resolve_place
from effcli.settings.schedule import CosineSettings, WsdSettings


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_a_schedule_climbs_once_and_never_leaves_its_range(name: str, warmup: float) -> None:
    settings = SCHEDULES.load(name)(warmup=warmup)
    factor = partial(resolve_place(settings.place), settings=settings)
    values = [factor(step / 1000) for step in range(1001)]
    assert all(0 <= value <= 1 for value in values)
    assert values[0] > 0
    top = values.index(max(values))
    assert max(values) == pytest.approx(1.0)
    assert values[:top] == sorted(values[:top])
    assert values[top:] == sorted(values[top:], reverse=True)
    assert max(abs(a - b) for a, b in pairwise(values)) < 0.02


def test_cosine_ends_at_its_floor() -> None:
    assert cosine(1.0, CosineSettings(floor=0.1)) == pytest.approx(0.1)
    assert cosine(0.51, CosineSettings(floor=0.0, warmup=0.02)) == pytest.approx(0.5)


def test_wsd_is_flat_until_its_cooldown() -> None:
    settings = WsdSettings(warmup=0.1, cooldown=0.4, floor=0.0)
    assert [wsd(at, settings) for at in (0.1, 0.3, 0.6)] == [1.0, 1.0, 1.0]
    assert wsd(0.8, settings) == pytest.approx(0.5)
    assert wsd(1.0, settings) == 0.0
