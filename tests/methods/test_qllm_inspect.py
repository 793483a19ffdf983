"""`eff qllm inspect`, whole; and that what it draws is what the model reads."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import cross_entropy

from effcli.engine.data.corpus import Split
from effcli.engine.data.tokenizers import byte_tokenizer
from effcli.engine.models.interference import Told, interfere, retrieval
from effcli.engine.models.mixers import Interference
from effcli.engine.models.phase import Phase
from effcli.engine.phase import inspecting, likeness
from effcli.engine.phase.gradients import gradient_shares
from effcli.engine.phase.listening import energies, listening
from effcli.engine.phase.looking import hear, state_floats
from effcli.engine.records import Reading, Record
from effcli.engine.runs import checkpoint
from effcli.errors import InputError
from effcli.methods import baseline, qllm, qllm_inspect
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve
from effcli.settings.phase import PhaseSettings
from effcli.settings.qllm import QllmSettings
from effcli.ui.phases import mauve_line

Eff = Callable[..., tuple[int, str, str]]
HOSTILE = "<script>alert('x')</script>&<!-- "


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus_folder: Path) -> Path:
    """A phase model with memories, attention and concepts."""
    folder = tmp_path_factory.mktemp("phases") / "run"
    flags = {"data": str(corpus_folder), "steps": 4, "eval_every": 0, "out": folder}
    tiny = [*conftest.TINY, "model.concepts=8", "model.hybrid=2", "evaluation.texts=0"]
    qllm.run(resolve(QllmSettings, flags, tiny).settings)
    return folder


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a model is nowhere faster than on one."""
    one = qllm_inspect.CPU.model_copy(update={"threads": 1})
    monkeypatch.setattr(qllm_inspect, "CPU", one)


def _model(**more: object) -> Phase:
    """Small, with weights of which every one does something."""
    shape = {"layers": 2, "width": 16, "heads": 2, "context": 32, "chunk": 4, **more}
    model = Phase(PhaseSettings.model_validate(shape), 257)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3, generator=generator)
    return model.eval()


def _told(states: int, *, is_delta: bool = False) -> Told:
    q, k, v = torch.randn(3, 2, 3, 11, 6, dtype=torch.float64)
    decays = -torch.rand(2, 3, states, 11, dtype=torch.float64)
    strength = torch.rand(2, 3, 11, dtype=torch.float64) if is_delta else None
    return Told(q, k, v, decays, strength)


@pytest.mark.parametrize("states", [1, 3])
def test_weights_are_those_that_values_are_read_with(states: int) -> None:
    told = _told(states)
    blend = torch.rand(3, states, dtype=torch.float64).softmax(1) if states > 1 else None
    read, _ = interfere(told, 4, blend)
    torch.testing.assert_close(retrieval(told, blend) @ told.v, read, rtol=1e-12, atol=1e-12)


def test_weights_are_the_formula() -> None:
    told = _told(1)
    found, sums = retrieval(told), told.decays[:, :, 0].cumsum(-1)
    for t, s in ((0, 0), (7, 2), (10, 9)):
        left = (sums[..., t] - sums[..., s]).exp()
        expected = left * (told.q[:, :, t] * told.k[:, :, s]).sum(-1)
        torch.testing.assert_close(found[..., t, s], expected)
    assert not found.triu(1).any()


@pytest.mark.parametrize("more", [{}, {"states": 2}, {"phase": "rope"}, {"phase": "none"}])
def test_a_map_is_what_the_head_of_the_model_reads(
    more: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reads = _model(**more), []
    plain = Interference.read

    def heard(self: Interference, *given: Tensor) -> Tensor:
        reads.append(plain(self, *given))
        return reads[-1]

    monkeypatch.setattr(Interference, "read", heard)
    tokens = torch.randint(257, (19,))
    maps = inspecting.maps(model, tokens)
    told = hear(model, tokens.unsqueeze(0)).told
    assert [one.layer for one in maps] == [0, 1]
    for one, said, read in zip(maps, told, reads, strict=False):
        drawn = one.weights.double() @ said.v[0, one.head].double()
        torch.testing.assert_close(drawn, read[0, one.head].double(), rtol=1e-4, atol=1e-5)


def test_shares_add_up() -> None:
    for one in inspecting.maps(_model(), torch.randint(257, (19,))):
        told, size = one.told(), one.weights.abs().sum()
        assert told["positive"] + told["negative"] == 1
        assert told["negative"] == pytest.approx(float(-one.weights.clamp(max=0).sum() / size))
        assert 0 < told["positive"] < 1
        assert told["positive_by_head"][one.head] == told["positive"]


def test_a_cut_model_is_measured_as_it_would_write() -> None:
    model = _model()
    tokens = torch.randint(257, (3, 19))
    rows = inspecting.widths(model, tokens)
    assert [row["pairs"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        cut = _model()
        cut.keep(row["pairs"])
        nats = cross_entropy(cut(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        assert row["loss"] == pytest.approx(nats.item(), rel=1e-5)
    assert rows[-1]["state_floats"] == state_floats(model)
    assert model.pairs == len(model.trunk.blocks[0].attention.key.weight) // 4  # is not cut itself


def test_half_lives_are_what_decays_say() -> None:
    model = _model(layers=1)
    heard = hear(model, torch.randint(257, (2, 9)))
    heard.told[0] = replace(heard.told[0], decays=torch.full((2, 2, 1, 9), -math.log(2) / 8))
    (row,) = inspecting.memories(model, heard)
    assert [row["p5"], row["p95"], *row["heads"]] == pytest.approx([8.0] * 4)
    (points,) = inspecting.histograms(model, heard).values()
    ((center, share),) = [point for point in points if point[1]]
    assert share == 1
    assert 8 / 2**0.5 < center < 8 * 2**0.5


def test_turns_are_those_between_neighbors() -> None:
    model = _model(layers=2, phase="rope")
    rows = inspecting.rotations(model, hear(model, torch.randint(257, (2, 9))))
    assert [row["layer"] for row in rows] == [0, 1]
    assert rows[0]["p95"] <= 1  # radians: the fastest pair
    still = _model(phase="none")
    assert not inspecting.rotations(still, hear(still, torch.randint(257, (2, 9))))


@pytest.mark.parametrize(
    ("token", "kind"),
    [
        (b"a", "lowercase"),
        (b" the", "lowercase"),
        (b" The", "uppercase"),
        (b"42", "digits"),
        (b" (", "punctuation"),
        (b"+=", "punctuation"),
        (b" \n", "whitespace"),
        ("é".encode(), "lowercase"),
        (b"\xc3", "other"),
        (b"a1", "other"),
        (b"", "other"),
    ],
)
def test_kinds_of_tokens(token: bytes, kind: str) -> None:
    assert inspecting.kind(token) == kind


def test_a_portrait_shows_what_differs_most() -> None:
    """Two groups of tokens, turned against each other, are apart on the first axis."""
    model = _model()
    rows = torch.full((len(model.trunk.embedding.weight), 16), 1.0)
    rows[ord("a") : ord("z") + 1] = -1.0
    rows += 0.01 * torch.randn(rows.shape)
    model.trunk.embedding.weight.data = rows
    seen = torch.tensor([list(b"abcXYZaa")])
    found = inspecting.portrait(model, byte_tokenizer(""), seen)
    assert found.kinds == ["lowercase"] * 1 + ["uppercase"] * 3 + ["lowercase"] * 2
    signs = found.places[:, 0].sign().tolist()
    assert {-signs[0]} == set(signs[1:4])
    assert {signs[0]} == set(signs[4:])
    assert found.explained > 0.99
    assert found.coherence["lowercase"] > 0.99 > found.coherence["all"]


@pytest.mark.usefixtures("draws")
def test_the_document_and_the_page(eff: Eff, run: Path) -> None:
    code, out, err = eff("qllm", "inspect", run, "--json")
    document = json.loads(out)
    assert code == 0, err
    assert set(document) == {
        *("schema", "command", "run", "page", "measured", "phase", "portrait", "memories"),
        *("gradients", "widths", "rotations", "text", "interference", "concepts"),
        "mauve",
    }
    assert document["mauve"] is None
    assert [row["pairs"] for row in document["widths"]] == [2, 4, 6, 8]
    for less, more in pairwise(document["widths"]):
        assert less["state_floats"] < more["state_floats"]
        assert less["flops"] < more["flops"]
    assert document["widths"][-1]["state_floats"] == document["phase"]["state_floats"]
    assert document["measured"] == {"corpus": "grammar", "windows": 16, "tokens": 512}
    assert not document["text"]["is_given"]
    assert len(document["text"]["tokens"]) == 32  # a window has no more
    assert [row["layer"] for row in document["memories"]] == [0]  # the other one is attention
    assert [row["layer"] for row in document["rotations"]] == [0, 1]
    for row in document["interference"]:
        assert row["positive"] + row["negative"] == pytest.approx(1)
    assert 0 < len(document["concepts"]) <= 8
    assert sum(row["share"] for row in document["concepts"]) <= 1 + 1e-6
    page = (run / "inspect.html").read_text("utf8")
    assert page.count("<svg") == 6
    assert "<image" not in page  # which its policy would not show


@pytest.mark.usefixtures("draws")
def test_own_texts_are_compared_with_as_many_of_held_out_text(eff: Eff, run: Path) -> None:
    command = ("qllm", "inspect", str(run), "--mauve", "20", "--out", "page.html")
    code, out, err = eff(*command, "--json")
    assert code == 0, err
    found = json.loads(out)["mauve"]
    assert (found["texts"], found["tokens"]) == (20, 32)
    assert found["held_out"] >= 40
    assert 0 < found["score"] < found["ceiling"] <= 1 + 1e-9  # after four steps
    page = Path("page.html").read_text("utf8")
    assert "MAUVE of 20 own texts of 32 tokens" in page
    assert f"{found['ceiling']:.3f} of held-out text with itself" in page
    assert f"{found['ceiling']:.3f} of held-out text with itself" in mauve_line(found)


class _HeldOut(Split):
    """So many texts, and no more."""

    def __init__(self, texts: int) -> None:
        self.texts = texts

    def windows(self, length: int) -> int:
        return self.texts

    def read(self, starts: Any, count: int) -> Any:
        return np.random.default_rng(0).integers(0, 257, (len(starts), count))


def test_too_little_held_out_text_is_said() -> None:
    model, held_out = _model(context=8), _HeldOut(39)
    letters = byte_tokenizer("")
    likeness.require_texts(held_out, letters, 39, 8)
    with pytest.raises(InputError, match="has 39 texts of 8 tokens, and 40 are asked for") as told:
        likeness.require_texts(held_out, letters, 40, 8)
    assert told.value.hint == "--mauve 39 is the most"
    with pytest.raises(InputError, match="first language alone"):
        likeness.require_texts(held_out, letters.marked(["en", "de"]), 20, 8)
    found = likeness.likeness(model, byte_tokenizer(""), held_out, 20, lambda _: None)
    assert found["ceiling"] is None
    assert "not known: 39 texts, 40 needed" in mauve_line(found)
    assert likeness.text_length(_model(context=9999)) == likeness.LONGEST


def test_writing_tells_how_far_it_is() -> None:
    model, told = _model(), list[Record]()
    texts = likeness.written(model, byte_tokenizer(""), 66, 4, told.append)
    assert texts.shape == (66, 4)
    again = likeness.written(model, byte_tokenizer(""), 66, 4, lambda _: None)
    assert torch.equal(texts, again)
    assert len({tuple(row) for row in texts.tolist()}) > 60
    shares = [one.share for one in told if isinstance(one, Reading) and one.share is not None]
    assert len(shares) == 2 * 4
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.usefixtures("draws")
def test_hostile_tokens_are_text_on_the_page(
    eff: Eff, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the text given, and those of concepts."""
    plain = inspecting.label
    monkeypatch.setattr(inspecting, "label", lambda *given: f"<b>\x1b{plain(*given)}")
    code, out, err = eff("qllm", "inspect", run, "--text", HOSTILE, "--out", "page.html")
    page = Path("page.html").read_text("utf8")
    assert code == 0, err
    assert "half-life" in out
    assert "\x1b" not in page + out
    assert "<b>\u241b" not in page
    assert "&lt;b&gt;\u241b&lt;&lt;b&gt;\u241bs&lt;b&gt;\u241bc" in page
    assert not (run / "page.html").exists()


@pytest.mark.parametrize(
    ("text", "windows", "tokens"), [("ab", 1, 2), ("the fox and the dog " * 4, 2, 64)]
)
def test_without_its_corpus_a_model_is_measured_on_the_text(
    eff: Eff, run: Path, monkeypatch: pytest.MonkeyPatch, text: str, windows: int, tokens: int
) -> None:
    def gone(*_: object) -> Path:
        raise InputError("there is no corpus")

    monkeypatch.setattr(qllm_inspect, "read_as", gone)
    code, _, err = eff("qllm", "inspect", run, "--out", "page.html")
    assert code == 2
    assert "not there any more" in err
    assert "--text" in err
    code, _, err = eff("qllm", "inspect", run, "--text", text, "--mauve", "20")
    assert code == 2
    assert "not there any more" in err
    assert "leave out --mauve" in err
    if windows > 1:  # drawn often enough
        monkeypatch.setattr(qllm_inspect, "write_inspection", lambda *_: None)
    given = ("--text", text, "--out", "page.html", "--json")
    code, out, err = eff("qllm", "inspect", run, *given)
    assert code == 0, err
    document = json.loads(out)
    assert document["measured"] == {"corpus": None, "windows": windows, "tokens": tokens}
    assert document["text"]["is_given"]
    assert "".join(document["text"]["tokens"]) == text[:64]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no run in nowhere"),
        ([], "RUN is missing"),
        (["RUN", "--text", "a"], "text: is shorter than two tokens"),
        (["RUN", "--text", ""], "text: is shorter than two tokens"),
        (["RUN", "--text", "a\udcff"], "text: not valid UTF-8"),
        (["RUN", "--out", "mine.txt"], "mine.txt is not a page of eff"),
        (["RUN", "--out", "no/page.html"], "there is no folder no"),
        (["RUN", "--set", "windows=0"], "windows: should be greater"),
        (["RUN", "--mauve", "19"], "mauve: should be greater than or equal to 20"),
        (["RUN", "--mauve", "4097"], "mauve: should be less than or equal to 4096"),
    ],
)
def test_bad_input_is_one_line(eff: Eff, run: Path, arguments: list[str], message: str) -> None:
    Path("mine.txt").write_text("dear diary")
    given = [str(run) if part == "RUN" else part for part in arguments]
    code, out, err = eff("qllm", "inspect", *given)
    lines = err.strip().splitlines()
    assert (code, out) == (2, "")
    assert message.lower() in lines[0].lower()
    assert len(lines) <= 2
    assert Path("mine.txt").read_text() == "dear diary"


def _gradients(weights: list[Tensor]) -> Tensor:
    return torch.cat(
        [(torch.zeros_like(w) if w.grad is None else w.grad).flatten() for w in weights]
    )


def test_the_pull_of_energies_is_that_of_their_gradients() -> None:
    model, tokens = _model(concepts=8), torch.randint(257, (3, 20))
    found = gradient_shares(model, tokens)
    assert set(found) == {"local", "entanglement", "interference", "concepts"}
    assert all(one.grad is None for one in model.parameters())
    weights = list(model.trunk.blocks.parameters())
    with listening(model) as heard:
        logits = model(tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    (loss + 0 * energies(heard)["local"]).backward(retain_graph=True)
    own = _gradients(weights)
    model.zero_grad(set_to_none=True)
    energies(heard)["local"].backward()
    pull = _gradients(weights)
    torch.testing.assert_close(found["local"]["share"], float(pull.norm() / own.norm()))
    cosine = float(F.cosine_similarity(pull, own, dim=0))
    torch.testing.assert_close(found["local"]["cosine"], cosine, rtol=0, atol=1e-5)


def test_a_gpt_has_no_phases(eff: Eff, corpus_folder: Path) -> None:
    flags = {"data": str(corpus_folder), "steps": 1, "eval_every": 0, "out": Path("gpt")}
    baseline.run(resolve(BaselineSettings, flags, conftest.TINY).settings)
    code, out, err = eff("qllm", "inspect", "gpt")
    assert (code, out) == (2, "")
    assert "the model of the run in gpt has no phases" in err
    assert len(err.strip().splitlines()) == 2


def test_a_damaged_checkpoint_is_said(eff: Eff, run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(run, broken, ignore=shutil.ignore_patterns("*.html"))
    for place in checkpoint.steps(broken / "checkpoints"):
        path = next(place.glob("*.safetensors"))
        path.write_bytes(path.read_bytes()[:-9])
    code, out, err = eff("qllm", "inspect", broken)
    assert (code, out) == (2, "")
    assert "has no whole checkpoint" in err
    assert not (broken / "inspect.html").exists()
