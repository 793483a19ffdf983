"""`eff generate`, `eff report` and `eff verify`, whole."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Settings
from headonly import HeadOnly

from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.models.generate import write
from effcli.engine.models.sampling import Sampler
from effcli.engine.runs import checkpoint
from effcli.engine.runs.compare import compare
from effcli.engine.runs.rundir import RunDir
from effcli.engine.runs.trained import open_trained
from effcli.methods import baseline
from effcli.settings.generate import SamplingSettings

Eff = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus_folder: Path) -> Path:
    """A model that has learned some letters."""
    import conftest

    from effcli.settings.baseline import BaselineSettings
    from effcli.settings.layers import resolve

    folder = tmp_path_factory.mktemp("trained") / "run"
    flags = {"data": str(corpus_folder), "steps": 120, "eval_every": 60, "out": folder}
    baseline.run(resolve(BaselineSettings, flags, conftest.TINY).settings)
    return folder


def test_text_is_continued(eff: Eff, run: Path) -> None:
    code, out, err = eff("generate", run, "the fox", "--max-new-tokens", "30")
    assert code == 0, err
    assert out.startswith("the fox")
    assert len(out) > 10
    assert eff("generate", run, "the fox", "--max-new-tokens", "30")[1] == out
    assert eff("generate", run, "the fox", "--max-new-tokens", "30", "--seed", "1")[1] != out


def test_several_texts_as_json(eff: Eff, run: Path) -> None:
    code, out, _ = eff(
        *("generate", run, "the ", "--num-return-sequences", "3", "--max-new-tokens", "9"), "--json"
    )
    document = json.loads(out)
    assert code == 0
    assert document["prompt"] == "the "
    assert len(set(document["texts"])) > 1
    assert document["reasons"] == ["length"] * 3


def test_a_stop_text_ends_the_writing(eff: Eff, run: Path) -> None:
    base = ["generate", run, "the fox", "--max-new-tokens", "200", "--json", "--seed", "2"]
    whole = json.loads(eff(*base)[1])["texts"][0]
    stop = whole[40:43]
    cut = json.loads(eff(*base, "--stop", stop, "--stop", "never there")[1])["texts"][0]
    assert cut == whole[: whole.index(stop)]
    streamed = eff(*base[:-3], "--seed", "2", "--stop", stop)[1]
    assert streamed == f"the fox{cut}\n"


def test_streaming_shows_the_whole_text(eff: Eff, run: Path) -> None:
    base = ["generate", run, "a crow", "--max-new-tokens", "60"]
    assert eff(*base)[1] == "a crow" + json.loads(eff(*base, "--json")[1])["texts"][0] + "\n"


def test_writing_goes_on_beyond_the_context(eff: Eff, run: Path) -> None:
    code, out, _ = eff("generate", run, "x" * 100, "--max-new-tokens", "90", "--json")
    assert code == 0
    assert json.loads(out)["texts"][0]


def test_generated_control_characters_never_reach_the_terminal(
    eff: Eff, run: Path, place: Path
) -> None:
    code, out, _ = eff("generate", run, "\x1b[31m\x07\x9b", "--max-new-tokens", "5")
    assert code == 0
    assert not set(out) & {"\x1b", "\x07", "\x9b"}


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        ({"temperature": 0}, {0}),
        ({"top_k": 1}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.6}, {0, 1}),
        ({"min_p": 0.5}, {0, 1}),
        ({"min_p": 0.9}, {0}),
        ({"top_p": 1.0}, {0, 1, 2, 3}),
        ({"temperature": 0.01, "top_p": 1.0}, {0}),
        ({"repetition_penalty": 100.0, "top_k": 1}, {1}),
    ],
)
def test_sampling_keeps_what_it_promises(sampling: dict[str, Any], allowed: set[int]) -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = (probabilities.log() + 5).expand(500, 4)
    settings = SamplingSettings(**{"temperature": 1.0, "top_p": 1.0, **sampling})
    sampler = Sampler(HeadOnly(torch.eye(4)), settings, range(500))
    sampler.read(torch.zeros(500, 3, dtype=torch.long))
    assert set(sampler.choose(logits, 3).tolist()) == allowed


def test_a_batch_of_prompts_is_continued_like_each_alone(eff: Eff, run: Path) -> None:
    prompts = ["the fox", "a", "once there was a crow who"]
    exact = ["--set", "device.precision=float32"]
    base = [*exact, "--temperature", "0", "--max-new-tokens", "50", "--json"]
    together = json.loads(eff("generate", run, *prompts, *base)[1])["results"]
    assert [row["prompt"] for row in together] == prompts
    for row in together:
        alone = json.loads(eff("generate", run, row["prompt"], *base)[1])
        assert alone["texts"] == row["texts"]
    code, out, _ = eff("generate", run, *prompts, *base[:-1], "--num-return-sequences", "2")
    assert code == 0
    assert out.count("---") == 6
    assert out.startswith("--- 1\nthe fox")


def test_greedy_text_is_the_most_likely_one(run: Path) -> None:
    from effcli.engine.device import Device
    from effcli.settings.train import DeviceSettings

    device = Device(DeviceSettings(name="cpu", precision="float32", threads=1))
    model, tokenizer = open_trained(run, device)
    settings = SamplingSettings(temperature=0, max_new_tokens=12)
    *_, writings = write(model, tokenizer, ["the"], settings)
    ids = [tokenizer.separator, *tokenizer.encode("the").tolist()]
    for token in writings[0].ids:
        with torch.no_grad():
            assert int(model(torch.tensor([ids]))[0, -1].argmax()) == token
        ids.append(token)


@pytest.mark.parametrize("damage", ["missing", "flipped", "nothing"])
def test_a_damaged_run_does_not_write(eff: Eff, run: Path, place: Path, damage: str) -> None:
    import shutil

    shutil.copytree(run, place / "copy")
    weights = checkpoint.steps(place / "copy" / "checkpoints")[-1] / "model.safetensors"
    if damage == "missing":
        shutil.rmtree(place / "copy" / "checkpoints")
    elif damage == "flipped":
        for path in (place / "copy" / "checkpoints").rglob("model.safetensors"):
            path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert weights is not None
    code, _, err = eff("generate", "copy", "x")
    assert code == (0 if damage == "nothing" else 2)
    assert damage == "nothing" or "no whole checkpoint" in err


@pytest.mark.parametrize("name", ["config.toml", "tokenizer.json"])
def test_a_run_with_another_file_of_the_same_kind_does_not_write(
    eff: Eff, run: Path, place: Path, name: str
) -> None:
    """Whole in itself, and not the one that the weights were trained with."""
    import shutil

    shutil.copytree(run, place / "copy")
    if name == "config.toml":
        text = (run / name).read_text()
        (place / "copy" / name).write_text(text.replace("seed = 0", "seed = 1"))
    else:
        ranks = {**{bytes([value]): value for value in range(255, -1, -1)}}
        Tokenizer("other", "", ranks, 256).save(place / "copy" / name)
    code, _, err = eff("generate", "copy", "x")
    assert code == 2
    assert name in err


def test_weights_that_are_no_finite_numbers_are_refused(eff: Eff, run: Path, place: Path) -> None:
    import shutil

    shutil.copytree(run, place / "copy")
    newest = checkpoint.steps(place / "copy" / "checkpoints")[-1]
    model = checkpoint.load_model(newest, torch.device("cpu"))
    spoiled = {name: weights * float("nan") for name, weights in model.items()}
    checkpoint.save(newest.parent, 999, spoiled, checkpoint.load_state(newest), keep=9)
    code, _, err = eff("generate", "copy", "x")
    assert code == 2
    assert "not finite" in err


def test_an_older_checkpoint_is_not_used_silently(eff: Eff, run: Path, place: Path) -> None:
    import shutil

    shutil.copytree(run, place / "copy")
    one = checkpoint.steps(place / "copy" / "checkpoints")[-1]
    shutil.copytree(one, one.with_name("step-000000500"))
    code, out, err = eff("generate", "copy", "x", "--max-new-tokens", "3")
    assert code == 0
    assert out
    assert "step-000000500 is damaged and was not used" in err


def test_a_report_is_made_again_from_the_folder_alone(eff: Eff, run: Path, place: Path) -> None:
    before = json.loads((run / "report.json").read_text())
    (run / "report.json").unlink()
    (run / "report.html").unlink()
    code, out, _ = eff("report", run, "--json")
    assert code == 0
    assert json.loads(out) == before == json.loads((run / "report.json").read_text())
    assert "<svg" in (run / "report.html").read_text()


@pytest.mark.usefixtures("draws")
def test_runs_are_compared_at_equal_loss(tiny: Settings, eff: Eff, place: Path) -> None:
    folders = []
    for name, steps, lr in (
        ("a", 30, 0.02),
        ("b", 90, 0.02),
        ("fast", 50, 0.05),
        ("far", 200, 0.03),
    ):
        flags = {"steps": steps, "out": place / name}
        baseline.run(tiny(f"optim.lr={lr}", "evaluation.floors=false", **flags))
        folders.append(place / name)
    comparison = compare(folders)
    rows = {Path(row["run"]).name: row for row in comparison["runs"]}
    assert [rows[name]["is_reference"] for name in rows] == [True, True, False, False]
    assert rows["a"]["multipliers"] == rows["b"]["multipliers"] == {}
    losses = [rows[name]["loss"] for name in ("a", "b")]
    slope = math.log(3) / (losses[0] - losses[1])
    fast = rows["fast"]
    if min(losses) < fast["loss"] < max(losses):
        expected = math.exp(slope * (losses[0] - fast["loss"])) * 30 / 50
        assert fast["multipliers"]["tokens"] == pytest.approx(expected)
    assert rows["far"]["loss"] < min(losses)
    assert rows["far"]["multipliers"]["tokens"] == f">{90 / 200:.2f}"  # bound, not a guess
    code, out, _ = eff("report", *folders, "--json", "--out", "page.html")
    assert code == 0
    assert json.loads(out)["runs"] == comparison["runs"]
    assert (place / "page.html").read_text().count("<svg") == 3


def test_one_reference_gives_bounds_only(tiny: Settings, place: Path) -> None:
    for name, steps in (("a", 40), ("other", 80)):
        baseline.run(tiny(f"model.layers={1 if name == 'a' else 2}", steps=steps, out=place / name))
    comparison = compare([place / "a", place / "other"])
    assert comparison["runs"][1]["multipliers"]["tokens"] == ">0.50"
    assert any("one budget only" in note for note in comparison["notes"])


def test_an_unfinished_run_is_not_compared(tiny: Settings, place: Path) -> None:
    import signal

    from effcli.errors import Stopped

    baseline.run(tiny(out=place / "a"))
    seen: list[Any] = []
    with pytest.raises(Stopped):
        baseline.run(
            tiny(steps=50, eval_every=2, out=place / "b"),
            seen.append,
            lambda: signal.SIGINT if len(seen) > 9 else None,
        )
    row = compare([place / "a", place / "b"])["runs"][1]
    assert row["status"] == "stopped"
    assert row["multipliers"] == {}


def test_whole_things_verify_and_damaged_ones_do_not(
    eff: Eff, run: Path, corpus_folder: Path, place: Path
) -> None:
    import shutil

    assert eff("verify", run)[0] == 0
    assert json.loads(eff("verify", corpus_folder, "--json")[1])["files"] >= 6
    shutil.copytree(run, place / "run")
    path = next((place / "run" / "checkpoints").rglob("training.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    code, _, err = eff("verify", place / "run")
    assert code == 4
    assert "training.safetensors is not what was written" in err
    shutil.copytree(corpus_folder, place / "corpus")
    (place / "corpus" / "train-00000.bin").write_bytes(b"")
    code, _, err = eff("verify", place / "corpus")
    assert code == 4
    assert "train-00000.bin" in err


def test_a_corpus_is_verified_by_the_command_that_made_it(eff: Eff, place: Path) -> None:
    arguments = ["prepare", "grammar:1", "--max-tokens", "2000"]
    assert eff(*arguments)[0] == 0
    assert json.loads(eff(*arguments, "--verify", "--json")[1])["status"] == "verified"
    path = place / "data" / "grammar-1-bytes" / "val-00000.bin"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    assert eff(*arguments, "--verify")[0] == 4


def test_a_file_of_a_run_that_was_edited_is_noticed(eff: Eff, run: Path, place: Path) -> None:
    for name in ("config.toml", "env.json", "records.jsonl", "tokenizer.json", "report.json"):
        folder = place / name
        shutil.copytree(run, folder)
        assert eff("verify", folder)[0] == 0
        (folder / name).write_text((folder / name).read_text().replace("1", "2", 1))
        code, _, err = eff("verify", folder)
        assert (code, name in err) == (4, True)


def test_a_run_from_before_tails_were_kept_is_whole(eff: Eff, run: Path, place: Path) -> None:
    folder = shutil.copytree(run, place / "old")
    rows = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(r for r in rows if '"tail"' not in r))
    RunDir(folder).seal()
    assert eff("report", folder)[0] == 0
    report = json.loads((folder / "report.json").read_text())
    assert report.pop("tail") is None
    (folder / "report.json").write_text(json.dumps(report))
    assert eff("verify", folder)[0] == 0


def test_a_run_that_saved_nothing_cannot_be_verified(eff: Eff, run: Path, place: Path) -> None:
    (place / "young").mkdir()
    (place / "young" / "config.toml").write_bytes((run / "config.toml").read_bytes())
    code, _, err = eff("verify", "young")
    assert code == 2
    assert "nothing to check" in err


def test_a_comparison_overwrites_only_pages_of_its_own(eff: Eff, run: Path, place: Path) -> None:
    (place / "mine.txt").write_text("my text")
    code, _, err = eff("report", run, run, "--out", "mine.txt")
    assert code == 2
    assert "not a page of eff" in err
    assert (place / "mine.txt").read_text() == "my text"
    assert [eff("report", run, run, "--out", "page.html")[0] for _ in range(2)] == [0, 0]
    code, _, err = eff("report", run, "--out", "page.html")
    assert code == 2
    assert "no effect" in err


def test_tuned_runs_are_no_reference_and_pay_for_tuning(tiny: Settings, place: Path) -> None:
    plain = baseline.run(tiny(steps=40, out=place / "plain"))
    tuned = baseline.run(tiny(steps=40, tune=3, out=place / "tuned"))
    assert tuned.tuning is not None
    assert tuned.tuning.chosen != {"lr": 0.02, "weight_decay": 0.1}
    rows = compare([place / "plain", place / "tuned"])["runs"]
    assert [row["is_reference"] for row in rows] == [True, False]
    assert rows[0]["tokens"] == plain.tokens
    assert rows[1]["tokens"] == tuned.tokens + tuned.tuning.tokens
    assert rows[1]["flops"] == tuned.cost_flops + tuned.tuning.flops


def test_other_windows_are_not_compared(tiny: Settings, place: Path) -> None:
    baseline.run(tiny(steps=10, out=place / "a"))
    baseline.run(tiny("evaluation.tokens=320", steps=10, out=place / "b"))
    comparison = compare([place / "a", place / "b"])
    assert comparison["runs"][1]["multipliers"] == {}
    assert any("other held-out windows" in note for note in comparison["notes"])


def test_a_name_cannot_control_the_terminal(eff: Eff, run: Path, place: Path) -> None:
    import shutil

    folder = place / "r\x1b[31mx"
    shutil.copytree(run, folder)
    for arguments in (["report", folder], ["report", folder, run], ["verify", folder]):
        code, out, err = eff(*arguments)
        assert code == 0, err
        assert "\x1b" not in out + err


def test_an_option_that_needs_phases_is_refused_without_them(eff: Eff, run: Path) -> None:
    code, _, err = eff("generate", run, "a", "--coherence", "1")
    assert code == 2
    assert "the model has no phases: coherence needs a phase model" in err


def test_a_prompt_that_is_no_text_is_refused(eff: Eff, run: Path) -> None:
    code, _, err = eff("generate", run, "a\udcffb")
    assert code == 2
    assert "not valid UTF-8" in err
    assert eff("generate", run, "a", "--stop", "")[0] == 2
    code, _, err = eff("generate", run, "")
    assert code == 2
    assert "leave it out to begin a document" in err


def test_seeds_of_one_budget_give_bounds_only(tiny: Settings, place: Path) -> None:
    for name, seed, layers in (("a", 0, 2), ("b", 1, 2), ("other", 0, 1)):
        baseline.run(tiny(f"model.layers={layers}", steps=20, seed=seed, out=place / name))
    comparison = compare([place / name for name in ("a", "b", "other")])
    assert any("one budget only" in note for note in comparison["notes"])
    gains = comparison["runs"][2]["multipliers"]
    assert all(isinstance(gain, str) and gain[0] in "<>" for gain in gains.values())


def test_the_size_of_a_micro_batch_is_not_the_method(tiny: Settings, place: Path) -> None:
    for name, micro in (("a", 4), ("b", 2)):
        baseline.run(tiny(f"batch.micro={micro}", out=place / name))
    comparison = compare([place / "a", place / "b"])
    assert [row["is_reference"] for row in comparison["runs"]] == [True, True]


def test_a_stop_text_of_long_characters_ends_the_writing() -> None:
    from effcli.engine.data.tokenizers import byte_tokenizer
    from effcli.engine.models.generate import Writing, _extend

    writing = Writing()
    for token in "и вот Ответ: да".encode():
        _extend(writing, token, {256}, byte_tokenizer("bytes"), SamplingSettings(stop=("Ответ:",)))
    assert writing.text(byte_tokenizer("bytes"), ()) == "и вот Ответ:"
