"""`eff qllm probe`: sequences that are made up, and what models can keep of them."""

import json
import math
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effcli.engine.models.gpt import GPT
from effcli.engine.models.layers import Cache
from effcli.engine.models.mixers import Interference, PhaseAttention
from effcli.engine.models.positions import Positions
from effcli.engine.phase.probes import KEYS, MODULUS, PAIRS, PROBES, SYMBOLS, VALUES, Drawn
from effcli.engine.records import Notice, Record
from effcli.errors import DivergedError, Stopped
from effcli.methods import qllm_probe
from effcli.settings.phase import PhaseSettings
from effcli.settings.probe import ARMS, TASKS, ProbeSettings, Recipe

Eff = Callable[..., tuple[int, str, str]]
BATCH = 5
SEEDS, LENGTHS = st.integers(0, 2**32), st.integers(3, 90)
SMALL = ProbeSettings(seeds=1, steps=2, length=8, sequences=4, width=8)


def _drawn(task: str, seed: int, length: int) -> Drawn:
    drawn = PROBES[task].draw(torch.Generator().manual_seed(seed), BATCH, length)
    shapes = {one.shape for one in (drawn.tokens, drawn.targets, drawn.scored)}
    assert shapes == {(BATCH, length + 1)}
    assert drawn.tokens.max() == PROBES[task].vocab - 1  # the start
    assert (drawn.tokens[:, 0] == PROBES[task].vocab - 1).all()
    assert drawn.scored.any(1).all()
    assert not drawn.scored[:, 0].any()
    return drawn


@pytest.mark.parametrize("task", TASKS)
def test_sequences_are_those_of_their_generator(task: str) -> None:
    before = torch.get_rng_state()
    one, same, other = (_drawn(task, seed, 40) for seed in (1, 1, 2))
    for name in ("tokens", "targets", "scored"):
        assert torch.equal(getattr(one, name), getattr(same, name))
    assert not torch.equal(one.tokens, other.tokens)
    assert torch.equal(torch.get_rng_state(), before)


@given(SEEDS, LENGTHS)
def test_parity_and_sums_are_of_all_that_came(seed: int, length: int) -> None:
    for task, modulus in (("parity", 2), ("modular", MODULUS)):
        drawn = _drawn(task, seed, length)
        for tokens, targets in zip(drawn.tokens[:, 1:], drawn.targets[:, 1:], strict=True):
            total = 0
            for token, target in zip(tokens.tolist(), targets.tolist(), strict=True):
                total = total ^ token if modulus == 2 else (total + token) % modulus
                assert target == total
        assert drawn.scored[:, 1:].all()


@given(SEEDS, LENGTHS)
def test_what_is_recalled_was_told_once_before(seed: int, length: int) -> None:
    drawn = _drawn("recall", seed, length)
    pairs = min(PAIRS, length // 3)
    for tokens, targets, scored in zip(drawn.tokens, drawn.targets, drawn.scored, strict=True):
        told = tokens[1 : 1 + 2 * pairs].view(-1, 2).tolist()
        known = dict(told)
        assert len(known) == pairs
        assert all(key < KEYS <= value < KEYS + VALUES for key, value in told)
        assert not scored[: 1 + 2 * pairs].any()
        asked = tokens[scored].tolist()
        assert sorted(asked) == sorted(known)
        assert targets[scored].tolist() == [known[key] for key in asked]
        assert (tokens[1 + 2 * pairs :][~scored[1 + 2 * pairs :]] == KEYS + VALUES).all()


@given(SEEDS, LENGTHS)
def test_a_copy_is_asked_for_before_it_is_seen(seed: int, length: int) -> None:
    drawn, half = _drawn("copy", seed, length), length // 2
    end = length + 1
    assert torch.equal(drawn.targets[:, -half:], drawn.tokens[:, end - 2 * half : end - half])
    assert torch.equal(drawn.tokens[:, end - half + 1 :], drawn.targets[:, -half:-1])
    assert (drawn.tokens[:, end - half] == SYMBOLS).all()
    assert drawn.scored.sum() == BATCH * half
    assert drawn.scored[:, -half:].all()


@torch.no_grad()
def _tracker(turn: float = math.pi, **more: Any) -> Interference:
    """One head: ones turn by half a circle, the start alone is written, nothing is forgotten.

    Its input has four channels: is it the start, the digit, a one, nothing. Its output has the
    first phasor: the real part and the imaginary one.
    """
    layer = Interference(PhaseSettings(width=4, heads=1, layers=1, tracker=True, **more), 0)
    for parameter in layer.parameters():
        parameter.zero_()
    layer.phases.narrow.weight[0, 1] = 1.0
    layer.phases.widen.weight[:, 0] = turn
    layer.decay.bias.fill_(-40.0)
    for part in (layer.query, layer.key):
        part.weight[0, 2] = 1.0
    layer.value.weight[0, 0] = 1.0
    layer.gate.weight[::2, 2] = 1.0
    layer.output.weight[0, 0] = layer.output.weight[1, 2] = 1.0
    return layer


def _read(layer: Interference, x: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
    tokens = torch.zeros(x.shape[:2], dtype=torch.long)
    read: torch.Tensor = layer(x, Positions(tokens, None, None, None), cache, 0, None)
    return read


@torch.no_grad()
def test_a_tracker_keeps_the_parity_of_ten_thousand_bits() -> None:
    drawn = PROBES["parity"].draw(torch.Generator().manual_seed(0), 2, 10_000)
    zero, one = torch.zeros(2, 10_001), torch.ones(2, 10_001)
    x = torch.stack(((drawn.tokens == 2).float(), (drawn.tokens == 1).float(), one, zero), dim=-1)
    layer = _tracker()
    whole = _read(layer, x)[..., 0]
    assert torch.equal((whole < 0).long(), drawn.targets)
    assert whole.abs().min() > 0.99 * whole.abs().max()
    cache = Cache()
    parts = [_read(layer, part, cache)[..., 0] for part in x[:, :600].split(7, dim=1)]
    assert torch.equal((torch.cat(parts, dim=1) < 0).long(), drawn.targets[:, :600])


@torch.no_grad()
@pytest.mark.parametrize("score", ["complex", "real"])
def test_phasors_keep_a_sum_of_ten_thousand_digits_and_signs_do_not(score: str) -> None:
    """What a head reads is normalized: of a single value, the real part leaves a sign."""
    drawn = PROBES["modular"].draw(torch.Generator().manual_seed(0), 2, 10_000)
    is_start = drawn.tokens == MODULUS
    x = torch.zeros(2, 10_001, 4)
    x[..., 0], x[..., 1], x[..., 2] = is_start, drawn.tokens * ~is_start, 1.0
    re, im, *_ = _read(_tracker(2 * math.pi / MODULUS, score=score), x).unbind(-1)
    if score == "complex":
        found = torch.atan2(im, re) / (2 * math.pi / MODULUS)
        assert torch.equal(found.round().long() % MODULUS, drawn.targets)
        assert (found - found.round()).abs().max() < 0.05
    else:
        assert (im == 0).all()
        assert (re.abs() / re.abs().max() - 1).abs().max() < 1e-3


@torch.no_grad()
def test_the_same_layer_without_turns_says_one_thing_only() -> None:
    layer = _tracker()
    layer.phases.widen.weight.zero_()
    x = torch.zeros(1, 50, 4)
    x[:, 0, 0], x[..., 2], x[:, 1:, 1] = 1.0, 1.0, torch.randint(2, (1, 49)).float()
    assert (_read(layer, x)[..., 0] > 0).all()


def test_every_arm_answers_every_task() -> None:
    seen: list[Record] = []
    asked = SMALL.model_copy(update={"tasks": TASKS, "arms": ARMS, "layers": 2})
    document = qllm_probe.run(asked, seen.append)
    results = document["results"]
    assert [(one["task"], one["arm"]) for one in results] == [(t, a) for t in TASKS for a in ARMS]
    assert all(0 <= one[f"accuracy_{n}x"] <= 1 for one in results for n in (1, 4))
    assert all(one["steps"] == 2 and one["parameters"] > 0 for one in results)
    assert [type(record) for record in seen] == [Notice] * len(results)
    again = qllm_probe.run(asked.model_copy(update={"tasks": TASKS[2:3], "arms": ARMS[:1]}))
    assert again["results"] == [results[2 * len(ARMS)]]


def test_arms_are_the_models_that_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    models: dict[str, GPT] = {}
    make = qllm_probe._model

    def kept(arm: str, *rest: Any) -> GPT:
        return models.setdefault(arm, make(arm, *rest))

    monkeypatch.setattr(qllm_probe, "_model", kept)
    qllm_probe.run(SMALL.model_copy(update={"tasks": ("recall",)}))
    assert tuple(models) == ARMS
    mixers = {name: [one.attention for one in model.trunk.blocks] for name, model in models.items()}
    assert [type(one) for one in mixers["hybrid"]] == [Interference, PhaseAttention]
    assert mixers["hybrid"][1].window == 4 * SMALL.length + 1
    for name in ("data", "rope", "none", "delta"):
        assert all(isinstance(one, Interference) for one in mixers[name])
        assert {one.is_delta for one in mixers[name]} == {name == "delta"}
        assert {one.phases.way for one in mixers[name]} == {"data" if name == "delta" else name}


def test_a_task_brings_what_is_not_asked_for() -> None:
    usual, asked = ProbeSettings(), ProbeSettings(steps=7, lr=1.0, arms=("gpt",))
    for task in ("parity", "modular"):  # what documented results were measured with
        assert usual.recipe(task) == Recipe(("data", "rope", "none", "gpt"), 400, 1, 3e-3, 0.2)
    for task in TASKS:
        recipe, given = usual.recipe(task), asked.recipe(task)
        assert (given.steps, given.lr, given.arms) == (7, 1.0, ("gpt",))
        assert (given.layers, given.scalar_rate) == (recipe.layers, recipe.scalar_rate)
    assert usual.recipe("recall").arms == usual.recipe("copy").arms == ARMS


@pytest.mark.slow
def test_short_copies_are_learned_at_once() -> None:
    asked = ProbeSettings(tasks=("copy",), arms=("hybrid",), seeds=1, steps=300, length=8)
    (hybrid,) = qllm_probe.run(asked)["results"]
    assert hybrid["accuracy_1x"] >= 0.5  # 0.36 at the rates of parity, 0.06 by chance


def test_short_parities_are_learned_at_once() -> None:
    asked = ProbeSettings(arms=("data",), seeds=1, steps=100, length=8, sequences=16)
    (data,) = qllm_probe.run(asked)["results"]
    assert data["accuracy_1x"] >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize(("task", "most"), [("parity", 0.65), ("modular", 0.3)])
def test_counting_needs_phases_that_the_text_turns(task: str, most: float) -> None:
    for one in qllm_probe.run(ProbeSettings(tasks=(task,)))["results"]:
        if one["arm"] == "data":
            assert one["accuracy_1x"] >= 0.95
        else:
            assert one["accuracy_1x"] <= most


def test_a_signal_ends_the_work_between_two_steps() -> None:
    asked = iter([None, None, None, signal.SIGTERM])
    with pytest.raises(Stopped) as error:
        qllm_probe.run(SMALL, stop=lambda: next(asked))
    assert error.value.code == 143


def test_a_loss_beyond_all_numbers_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qllm_probe, "head_loss", lambda *_: (torch.tensor(math.nan), None))
    with pytest.raises(DivergedError, match="step 0"):
        qllm_probe.run(SMALL)


def test_the_command_shows_means_or_all_of_it(eff: Eff) -> None:
    small = ("--seeds", "2", "--steps", "2", "--length", "8", "--set", "width=8")
    code, out, err = eff("qllm", "probe", "copy", "--arms", "gpt,none", *small)
    assert code == 0, err
    assert "copy, none, seed 1" in err
    assert "gpt" in out
    assert "6.2%" in out  # 1 of 16 symbols, by chance
    code, out, _ = eff("qllm", "probe", "copy", "--arms", "gpt", *small, "--json")
    assert code == 0
    assert [one["seed"] for one in json.loads(out)["results"]] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["parit"], "there is no task called 'parit'\nhint: did you mean 'parity'?"),
        (["--arms", "date"], "there is no arm called 'date'\nhint: did you mean 'data'?"),
        (["--seeds", "0"], "seeds: should be greater than or equal to 1"),
        (["--length", "4"], "length: should be greater than or equal to 8"),
        (["--arms", "data,hybrid"], "arms: hybrid has no effect in one layer; --set layers=2"),
        (["recall", "--set", "layers=1"], "arms: hybrid has no effect in one layer"),
        (["--set", "width=30"], "width: should be a multiple of 4"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(eff: Eff, arguments: list[str], message: str) -> None:
    code, out, err = eff("qllm", "probe", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) <= 2
