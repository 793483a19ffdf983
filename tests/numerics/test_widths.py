"""Keys and queries of which only the first pairs count."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from effcli.engine.measure.causality import require_causal
from effcli.engine.models.phase import Phase
from effcli.engine.phase.looking import state_floats
from effcli.engine.phase.widths import GRAIN, LEVELS, PRIOR, WINDOW, Widths, nested
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve

VOCAB, PAIRS = 77, 4
SHAPES = {
    "one state": [],
    "three states": ["states=3", "chunk=8"],
    "delta": ["write=delta", "chunk=10"],
    "complex": ["score=complex", "phase=rope"],
    "attention": ["hybrid=2", "window=5"],
    "algebra": ["algebra=complex"],
    "bias": ["bias=true", "phase=none"],
}


def _settings(*assignments: str, phase_dim: str = "auto") -> Any:
    small = ["layers=2", "width=32", "heads=4", "context=64", "pair_rows=0"]
    named = [f"model.{one}" for one in (*small, f"phase_dim={phase_dim}", *assignments)]
    return resolve(BaselineSettings, {}, ["model.name=phase", *named]).settings.model


def _model(*assignments: str, phase_dim: str = "auto", spread: float = 0.3) -> Phase:
    model = Phase(_settings(*assignments, phase_dim=phase_dim), VOCAB)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=spread, generator=generator)
        if name.endswith("decay.bias"):
            torch.nn.init.constant_(parameter, -4.0)
    if model.widths is not None:
        for seed in range(5):
            model.widths.observe(_tokens(8, seed))
    return model.eval()


def _tokens(rows: int = 3, seed: int = 0, time: int = 60) -> Tensor:
    """Some of them are rare, and some follow others."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(rows, time, generator=generator).pow(3) * VOCAB
    follows = torch.rand(rows, time, generator=generator) < 0.5
    tokens = drawn.long()
    tokens[:, 1:] = torch.where(follows[:, 1:], (tokens[:, :-1] * 7 + 1) % VOCAB, tokens[:, 1:])
    return tokens


def _widths(model: Phase) -> Widths:
    assert model.widths is not None
    return model.widths


@given(st.integers(1, 200))
def test_each_width_is_within_the_next(pairs: int) -> None:
    kept = nested(pairs)
    assert kept == sorted(kept)
    assert 1 <= kept[0] <= math.ceil(pairs / 4)
    assert kept[-1] == pairs
    widths, masks = Widths(pairs, VOCAB).eval(), []
    for way in kept:
        widths.way = way
        mask = widths(_tokens(1), 0, None)
        assert mask.shape == (1, 1, 1, 2 * pairs)
        assert mask.view(2, pairs).sum(1).tolist() == [way, way]
        masks.append(mask)
    assert all((less <= more).all() for less, more in pairwise(masks))


@pytest.mark.parametrize("shape", SHAPES)
def test_all_pairs_are_no_mask_bit_for_bit(shape: str) -> None:
    model, tokens = _model(*SHAPES[shape]), _tokens()
    plain = _model(*SHAPES[shape], phase_dim="full")(tokens)
    for way in ("full", PAIRS):
        _widths(model).way = way
        assert torch.equal(model(tokens), plain)


@pytest.mark.parametrize("kept", [1, 3, PAIRS])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_cut_model_computes_what_the_whole_one_does_at_that_width(shape: str, kept: int) -> None:
    model, cut = (_model(*SHAPES[shape], spread=0.1) for _ in range(2))
    tokens = _tokens()
    _widths(model).way = kept
    cut.keep(kept)
    with torch.no_grad():
        assert (cut(tokens) - model(tokens)).abs().max() < 1e-5
        cache = cut.new_cache(3)
        parts = [cut.features(part, cache) for part in tokens.split([7, *[1] * 53], dim=1)]
        assert (cut.logits(torch.cat(parts, 1)) - model(tokens)).abs().max() < 1e-4
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        cut(tokens)
    solved = 2 * 3 * 6 * 10**2 * (32 + 2 * 4 * kept) if shape == "delta" else 0
    padding = 2 * 32 * (len(cut.head) - VOCAB)  # rows that only pad the head
    vocab = 3 * 60 * padding
    assert cut.forward_flops(3, 60, dense=True) == counter.get_total_flops() + solved + vocab
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        cut.logits(cut.features(tokens[:, :1], cache))
    masked = 2 * (32 + 2 * 4 * kept) if shape == "attention" else 0  # what left the window
    assert 3 * (cut.step_flops() - padding + masked) == counter.get_total_flops()


def test_what_training_keeps_besides_is_not_counted() -> None:
    model = _model()
    kept = state_floats(model)
    assert state_floats(model.train()) == kept
    assert model.training


def test_what_is_remembered_and_done_follows_the_width() -> None:
    floats, flops = [], []
    for kept in range(1, PAIRS + 1):
        model = _model(phase_dim="full")
        model.keep(kept)
        cache = model.new_cache(1)
        with torch.no_grad():
            model.features(_tokens(1), cache)
        floats.append(sum(kept.numel() for at, kept in cache.past.items() if ".state" in at))
        flops.append(model.forward_flops(1, 60))
    assert floats == [kept * floats[-1] // PAIRS for kept in range(1, PAIRS + 1)]
    steps = {more - less for less, more in pairwise(flops)}
    assert len(steps) == 1
    assert steps.pop() > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_widths_by_token_are_the_same_in_chunks_and_by_steps(shape: str) -> None:
    model, tokens = _model(*SHAPES[shape]), _tokens()
    _widths(model).way = "auto"
    levels = _widths(model).levels(tokens)
    assert len(levels.unique()) == LEVELS  # else this says nothing
    for sizes in ([60], [33, *[1] * 27], [1] * 60, [5, 20, 35]):
        cache = model.new_cache(3)
        parts, found = tokens.split(sizes, dim=1), []
        with torch.no_grad():
            logits = [model.logits(model.features(part, cache)) for part in parts]
            assert (torch.cat(logits, 1) - model(tokens)).abs().max() < 1e-4
        cache = model.new_cache(3)
        for part in parts:
            found.append(_widths(model).levels(part, cache.length, cache))
            cache.length += part.shape[1]
        assert torch.equal(torch.cat(found, 1), levels)
    with torch.no_grad():
        assert (model(tokens)[1:2] - model(tokens[1:2])).abs().max() < 1e-4
        _widths(model).way = "full"
        assert (model(tokens) - torch.cat(logits, 1)).abs().max() > 1e-3


def test_no_width_is_chosen_by_what_comes_later() -> None:
    model, tokens = _model(), _tokens()
    for way in ("auto", "training"):
        model.train(way == "training")
        _widths(model).way = "auto"
        for at in (1, 30, 59):
            changed = tokens.clone()
            changed[:, at:] = (changed[:, at:] + 5) % VOCAB
            torch.manual_seed(3)
            one = model(tokens)
            torch.manual_seed(3)
            other = model(changed)
            assert torch.equal(one[:, :at], other[:, :at])
            assert not torch.equal(one[:, at], other[:, at])
    require_causal(model)


def test_surprise_is_that_of_the_pairs_that_were_counted() -> None:
    widths, text = Widths(PAIRS, 5), torch.tensor([[0, 1, 0, 1, 0, 2, 0, 1]])
    widths.observe(text)
    counts = torch.bincount(text[0], minlength=5)
    asked = torch.tensor([[0, 1, 2, 4]])
    alone = [(counts[token].item() + 1) / (8 + 6) for token in (0, 1, 2, 4)]
    together = [None, (3, 4), (0, 3), (0, 1)]  # how often a pair, and its first token
    nats = [-math.log(alone[0])]
    for p, both in zip(alone[1:], together[1:], strict=True):
        assert both is not None
        nats.append(-math.log((both[0] + PRIOR * p) / (both[1] + PRIOR)))
    expected = torch.tensor(nats).cumsum(0) / torch.arange(1, 5)
    assert (widths.surprise(asked)[0] - expected).abs().max() < 1 / GRAIN
    long = asked.repeat(1, 10)
    assert torch.equal(widths.surprise(long)[:, 30:], widths.surprise(long[:, 6:])[:, 24:])
    assert long.shape[1] - 30 < WINDOW  # so that all of them are full windows


def test_thresholds_part_the_text_in_quarters() -> None:
    model = _model()
    for seed in range(100):
        _widths(model).observe(_tokens(16, seed))
    levels = _widths(model).levels(_tokens(200, 1000))
    shares = torch.bincount(levels.flatten(), minlength=LEVELS) / levels.numel()
    assert (shares - 1 / LEVELS).abs().max() < 0.05


def test_half_of_the_sequences_go_by_surprise_and_a_quarter_are_whole() -> None:
    model = _model()
    tokens = _tokens(4000, time=24)
    mask = _widths(model).train()(tokens, 0, None)
    assert mask.shape == (4000, 1, 24, 2 * PAIRS)
    width = mask[:, 0, :, :PAIRS].sum(-1)
    by_surprise = _widths(model).levels(tokens) + 1
    is_auto = (width == by_surprise).all(1)
    is_whole = (width == PAIRS).all(1)
    steady = (width == width[:, :1]).all(1)
    assert (is_auto | steady).all()
    moves = (by_surprise.diff() != 0).any(1)
    assert abs(steady[moves].float().mean() - 0.5) < 0.03
    for kept in range(1, PAIRS):
        share = (steady & (width[:, 0] == kept)).float().mean()
        assert 0.04 < share < 0.13
    assert is_whole.float().mean() > 0.25 + 0.25 / LEVELS - 0.03
