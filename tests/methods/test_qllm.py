"""`eff qllm`, from its command line: what is trained, what is measured of it, what it writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from exactness import differences, final_state, stopping_after

from effcli.engine.device import Device
from effcli.engine.models.phase import Phase
from effcli.engine.records import Record
from effcli.engine.runs.rundir import RunDir
from effcli.engine.runs.trained import open_trained
from effcli.errors import Stopped
from effcli.methods import qllm
from effcli.settings.layers import resolve
from effcli.settings.qllm import QllmSettings
from effcli.settings.train import DeviceSettings

Eff = Callable[..., tuple[int, str, str]]
Asked = Callable[..., QllmSettings]
FEW = {"eval_every": 0, "save_every": 0, "page": False}
SMALL = [*TINY, "model.pair_rows=0", "evaluation.floors=false", "evaluation.texts=0"]
SETS = [part for assignment in SMALL for part in ("--set", assignment)]


@pytest.fixture
def asked(corpus_folder: Path) -> Asked:
    """Makes settings of a tiny phase model."""

    def make(*assignments: str, **flags: Any) -> QllmSettings:
        usual = {"data": str(corpus_folder), "steps": 8, **FEW}
        return resolve(QllmSettings, {**usual, **flags}, [*SMALL, *assignments]).settings

    return make


def _line(told: tuple[int, str, str], message: str, code: int = 2) -> None:
    assert told[0] == code, told
    assert message in told[2]
    assert told[2].count("error: ") == 1
    assert "Traceback" not in told[2]


@pytest.mark.usefixtures("draws")
def test_a_run_says_what_its_phases_do_and_what_a_gpt_reaches(
    eff: Eff, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    monkeypatch.setenv("EFF_RUNS", str(place / "all"))
    monkeypatch.setattr(Phase, "unfused", "kernels are wrong here")
    command = ["qllm", "train", "--data", str(corpus_folder), "--steps", "6", *SETS]
    command += ["--set", "evaluation.texts=2", "--set", "evaluation.text_tokens=64", "--json"]
    command += ["--set", "evaluation.floors=true"]
    code, _, err = eff(*command)
    assert code == 0, err
    assert "--arch gpt" in err
    assert err.count("kernels are wrong here") == 1
    assert eff(*command, "--arch", "gpt")[0] == 0
    code, out, _ = eff(*command)
    report = json.loads(out)
    assert code == 0
    gpt, phase = report["gpt"], report["phase"]
    assert gpt["run"].endswith("all/qllm-nano-2")
    assert abs(gpt["parameters"] / report["parameters"] - 1) < 0.02
    assert gpt["held_out"]["windows"] == report["held_out"]["windows"]
    assert report["floors"]["trigram"] > 0
    assert set(phase["coherence"]) == {"1", "2", "4", "8", "16"}
    assert phase["welch_bound"] <= phase["frame_potential"] <= 1
    assert 0 < phase["imaginary_share"] < 1
    assert phase["rotation_std"] > 0
    assert len(phase["half_lives"]) == 4
    assert report["text"]["texts"] == 2
    assert "phase" not in json.loads((place / "all/qllm-nano-2/report.json").read_text())
    page = (place / "all/qllm-nano-3/report.html").read_text()
    assert "Beside a GPT of this size" in page
    assert "<h2>Phases</h2>" in page
    code, out, err = eff("qllm", "generate", "ab", "--max-new-tokens", "90", "--json")
    assert code == 0
    assert err.count("kernels are wrong here") == 1
    written = json.loads(out)
    assert written["run"].endswith("qllm-nano-3")  # the newest that has phases
    assert written["reasons"] == ["length"] or written["reasons"] == ["end"]


def test_no_model_is_a_line_that_says_how_to_get_one(
    eff: Eff, asked: Asked, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFF_RUNS", str(place / "none"))
    _line(eff("qllm", "generate", "x"), "no phase model")
    assert "eff qllm train" in eff("qllm", "generate", "x")[2]
    _line(eff("qllm", "generate", "x", "--run", "nowhere"), "no run in nowhere")
    folder = place / "gpt"
    qllm.run(asked(out=folder, arch="gpt", steps=1))
    _line(eff("qllm", "generate", "x", "--run", str(folder)), "another kind: gpt")
    _line(eff("generate", str(folder), "x", "--set", "phase_dim=4"), "needs a phase model")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--arch", "gpt", "--energies", "on"], "energies has no effect"),
        (["--arch", "gpt", "--hybrid", "2"], "no setting called 'model.hybrid'"),
        (["--curriculum", "seed"], "curriculum has no effect"),
        (["--phase-init", "golden", "--arch", "gpt"], "phase_init has no effect"),
        (["--states", "2", "--write", "delta"], "delta keeps one state"),
        (["--window", "9"], "window has no effect"),
        (["--tracker", "--phase", "rope"], "tracker has no effect"),
        (["--score", "complex", "--hybrid", "1"], "no layer has a memory"),
        (["--algebra", "complex", "--set", "model.bias=true"], "has no bias"),
        (["--algebra", "real"], "model.algebra"),
        (["--set", "model.heads=32"], "even number of channels"),
        (["--phase", "wave"], "model.phase"),
        (["--states", "4"], "model.states"),
        (["--phase-dim", "half"], "model.phase_dim"),
        (["--phase-dim", "auto", "--set", "model.heads=16"], "at least two pairs"),
        (["--set", "model.name=gpt"], "contradict"),
        (["--energies", "on", "--set", "device.compile=on"], "nothing is compiled"),
        (["--set", "factors.local=2"], "no effect without --energies on"),
        (["--energies", "on", "--set", "factors.local=-1"], "factors.local: should be"),
        (["--energies", "on", "--set", "factors.local=nan"], "factors.local: should be"),
        (["--energies", "on", "--set", "energies.local=2"], "no setting called 'energies.local'"),
        (["--energies", "on", "--eval-every", "0"], "waits for a held-out loss"),
        (["--hybrid", "3"], "of 2 layers none would attend"),
    ],
)
def test_what_has_no_effect_is_an_error(
    eff: Eff, corpus_folder: Path, flags: list[str], message: str
) -> None:
    told = eff("qllm", "train", "--data", str(corpus_folder), "--steps", "1", *SETS, *flags)
    _line(told, message)


OPTIONS = {
    "plain": {},
    "all": {"energies": "on", "curriculum": "off", "model.concepts": "16", "eval_every": 2},
    "seed": {"energies": "on", "curriculum": "seed", "phase_init": "semantic", "model.hybrid": "2"},
    "widths": {"model.phase_dim": "auto", "energies": "on", "curriculum": "off"},
    "delta": {"model.write": "delta", "model.tracker": "true", "phase_init": "frequency"},
    "algebra": {"model.algebra": "complex", "model.score": "complex"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_stopped_run_goes_on_bit_for_bit(name: str, asked: Asked, place: Path) -> None:
    sets = [f"{key}={value}" for key, value in OPTIONS[name].items() if "." in key]
    flags = {key: value for key, value in OPTIONS[name].items() if "." not in key}
    whole, cut = place / "whole", place / "cut"
    qllm.run(asked(*sets, out=whole, **flags))
    with pytest.raises(Stopped):
        qllm.run(asked(*sets, out=cut, **flags), *stopping_after(5))
    qllm.run(asked(*sets, out=cut, resume=True, **flags))
    assert differences(final_state(whole), final_state(cut)) == []


def test_phases_begin_where_they_are_told(asked: Asked, place: Path) -> None:
    first = {}
    for how in ("random", "semantic", "golden"):
        qllm.run(asked("optim.lr=1e-12", out=place / how, phase_init=how, steps=1))
        model = open_trained(place / how, Device(DeviceSettings(name="cpu")))[0]
        first[how] = model.phases
    pairs = first["golden"].shape[1] // 2
    lengths = first["golden"].view(-1, 2, pairs).square().sum(1)
    assert torch.allclose(lengths, torch.ones(()), atol=1e-3)
    assert not torch.allclose(first["golden"], first["semantic"], atol=0.1)
    assert not torch.allclose(first["random"], first["semantic"], atol=0.1)


def test_energies_that_weigh_nothing_change_nothing(asked: Asked, place: Path) -> None:
    """Concepts are heard, energies are not trained on: the same as without anybody listening."""
    told: list[Record] = []
    for out, extra in (("a", {}), ("b", {"energies": "on", "curriculum": "auto", "eval_every": 4})):
        qllm.run(asked("evaluation.floors=false", out=place / out, **extra), told.append)
    # the model never beats the trigrams in so few steps
    weights = [final_state(place / out)["weights"] for out in ("a", "b")]
    assert differences(*weights) == []


def test_an_energy_counts_as_often_as_it_is_told(asked: Asked, place: Path) -> None:
    names = ("local", "interference", "entanglement", "concepts")
    weights = {}
    for factor in (0, 1, 2):
        factors = [f"factors.{name}={factor}" for name in names]
        how: dict[str, Any] = {"energies": "on", "curriculum": "off", "out": place / str(factor)}
        qllm.run(asked(*factors, **how))
        weights[factor] = final_state(place / str(factor))["weights"]
    qllm.run(asked(out=place / "none"))
    assert differences(weights[0], final_state(place / "none")["weights"]) == []
    assert differences(weights[1], weights[0])
    assert differences(weights[1], weights[2])


def test_trained_energies_go_down(asked: Asked, place: Path) -> None:
    found = {}
    for name, extra in (("off", {}), ("on", {"energies": "on", "curriculum": "off"})):
        report = qllm.run(asked(out=place / name, steps=60, **extra))
        assert report.phase is not None
        found[name] = report.phase
    assert found["on"].frame_potential is not None
    assert found["off"].frame_potential is not None
    assert found["on"].frame_potential < found["off"].frame_potential


GROWING: dict[str, tuple[dict[str, Any], list[tuple[int, int, int]]]] = {
    "phase": (
        {"grow": "16@0,32@50%", "grow_depth": "1@0,2@25%", "phase_init": "golden"},
        [(2, 16, 2), (4, 32, 2)],
    ),
    "gpt": ({"arch": "gpt", "grow": "16@0,32@50%"}, [(4, 32, 2)]),
    "heard": (
        {"grow": "16@0,32@50%", "energies": "on", "curriculum": "off", "model.concepts": "8"},
        [(4, 32, 2)],
    ),
}


@pytest.mark.parametrize(("name", "cut"), [("phase", 3), ("phase", 4), ("gpt", 6), ("heard", 4)])
def test_a_run_that_grows_goes_on_bit_for_bit(
    name: str, cut: int, asked: Asked, place: Path
) -> None:
    options, expected = GROWING[name]
    sets = [f"{key}={value}" for key, value in options.items() if "." in key]
    flags = {key: value for key, value in options.items() if "." not in key}
    whole, part = place / "whole", place / "cut"
    report = qllm.run(asked(*sets, out=whole, **flags))
    told = [row for row in RunDir(whole).records() if row["kind"] == "grown"]
    assert [(row["step"], row["width"], row["layers"]) for row in told] == expected
    assert all(row["difference"] <= 1e-4 for row in told)
    assert report.parameters == told[-1]["parameters"]
    assert report.growth is not None
    assert [(one.step, one.width, one.layers) for one in report.growth[1:]] == expected
    assert report.flops["grow"] > 0
    assert report.seconds["grow"] > 0
    with pytest.raises(Stopped):
        qllm.run(asked(*sets, out=part, **flags), *stopping_after(cut))
    model = open_trained(part, Device(DeviceSettings(name="cpu")))[0]
    width = 16 if cut < 4 else 32  # a signal is heard when a step begins, so after growing
    assert model.head.shape[1] == width
    qllm.run(asked(*sets, out=part, resume=True, **flags))
    assert differences(final_state(whole), final_state(part)) == []
    assert open_trained(part, Device(DeviceSettings(name="cpu")))[0].head.shape[1] == 32


def test_a_checkpoint_of_the_step_of_growth_is_of_the_smaller_model(
    asked: Asked, place: Path
) -> None:
    """It was saved before; whoever goes on from it grows again."""
    whole, part = place / "whole", place / "cut"
    flags = {"grow": "16@0,32@50%", "save_every": 2}
    qllm.run(asked(out=whole, **flags))
    with pytest.raises(Stopped):
        qllm.run(asked(out=part, **flags), *stopping_after(4))
    assert open_trained(part, Device(DeviceSettings(name="cpu")))[0].head.shape[1] == 16
    qllm.run(asked(out=part, resume=True, **flags))
    assert differences(final_state(whole), final_state(part)) == []


def test_growing_costs_less_and_warms_the_rate_again(asked: Asked, place: Path) -> None:
    plain = qllm.run(asked(out=place / "plain", steps=50))
    grown = qllm.run(asked(out=place / "grown", steps=50, grow="16@0,32@40%", eval_every=10))
    assert grown.flops["train"] < 0.8 * plain.flops["train"]
    assert grown.parameters == plain.parameters
    rows = list(RunDir(place / "grown").records())
    looks = [row["loss"] for row in rows if row["kind"] == "evaluation"]
    assert grown.growth is not None
    first, second = grown.growth
    assert (first.step, first.width, first.difference, first.held_out) == (0, 16, None, None)
    assert (second.step, second.width, second.tokens) == (20, 32, 20 * 128)
    assert (second.layers, second.held_out) == (2, looks[2])
    assert "growth" not in plain.as_json()
    assert looks[-1] < looks[2] < looks[0]
    rates = [row["lr"] for row in rows if row["kind"] == "step"]
    assert rates[20] < 0.1 * rates[19]
    assert rates[21] == pytest.approx(rates[19])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grow", "32@0,16@50%"], "sizes rise: 16 comes after 32"),
        (["--grow", "24@0,32@50%"], "width 24 is no multiple of a head's 16 channels"),
        (["--grow", "16@0,32@0"], "shares of the budget rise"),
        (["--grow", "16@50%,32@80%"], "begins with: 16@0"),
        (["--grow", "16@0,32@60"], "'32@60' is not of the form"),
        (["--grow", "16@0,32@100%"], "below 100%"),
        (["--grow", "16@0,48@50%"], "ends with 48, and model.width is 32"),
        (["--grow", "32@0"], "one size is no growth"),
        (["--grow", ""], "is not of the form"),
        (["--grow", "33%@0,100%@50%"], "33% of 32 is no whole number"),
        (["--grow", "25%@0,100%@50%"], "width 8 is no multiple"),
        (["--grow", "16@0,32@50%", "--set", "device.compile=on"], "is not compiled"),
        (["--grow-depth", "1@0,4@50%"], "ends with 4, and model.layers is 2"),
        (["--grow", "16@0,32@50%", "--set", "model.tied=true"], "tied tables cannot be widened"),
    ],
)
def test_growth_that_cannot_be_is_one_line(
    eff: Eff, corpus_folder: Path, flags: list[str], message: str
) -> None:
    told = eff("qllm", "train", "--data", str(corpus_folder), *SETS, *flags)
    _line(told, message)


def test_a_growing_run_ends_with_the_size_that_is_asked_for() -> None:
    settings = resolve(QllmSettings, {"grow": "256@0,512@30%,768@60%"}).settings
    assert (settings.model.width, settings.model.heads) == (768, 12)
    sizes = [(share, model.width, model.heads) for share, model in settings.stages]
    assert sizes == [(0.0, 256, 4), (0.3, 512, 8), (0.6, 768, 12)]
    by_shares = resolve(QllmSettings, {"grow": "50%@0,100%@40%", "grow_depth": "50%@0,100%@9%"})
    sizes = [(share, model.width, model.layers) for share, model in by_shares.settings.stages]
    assert sizes == [(0.0, 64, 1), (0.09, 64, 2), (0.4, 128, 2)]  # of nano
    assert not settings.shares_trunk
    assert settings.for_text(1).device.compile == "off"


def test_fewer_phases_write_where_that_is_possible(eff: Eff, asked: Asked, place: Path) -> None:
    for out, sets in (("full", []), ("auto", ["model.phase_dim=auto"])):
        qllm.run(asked(*sets, out=place / out, energies="off", steps=2))

    def written(run: str, width: str) -> tuple[int, str, str]:
        command = ["qllm", "generate", "ab", "--run", str(place / run), "--max-new-tokens", "9"]
        return eff(*command, "--phase-dim", width)

    for width in ("2", "auto"):
        code, out, err = written("auto", width)
        assert (code, err) == (0, "")
        assert out.startswith("ab")
    assert "trained to keep 2, 4, 6, 8 phases of each head, not 3" in written("auto", "3")[2]
    assert "trained to keep 8 phases of each head, not 4" in written("full", "4")[2]
    _line(written("full", "auto"), "not learned when")
    _line(written("auto", "9"), "each head has 8 phases, not 9")
    for wrong in ("0", "some"):
        _line(written("auto", wrong), "phase_dim")


@pytest.mark.usefixtures("draws")
def test_where_a_run_has_grown_is_seen(eff: Eff, corpus_folder: Path, place: Path) -> None:
    line = ("--data", str(corpus_folder), "--steps", "4", "--out", "run", *SETS)
    code, out, err = eff("qllm", "train", *line, "--grow", "50%@0,100%@50%")
    assert code == 0, err
    told = "width 16, 2 layers; width 32, 2 layers from 256 tokens (logits apart"
    assert told in " ".join(out.split())
    page = (place / "run" / "report.html").read_text("utf8")
    assert "<h2>Growth</h2>" in page
    assert page.count("<!--  32 × 2 -->") == 3  # losses over tokens, FLOPs and seconds
    grown = json.loads((place / "run" / "report.json").read_text("utf8"))["growth"]
    assert [one["held_out"] is None for one in grown] == [True, False]


def test_a_phase_model_has_no_few_bits(
    eff: Eff, asked: Asked, corpus_folder: Path, place: Path
) -> None:
    qllm.run(asked("model.algebra=complex", out=place / "a", steps=1))
    for command in (["distill", "pack"], ["export", "--to", "packed"]):
        _line(eff(*command, str(place / "a")), "fits neither into packed files")
    distill = ["distill", "--teacher", str(place / "a"), "--data", str(corpus_folder)]
    _line(eff(*distill), "begins as a phase model")
    assert eff(*distill, "--student", "nano", "--dry-run")[0] == 0  # its voice is heard
