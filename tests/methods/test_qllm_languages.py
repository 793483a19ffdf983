"""`eff qllm` in several languages, from its command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from exactness import differences, final_state, stopping_after

from effcli.engine.data.prepare import prepare
from effcli.errors import Stopped
from effcli.methods import qllm
from effcli.settings.layers import resolve
from effcli.settings.prepare import PrepareSettings
from effcli.settings.qllm import QllmSettings

Eff = Callable[..., tuple[int, str, str]]
WORDS = ("one", "two", "six", "ten"), ("eins", "zwei", "sechs", "zehn")
SMALL = [*TINY, "model.pair_rows=0", "evaluation.floors=false", "evaluation.texts=0"]
SETS = [part for assignment in SMALL for part in ("--set", assignment)]


@pytest.fixture(scope="module")
def bilingual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus in two languages, `corpus`, and texts that mean the same."""
    folder = tmp_path_factory.mktemp("bilingual")
    rows, pairs = [], ["en\tde"]
    for n in range(400):
        said = [" ".join(words[n // 4**k % 4] for k in range(5)) for words in WORDS]
        rows += [
            {"text": text, "lang": name} for text, name in zip(said, ("en", "de"), strict=True)
        ]
        pairs.append("\t".join(said))
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pairs.tsv").write_text("\n".join(pairs[:100]) + "\n")
    how: dict[str, Any] = {"label_column": "lang", "tokenizer": "bytes", "held_out_share": 0.1}
    source, out = (str(folder / "text.jsonl"),), folder / "corpus"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFF_DATA", str(folder))
        prepare(PrepareSettings(sources=source, out=out, **how))
    return folder


def _train(folder: Path, *more: str) -> list[str]:
    command = ["qllm", "train", "--data", str(folder / "corpus"), "--languages", "en,de"]
    return [*command, "--steps", "6", *SETS, "--json", *more]


def _line(told: tuple[int, str, str], message: str) -> None:
    assert told[0] == 2, told
    assert message in told[2]
    assert told[2].count("error: ") == 1
    assert "Traceback" not in told[2]


def test_each_language_has_a_loss_and_texts_find_their_own(eff: Eff, bilingual: Path) -> None:
    aligning = ("--align", str(bilingual / "pairs.tsv"), "--concepts", "8")
    code, out, err = eff(*_train(bilingual, *aligning, "--out", "run"))
    assert code == 0, err
    report = json.loads(out)
    found, held_out = report["languages"], report["held_out"]
    assert set(found["held_out"]) == set(found["turned"]) == {"en", "de"}
    assert found["pairs"] == 9
    assert set(found["retrieval"]) == {"en-de", "de-en"}
    spoken = found["held_out"].values()
    marks = held_out["windows"] * 32 - sum(one["tokens"] for one in spoken)
    assert marks > 0  # which the loss of all counts, and those of languages do not
    assert abs(found["held_out"]["en"]["loss"] - held_out["loss"]) < 1
    code, out, err = eff("report", "run")
    assert code == 0, err
    assert "finds what means the same" in out
    for name in ("en", "de"):
        more = ("--language", name, "--max-new-tokens", "9", "--json")
        code, out, err = eff("qllm", "generate", "e", "--run", "run", *more)
        assert code == 0, err
        assert json.loads(out)["texts"][0]
    _line(eff("qllm", "generate", "e", "--run", "run", "--language", "dx"), "there is no 'dx'")
    assert eff("qllm", "inspect", "run", "--json")[0] == 0


def test_a_gpt_reads_the_same_marks(eff: Eff, bilingual: Path) -> None:
    code, out, err = eff(*_train(bilingual, "--arch", "gpt", "--out", "run"))
    assert code == 0, err
    found = json.loads(out)["languages"]
    assert set(found["held_out"]) == {"en", "de"}
    assert found["turned"] is found["retrieval"] is None
    assert eff("generate", "run", "--set", "language=de", "--max-new-tokens", "5")[0] == 0


def test_a_stopped_run_of_two_languages_goes_on_bit_for_bit(bilingual: Path, place: Path) -> None:
    flags: dict[str, Any] = {
        "data": str(bilingual / "corpus"),
        "languages": "en,de",
        "align": str(bilingual / "pairs.tsv"),
        "phase_init": "semantic",
        "steps": 8,
        "eval_every": 0,
        "save_every": 0,
        "page": False,
    }
    sets = [*SMALL, "model.concepts=8", "model.prior=true"]

    def asked(out: Path, **more: Any) -> QllmSettings:
        return resolve(QllmSettings, {**flags, "out": out, **more}, sets).settings

    whole, cut = place / "whole", place / "cut"
    qllm.run(asked(whole))
    begun = asked(cut)
    with pytest.raises(Stopped):
        qllm.run(begun, *stopping_after(3))
    qllm.run(asked(cut, resume=True))
    assert differences(final_state(whole), final_state(cut)) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--languages", "en"), "each is named once"),
        (("--languages", "fr"), "no text in 'fr'"),
        (("--set", "model.languages=3"), "model.languages"),
        (("--align", "nowhere.tsv"), "nowhere.tsv cannot be read"),
        (("--align", "p.tsv", "--arch", "gpt"), "without phases"),
        (("--set", "align_weight=1"), "no effect without --align"),
        (("--set", "device.compile=on", "--align", "p.tsv"), "nothing is compiled"),
    ],
)
def test_what_cannot_be_is_one_line(
    eff: Eff, bilingual: Path, more: tuple[str, ...], message: str
) -> None:
    _line(eff(*_train(bilingual), *more), message)


def test_pairs_need_languages(eff: Eff, bilingual: Path) -> None:
    command = ["qllm", "train", "--data", str(bilingual / "corpus"), "--align", "p.tsv"]
    _line(eff(*command), "no effect without --languages")
    _line(
        eff(
            "baseline",
            *command[2:4],
            "--set",
            "model.name=phase",
            "--set",
            "model.languages=2",
            "--set",
            "model.positions=none",
        ),
        "model.languages",
    )
