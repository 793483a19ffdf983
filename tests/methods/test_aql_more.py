"""Scorers of single windows, stored scores, meta-training of a policy, and synthesis."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from exactness import differences, final_state, stopping_after
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from effcli.engine.data.corpus import Corpus
from effcli.engine.data.prepare import prepare
from effcli.engine.models.gpt import GPT
from effcli.engine.processes import Processes
from effcli.engine.protocols import Batch
from effcli.engine.selection import policy, visits
from effcli.engine.selection.governor import Governor
from effcli.engine.selection.holdout import Row
from effcli.engine.selection.laplace import Laplace
from effcli.engine.selection.overlap import Grams
from effcli.engine.selection.pool import Shards
from effcli.engine.selection.scorers import Proxy, Scorer, proxy_shape
from effcli.engine.selection.source import Selected
from effcli.engine.selection.synth import Gate, Writer, shifts
from effcli.errors import InputError, Stopped
from effcli.methods import aql
from effcli.settings.aql import AqlSettings
from effcli.settings.layers import resolve
from effcli.settings.prepare import PrepareSettings

Make = Callable[..., AqlSettings]
CREDIT = "overhead_max=2.0"  # a model this small pays much for a score


@pytest.fixture
def choosing(corpus_folder: Path) -> Make:
    """Makes settings of a tiny selective run of 12 steps."""

    def make(*assignments: str, **flags: Any) -> AqlSettings:
        usual = {"data": str(corpus_folder), "eval_every": 0, "save_every": 0, "steps": 12}
        small = ["choice.tilt=0.5", "choice.proxy_layers=1", "choice.proxy_width=16"]
        more = [*TINY, *small, "evaluation.floors=false", "choice.rounds=4", CREDIT, "page=false"]
        return resolve(AqlSettings, {**usual, **flags}, [*more, *assignments]).settings

    return make


@pytest.fixture
def plain(choosing: Make, place: Path) -> list[int]:
    """The windows that are picked without a scorer."""
    aql.run(choosing(out=place / "plain"))
    return list(final_state(place / "plain")["batches"]["picked"].tolist())


@pytest.mark.parametrize("scorer", ["model", "proxy"])
def test_a_scorer_changes_what_is_chosen_and_pays_for_it(
    choosing: Make, place: Path, plain: list[int], scorer: str
) -> None:
    report = aql.run(choosing(f"choice.scorer={scorer}", out=place / "run"))
    state = final_state(place / "run")
    assert state["batches"]["picked"].tolist() != plain
    assert state["batches"]["aids"]["scorer"]["governor"]["total"] > 0
    assert report.selection is not None
    assert 0 < report.selection.flops_in_loop <= 2.0


@pytest.mark.parametrize("scorer", ["model", "proxy"])
@pytest.mark.parametrize("cut", [1, 5, 9])
def test_scorers_resume_exactly(choosing: Make, place: Path, scorer: str, cut: int) -> None:
    name = f"choice.scorer={scorer}"
    aql.run(choosing(name, out=place / "whole"))
    with pytest.raises(Stopped):
        aql.run(choosing(name, out=place / "cut"), *stopping_after(cut))
    aql.run(choosing(name, out=place / "cut", resume=True))
    assert not differences(final_state(place / "cut"), final_state(place / "whole"))


@pytest.mark.parametrize("scorer", ["model", "proxy"])
def test_the_overhead_is_held_at_every_step(
    choosing: Make, place: Path, monkeypatch: pytest.MonkeyPatch, scorer: str
) -> None:
    shares: list[float] = []
    draw = Selected.draw

    def drawn(self: Selected, progress: float) -> Batch:
        batch, flops = draw(self, progress), self._meter.flops
        shares.append((flops["select"] - self._price) / max(flops["train"], 1.0))
        return batch

    monkeypatch.setattr(Selected, "draw", drawn)
    aql.run(choosing(f"choice.scorer={scorer}", "overhead_max=0.6", out=place / "run"))
    assert len(shares) == 12
    assert max(shares) <= 0.6 * (1 + 1e-9)
    assert max(shares) > 0.2


def windows(count: int, time: int, vocab: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab, (count, time + 1))


def test_scores_cost_what_they_bill() -> None:
    from effcli.settings.model import GPTSettings

    model = GPT(GPTSettings(layers=3, width=64, context=128, value_tables=False), 256)
    told, text = Laplace(), windows(8, 128, 256)
    tokens = torch.from_numpy(text)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], tokens[:, 0])
    told.observe(model, batch, model.features(batch.inputs))
    told.commit(lambda _: None)
    scorer = Scorer(model, told, Governor(1.0, 1e12), Processes(), 4, 0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        scores = scorer.scores(np.arange(8), lambda ids: text[ids], 0.0)
    assert np.isfinite(scores).all()
    # Products that a mask hides are computed, and are no work.
    masked = 8 * (model.forward_flops(1, 128, dense=True) - model.forward_flops(1, 128))
    assert counter.get_total_flops() == pytest.approx(scorer.spent + masked, rel=0.1)


def test_learning_costs_what_it_bills() -> None:
    proxy = Proxy(proxy_shape(2, 64, 64), 4096, 1.0, Processes(), torch.device("cpu"), 0)
    tokens = torch.from_numpy(windows(8, 64, 4096))
    batch = Batch(tokens[:, :-1], tokens[:, 1:], tokens[:, 0])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        proxy.hear(batch, 1e12)
    model = proxy._model
    masked = 3 * (model.forward_flops(8, 64, dense=True) - model.forward_flops(8, 64))
    assert proxy.spent > 0
    assert counter.get_total_flops() == pytest.approx(proxy.spent + masked, rel=0.1)


def test_a_proxy_learns() -> None:
    proxy = Proxy(proxy_shape(1, 32, 32), 4096, 1.0, Processes(), torch.device("cpu"), 0)
    tokens = torch.from_numpy(np.tile(windows(1, 32, 4096), (4, 1)))
    batch = Batch(tokens[:, :-1], tokens[:, 1:], tokens[:, 0])
    mine = Batch(proxy._ids(batch.inputs), proxy._ids(batch.targets), batch.ids)
    before = proxy._objective(proxy._model, mine).mean.item()
    for _ in range(30):
        proxy.hear(batch, 1e12)
    assert proxy._objective(proxy._model, mine).mean.item() < before / 2


def test_a_state_of_a_proxy_is_never_written_to() -> None:
    proxy = Proxy(proxy_shape(1, 32, 32), 256, 1.0, Processes(), torch.device("cpu"), 0)
    tokens = torch.from_numpy(windows(4, 32, 256))
    batch = Batch(tokens[:, :-1], tokens[:, 1:], tokens[:, 0])
    proxy.hear(batch, 1e12)
    state = proxy.state_dict()
    before = {name: value.clone() for name, value in state["weights"].items()}
    proxy.hear(batch, 1e12)
    assert not differences(state["weights"], before)
    assert differences(proxy.state_dict()["weights"], before)
    proxy.load_state_dict(state)
    proxy.hear(batch, 1e12)
    assert not differences(state["weights"], before)


def test_what_a_run_remembers_is_reused_by_the_next(
    choosing: Make, place: Path, plain: list[int]
) -> None:
    with pytest.raises(InputError, match="no earlier run left visits"):
        aql.run(choosing("choice.reuse=true", out=place / "early"))
    aql.run(choosing("choice.remember=true", out=place / "first"))
    first = final_state(place / "first")["batches"]
    assert first["picked"].tolist() == plain
    table = visits.newest(torch.cat([first["aids"]["visits"]["whole"], *parts_of(first)], dim=1))
    assert set(table[0].long().tolist()) <= set(plain)
    report = aql.run(choosing("choice.reuse=true", "seed=1", out=place / "second"))
    assert report.selection is not None
    state = final_state(place / "second")["batches"]["aids"]["visits"]
    known = state["earlier"]
    assert torch.equal(known[table[0].long()], table[1].float())
    assert int(known.isfinite().sum()) == table.shape[1] > 0
    assert report.selection.reused == state["reused"] > 0


def parts_of(batches: dict[str, Any]) -> list[torch.Tensor]:
    return list(batches["aids"]["visits"]["parts"].values())


def test_visits_resume_exactly(choosing: Make, place: Path) -> None:
    names = ("choice.remember=true", "choice.scorer=model")
    aql.run(choosing(*names, out=place / "whole"))
    with pytest.raises(Stopped):
        aql.run(choosing(*names, out=place / "cut"), *stopping_after(6))
    aql.run(choosing(*names, out=place / "cut", resume=True))
    assert not differences(final_state(place / "cut"), final_state(place / "whole"))


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), max_size=300))
def test_the_last_visit_counts(heard: list[list[int]]) -> None:
    kept = visits.Visits(is_kept=True)
    last: dict[int, float] = {}
    for step, ids in enumerate(heard):
        told = torch.arange(len(ids)).double() + 100 * step
        kept.hear(torch.tensor(ids), torch.stack([told, -told]), step)
        last |= {one: float(score) for one, score in zip(ids, told, strict=True)}
    table = kept.table()
    assert dict(zip(table[0].int().tolist(), table[1].tolist(), strict=True)) == last
    assert torch.equal(table[2], -table[1])


def test_visits_of_several_runs_are_kept_and_damage_is_said(place: Path) -> None:
    visits.write(place, 32, torch.tensor([[1.0, 3.0], [0.5, 1.5], [2.0, 2.0], [7.0, 7.0]]).double())
    visits.write(place, 32, torch.tensor([[3.0], [-1.5], [2.0], [1.0]]).double())
    assert visits.read(place, 32, 5).nan_to_num(9.0).tolist() == [9.0, 0.5, 9.0, -1.5, 9.0]
    with pytest.raises(InputError, match="of another text"):
        visits.read(place, 32, 3)
    with pytest.raises(InputError, match="no earlier run"):
        visits.read(place, 64, 5)
    (place / visits.VISITS.format(32)).write_bytes(b"half")
    with pytest.raises(InputError, match="damaged"):
        visits.read(place, 32, 5)


@pytest.mark.parametrize(
    ("assignments", "named"),
    [
        (("choice.scorer=model", "selector=ratio"), "choice.scorer has no effect"),
        (("choice.reuse=true", "selector=random"), "choice.reuse has no effect"),
        (("choice.remember=true", "selector=random"), "choice.remember has nothing"),
        (("choice.policy_weights=x.toml",), "no effect on the policy 'fixed'"),
    ],
)
def test_settings_without_effect_are_refused(
    choosing: Make, assignments: tuple[str, ...], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        choosing(*assignments)


def test_a_policy_is_trained_resumed_and_used(
    eff: Any, choosing: Make, place: Path, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = [part for one in [*TINY, "evaluation.floors=false"] for part in ("--set", one)]
    words = ["aql", "policy", "train", "--data", corpus_folder, "--runs", 4, "--tokens", 1280]
    words += ["--out", place / "found.toml", "--json", *shape]
    code, out, err = eff(*words)
    assert code == 0, err
    document = json.loads(out)
    assert document["flops"]["meta"] > 0
    found = policy.weights(place / "found.toml")
    assert found.tolist() == list(document["weights"].values())
    assert np.isfinite(found).all()
    assert found.any()
    monkeypatch.setattr(aql, "run", None)  # nothing is run again
    code, again, _ = eff(*words)
    assert code == 0
    assert json.loads(again) == document
    assert [one.name for one in (place / "found.runs").iterdir()] == ["finished.json"]
    monkeypatch.undo()
    monkeypatch.chdir(place)
    path = f"choice.policy_weights={place / 'found.toml'}"
    aql.run(choosing(path, policy="learned", out=place / "run"))
    kept = final_state(place / "run")["batches"]["chooser"]["policy"]["weights"]
    assert kept == found.tolist()


def test_jitter_moves_hard_windows_in_later_passes_and_resumes(
    choosing: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[tuple[int, np.ndarray]] = []
    real = Shards._moved

    def seen(self: Shards, ids: np.ndarray) -> np.ndarray:
        found = real(self, ids)
        moved.append((self._epoch, found))
        owners, middles = self._owners[ids], ids * self._context + found + self._context // 2
        starts, lengths = (self._scores[name][owners] for name in ("start", "length"))
        assert ((middles >= starts) & (middles < starts + lengths)).all()
        return found

    monkeypatch.setattr(Shards, "_moved", seen)
    repeated = {"steps": 24, "epochs": 3}
    names = ("synth.jitter=true", "ratio=0.02")
    aql.run(choosing(*names, out=place / "whole", **repeated))
    by_epoch = {epoch: np.concatenate([m for e, m in moved if e == epoch]) for epoch, _ in moved}
    assert set(by_epoch) >= {1, 2}
    assert 0.05 < np.mean(by_epoch[1] != 0) < 0.6
    assert set(by_epoch[1].tolist()) != set(by_epoch[2].tolist())
    with pytest.raises(Stopped):
        aql.run(choosing(*names, out=place / "cut", **repeated), *stopping_after(16))
    aql.run(choosing(*names, out=place / "cut", resume=True, **repeated))
    assert not differences(final_state(place / "cut"), final_state(place / "whole"))


@given(st.integers(0, 2**32), st.integers(0, 5), st.integers(2, 512))
def test_documents_move_as_one_by_half_a_window_at_most(seed: int, epoch: int, size: int) -> None:
    documents = np.repeat(np.arange(50), 2)
    free = np.full(100, 10**6)
    moved = shifts(documents, (free, free), size, seed, epoch)
    assert (np.abs(moved) <= size / 2).all()
    assert (moved[::2] == moved[1::2]).all()
    assert (shifts(documents, (free * 0, free * 0), size, seed, epoch) == 0).all()


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus of which a part is noise, and with trusted text."""
    folder = tmp_path_factory.mktemp("gated")
    prepare(PrepareSettings(sources=("grammar:1",), max_tokens=150_000, out=folder / "plain"))
    text = Corpus.open(folder / "plain")
    row = text.train.read([90_000], 60_000)[0]
    pieces = [text.tokenizer.decode(row[at : at + 400]) for at in range(0, 60_000, 400)]
    (folder / "trusted.txt").write_text("<|endoftext|>".join(pieces))
    prepare(PrepareSettings(sources=("grammar-noisy:1",), max_tokens=60_000, out=folder / "noisy"))
    return folder


@pytest.fixture
def gated(choosing: Make, noisy: Path) -> Make:
    """Makes settings of runs that are gated."""

    def make(*assignments: str, **flags: Any) -> AqlSettings:
        trusted = f"prep.holdout={noisy / 'trusted.txt'}"
        return choosing(trusted, *assignments, **{"data": str(noisy / "noisy"), **flags})

    return make


ECHO = """import json, random, string, sys
random.seed(0)
for line in sys.stdin:
    one = json.loads(line)
    """
SAYING = {
    "same": 'print(json.dumps({"id": one["id"], "text": one["text"] * 3}))',
    "noise": 'print(json.dumps({"text": "".join(random.choices(string.printable, k=900))}))',
    "mute": 'sys.exit("no ideas")',
    "wrong": 'print("hello")',
}


def program(place: Path, name: str) -> str:
    path = place / f"{name}.py"
    path.write_text(ECHO + SAYING[name])
    return f"{sys.executable} {path}"


def test_what_a_program_writes_is_gated_and_read(gated: Make, place: Path) -> None:
    kept = {}
    for name in ("same", "noise"):
        command = {"synth_cmd": program(place, name), "out": place / name}
        aql.run(gated(**command, steps=24))
        state = final_state(place / name)["batches"]
        kept[name] = state["aids"]["writer"]["kept"]
        assert state["counts"]["unique"] <= state["counts"]["emitted"]
        assert (state["counts"]["unique"] == state["counts"]["emitted"]) == (name == "noise")
        windows = len(state["now"]["ids"]) - int(state["now"]["is_written"].sum())
        assert int(state["now"]["is_written"].sum()) <= 0.1 * windows
    assert kept["same"] > 0
    assert kept["noise"] == 0


def test_what_was_written_is_not_asked_for_again(
    gated: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = {"synth_cmd": program(place, "same"), "steps": 24}
    aql.run(gated(**command, out=place / "whole"))
    asked: list[int] = []
    real = Writer._ask
    monkeypatch.setattr(Writer, "_ask", lambda s, t: asked.append(len(t)) or real(s, t))
    with pytest.raises(Stopped):
        aql.run(gated(**command, out=place / "cut"), *stopping_after(10))
    before = len(asked)
    aql.run(gated(**command, out=place / "cut", resume=True))
    assert 0 < before < len(asked)
    assert not differences(final_state(place / "cut"), final_state(place / "whole"))


@pytest.mark.parametrize(
    ("name", "said"),
    [("mute", "ended with code 1: no ideas"), ("wrong", "not a line of JSON")],
)
def test_a_failure_of_the_program_is_one_line(
    gated: Make, place: Path, name: str, said: str
) -> None:
    command = {"synth_cmd": program(place, name), "out": place / "run"}
    with pytest.raises(InputError, match=said):
        aql.run(gated(**command))


def test_a_program_that_is_not_there_or_never_answers_is_said(gated: Make, place: Path) -> None:
    with pytest.raises(InputError, match="cannot be started"):
        aql.run(gated(synth_cmd="/no/such/program", out=place / "a"))
    slow = f"{sys.executable} -c 'import time; time.sleep(60)'"
    with pytest.raises(InputError, match=r"no answer within 0\.2 seconds"):
        aql.run(gated("synth.timeout=0.2", synth_cmd=slow, out=place / "b"))


def test_held_out_text_is_refused_even_where_it_is_good() -> None:
    class Good:
        def columns(self, _: Any, passages: Any) -> Any:
            return {"ratio": np.ones(len(passages))}

    random = np.random.default_rng(0)
    held_out = random.integers(0, 4096, 500)
    gate = Gate(Good(), Grams(Row([held_out]), 13, 1), 128)  # type: ignore[arg-type]
    fresh = random.integers(0, 4096, 400)
    stolen, short = fresh.copy(), fresh.copy()
    stolen[100:113], short[100:112] = held_out[77:90], held_out[77:89]
    assert gate.passes([fresh, stolen, short], 1.0).tolist() == [True, False, True]
    assert not gate.passes([fresh], 1.5).any()


def test_self_distillation_is_billed_and_resumes_exactly(choosing: Make, place: Path) -> None:
    name = "synth.distill=0.5"
    report = aql.run(choosing(name, out=place / "whole"))
    assert report.flops["teacher"] > 0
    with pytest.raises(Stopped):
        aql.run(choosing(name, out=place / "cut"), *stopping_after(7))
    aql.run(choosing(name, out=place / "cut", resume=True))
    assert not differences(final_state(place / "cut"), final_state(place / "whole"))
