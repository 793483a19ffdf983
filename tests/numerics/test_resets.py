"""Where memories end with documents, a document is what it is alone."""

import pytest
import torch

from effcli.engine.models.phase import Phase
from effcli.engine.models.positions import since_begin
from effcli.errors import InputError
from effcli.settings.layers import resolve
from effcli.settings.phase import PhaseSettings
from effcli.settings.qllm import QllmSettings

VOCAB, TIME, FIRST = 41, 48, (0, 1, 7, 8, 30)
SHAPES = {
    "memory": {},
    "hybrid": {"hybrid": 2, "window": 6},
    "wide window": {"hybrid": 2, "window": 64},
    "delta": {"write": "delta", "chunk": 10},
    "states": {"states": 3, "chunk": 16},
    "complex": {"score": "complex", "shift": 3},
    "bare": {"pair_rows": 0, "value_tables": False, "shift": 0, "phase": "none"},
    "languages": {"languages": 2, "concepts": 8},
}


def _model(**changes: object) -> Phase:
    s = PhaseSettings(layers=2, width=16, heads=2, context=TIME, **{"resets": True, **changes})
    model = Phase(s, VOCAB, 0).eval()
    generator = torch.Generator().manual_seed(3)
    for place, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        if place.endswith("decay.bias"):  # a memory that forgets hides mistakes
            torch.nn.init.constant_(parameter, -5.0)
    return model


def _text(model: Phase) -> torch.Tensor:
    """Documents of many lengths, one of them the separator alone."""
    begin = VOCAB - 1 - 2 * model.settings.languages
    tokens = torch.randint(begin, (1, TIME), generator=torch.Generator().manual_seed(4))
    tokens[0, list(FIRST)] = begin
    if model.settings.languages:  # then each begins with a mark
        tokens[0, list(FIRST)] = begin + torch.tensor([1, 2, 4, 3, 1])
    return tokens


@pytest.mark.parametrize("shape", SHAPES)
class TestResets:
    def test_a_document_behind_others_is_what_it_is_alone(self, shape: str) -> None:
        model = _model(**SHAPES[shape])
        tokens = _text(model)
        packed = model(tokens)
        for start, stop in zip(FIRST, (*FIRST[1:], TIME), strict=True):
            alone = model(tokens[:, start:stop])
            assert (packed[:, start:stop] - alone).abs().max() < 1e-4

    def test_by_parts_and_by_steps_it_is_the_same(self, shape: str) -> None:
        model = _model(**SHAPES[shape])
        tokens = _text(model)
        for sizes in ([1] * TIME, [7, 1, 1, 20, 2, 17]):
            cache = model.new_cache(1)
            parts = [model.features(part, cache) for part in tokens.split(sizes, dim=1)]
            assert (torch.cat(parts, dim=1) - model.features(tokens)).abs().max() < 1e-4

    def test_without_resets_it_is_not(self, shape: str) -> None:
        model = _model(**{**SHAPES[shape], "resets": False})
        tokens = _text(model)
        assert (model(tokens)[:, 30:] - model(tokens[:, 30:])).abs().max() > 1e-3


def test_with_fewer_phases_too() -> None:
    model = _model()
    model.keep(2)
    tokens = _text(model)
    alone = model.features(tokens[:, 30:])
    assert (model.features(tokens)[:, 30:] - alone).abs().max() < 1e-4


def test_positions_are_counted_from_the_last_beginning() -> None:
    begins = torch.tensor([[False, True, False, False, True, True, False]])
    assert since_begin(begins, None).tolist() == [[0, 0, 1, 2, 0, 0, 1]]


def test_widths_by_surprise_know_no_documents() -> None:
    with pytest.raises(InputError, match="resets"):
        resolve(QllmSettings, {}, ["model.resets=true", "model.phase_dim=auto"])
