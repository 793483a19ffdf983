"""`eff aql`, from its command line: what is read, what is billed, what can be claimed."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from conftest import TINY, drawing
from exactness import differences, final_state, stopping_after
from ranks import ranks

from effcli.engine.data.corpus import Corpus
from effcli.engine.data.grammar import NoisyGrammar
from effcli.engine.data.prepare import prepare
from effcli.engine.records import Record, Step
from effcli.engine.runs import checkpoint
from effcli.engine.runs.pieces import Selection
from effcli.engine.runs.report import report_of
from effcli.engine.selection import sidecar
from effcli.engine.selection.assemble import _trusted, quotas_of
from effcli.engine.selection.audit import Audited
from effcli.engine.selection.choose import choose
from effcli.engine.selection.passages import Passages
from effcli.engine.selection.sidecar import COLUMNS, Scores
from effcli.engine.selection.view import joined
from effcli.errors import EffError, InputError, Stopped
from effcli.methods import aql, aql_select
from effcli.settings.aql import AqlSettings, ChoiceSettings, SelectSettings
from effcli.settings.layers import resolve
from effcli.settings.prepare import PrepareSettings

Eff = Callable[..., tuple[int, str, str]]
SETS = [part for assignment in TINY for part in ("--set", assignment)]
QUIET = ["--save-every", "0", "--eval-every", "0"]
TOKENS = 200_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pool that is partly noise (`noisy`) and trusted text (`good.jsonl`)."""
    folder = tmp_path_factory.mktemp("aql")
    source = NoisyGrammar("7")
    held_out = (source.row("val", index) for index in range(150))  # neither noise nor copies
    lines = [json.dumps({"text": row.text}) for row in held_out]
    (folder / "good.jsonl").write_text("\n".join(lines), "utf8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFF_DATA", str(folder))
        sources = ("grammar-noisy:1",)
        prepare(PrepareSettings(sources=sources, max_tokens=TOKENS, out=folder / "noisy"))
    return folder


@pytest.fixture
def data(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pool, where corpora are looked for."""
    monkeypatch.setenv("EFF_DATA", str(made))
    return made / "noisy"


@pytest.fixture
def trusting(made: Path) -> list[str]:
    """The flags that name trusted text."""
    return ["--holdout", str(made / "good.jsonl")]


def _settings(data: Path, *assignments: str, **flags: Any) -> AqlSettings:
    flags = {"data": str(data), "eval_every": 0, "save_every": 0, **flags}
    return resolve(AqlSettings, flags, [*TINY, *assignments]).settings


def _document(told: tuple[int, str, str]) -> Any:
    code, out, err = told
    assert code == 0, err
    return json.loads(out)


# What a run is


def test_a_run_reads_its_share_and_says_what_choosing_cost(
    eff: Eff, data: Path, trusting: list[str], place: Path
) -> None:
    flags = ["--data", str(data), "--ratio", "0.02", "--curriculum", "root", "--out", "r"]
    report = _document(eff("aql", *flags, *trusting, *SETS, "--eval-every", "10", "--json"))
    chosen, step = report["selection"], 128
    assert 0 <= report["tokens"] - 0.02 * TOKENS < step
    assert report["unique_tokens"] == chosen["unique_tokens"] == 0.02 * TOKENS
    assert (chosen["ratio"], chosen["mode"]) == (0.02, "file")
    for unit, low, high in (
        ("seconds", "overhead_in_loop", "overhead_all_in"),
        ("flops", "flops_in_loop", "flops_all_in"),
    ):
        spent = report[unit]["select"] / report[unit]["train"]
        assert 0 < chosen[low] < chosen[high]
        assert chosen[high] == pytest.approx(spent)
    assert chosen["flops_in_loop"] <= 0.03 + 0.03 / report["steps"]
    assert 0 < chosen["cluster_entropy"] < np.log(chosen["clusters"])
    assert _document(eff("verify", "r", "--json"))["kind"] == "run"


@pytest.mark.usefixtures("draws")
def test_a_page_of_a_selective_run_draws_what_was_chosen(eff: Eff, data: Path, place: Path) -> None:
    chosen, plain = ["aql", "--ratio", "0.02"], ["baseline", "--steps", "3"]
    for name, command in (("a", chosen), ("b", plain)):
        code, out, err = eff(*command, "--data", data, *SETS, *QUIET, "--out", name)
        assert code == 0, err
        page = (place / name / "report.html").read_text("utf8")
        assert ("<h2>Selection</h2>" in page) is (name == "a")
        assert ("in the loop" in out) is (name == "a")


def test_trusted_text_finds_the_noise_and_leaves_it_out(
    eff: Eff, data: Path, trusting: list[str], place: Path
) -> None:
    known = _document(eff("aql", "prep", str(data), *trusting, "--json"))
    corpus = Corpus.open(data)
    starts = np.append(corpus.train.document_starts(), corpus.train.tokens)
    labels = corpus.train.labels()
    assert labels is not None
    shares = np.bincount(labels, np.diff(starts)) / TOKENS
    bad = [corpus.label_names.index(name) for name in ("noise", "duplicate")]
    assert shares[bad[0]] < known["contamination"] < shares[bad].sum() + 0.2
    found = {}
    for name in ("random", "ratio"):
        flags = ["--data", data, "--ratio", "0.2", "--selector", name, "--out", name]
        found[name] = _document(eff("aql", "select", *flags, *trusting, "--json"))["precision"]
    assert found["ratio"] > found["random"] + 0.1


def test_scores_are_made_once_unless_they_are_forced(eff: Eff, data: Path) -> None:
    first = _document(eff("aql", "prep", data, "--set", "prep.seed=5", "--json"))
    again = _document(eff("aql", "prep", data, "--set", "prep.seed=5", "--json"))
    assert (first["status"], again["status"]) == ("prepared", "unchanged")
    assert again == {**first, "status": "unchanged"}
    forced = _document(eff("aql", "prep", data, "--set", "prep.seed=5", "--force", "--json"))
    assert forced["status"] == "prepared"
    one, other = (data / "aql" / Path(d["scores"]).name / "prep.json" for d in (first, forced))
    assert json.loads(one.read_text())["sha256"] == json.loads(other.read_text())["sha256"]


def test_without_trusted_text_it_says_that_noise_cannot_be_told(eff: Eff, data: Path) -> None:
    _, _, err = eff("aql", "prep", data)
    assert "nothing says what good text is" in " ".join(err.split())


# Views


@pytest.fixture(scope="module")
def view(made: Path) -> Path:
    """Three tenths of the pool, in parts of documents and whole ones."""
    settings = SelectSettings(data=str(made / "noisy"), ratio=0.3, out=made / "view", report=True)
    with drawing():
        aql_select.run(settings)
    return made / "view"


def test_a_view_holds_the_chosen_passages_in_the_order_of_the_text(data: Path, view: Path) -> None:
    whole, part = Corpus.open(data), Corpus.verified(view)[0]
    rows = np.loadtxt(view / "documents.txt", dtype=np.int64)
    passages = Passages(*rows.T)
    assert (np.diff(passages.starts) > 0).all()
    assert passages.tokens == pytest.approx(0.3 * whole.train.tokens, rel=0.01)
    pieces, begins = joined(passages), part.train.document_starts()
    assert len(pieces) == len(begins) == part.train.documents
    ends = np.append(begins[1:], part.train.tokens)
    labels, known = part.train.labels(), whole.train.labels()
    assert labels is not None
    assert known is not None
    assert (labels == known[pieces.documents]).all()
    separator = whole.tokenizer.separator
    for begin, end, start, length in zip(begins, ends, pieces.starts, pieces.lengths, strict=True):
        expected = whole.train.read([int(start)], int(length))[0]
        found = part.train.read([int(begin)], int(end - begin))[0]
        assert found[0] == separator
        assert (found[found != separator] == expected[expected != separator]).all()


def test_a_view_is_judged_on_the_same_text(data: Path, view: Path) -> None:
    whole, part = Corpus.open(data), Corpus.open(view)
    assert part.tokenizer.hash == whole.tokenizer.hash
    for name in ("val", "test"):
        assert part.manifest["splits"][name] == whole.manifest["splits"][name]
    assert part.label_names == whole.label_names
    assert part.hash != whole.hash


def test_a_view_can_be_trained_on_and_mixed(eff: Eff, data: Path, view: Path, place: Path) -> None:
    flags = ["--data", view, "--steps", "3", *SETS, *QUIET]
    assert _document(eff("baseline", *flags, "--json"))["status"] == "complete"
    assert _document(eff("verify", view, "--json"))["kind"] == "corpus"
    mix = f"{view}/text.jsonl:0.5,grammar:2:0.5"
    flags = ["--tokenizer", "bytes", "--max-tokens", "9000", "--out", "mixed"]
    mixed = _document(eff("prepare", "--mix", mix, *flags, "--json"))
    assert mixed["rejected"] == 0
    shares = np.array(list(mixed["mix"]["train"].values()))
    assert shares / shares.sum() == pytest.approx([0.5, 0.5], abs=0.1)
    texts = [json.loads(line) for line in (view / "text.jsonl").read_text("utf8").splitlines()]
    part = Corpus.open(view)
    assert sum(len(row["text"].encode()) for row in texts) == part.train.bytes
    assert {row["label"] for row in texts} <= set(part.label_names)


def test_a_view_is_not_what_commands_take_by_default(
    eff: Eff, made: Path, data: Path, place: Path
) -> None:
    before = (made / ".last").read_text()
    document = _document(eff("aql", "select", "--data", data, "--ratio", "0.05", "--json"))
    assert document["corpus"] == str(made / "noisy-auto-0.05")
    assert (made / ".last").read_text() == before


def test_a_view_that_is_there_is_unchanged_and_nothing_else_is_overwritten(
    eff: Eff, data: Path, view: Path, place: Path
) -> None:
    def bad(*flags: Any) -> str:
        code, _, err = eff("aql", "select", "--data", data, *flags)
        assert code == 2
        return err

    before = {path: path.read_bytes() for path in view.iterdir()}
    flags = ["--data", data, "--ratio", "0.3", "--out", view]
    assert _document(eff("aql", "select", *flags, "--json"))["status"] == "unchanged"
    assert "holds something else" in bad("--ratio", "0.2", "--out", view)
    assert "holds something else" in bad("--ratio", "0.3", "--out", data)
    (place / "mine").mkdir()
    (place / "mine" / "thesis.txt").write_text("years of work")
    assert "choose another --out" in bad("--out", "mine")
    assert before == {path: path.read_bytes() for path in view.iterdir()}
    assert [path.name for path in (place / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("what", ["signal", "full disk"])
def test_a_view_is_written_whole_or_not_at_all(
    data: Path, place: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    settings = SelectSettings(data=str(data), ratio=0.3, out=place / "v" / "view")
    aql_select.run(settings.model_copy(update={"out": place / "first"}))  # so scores are there
    if what == "signal":
        with pytest.raises(Stopped) as error:
            aql_select.run(settings, stop=lambda: signal.SIGTERM)
        assert error.value.code == 143
    else:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("effcli.engine.selection.view.write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            aql_select.run(settings)
    assert [path.name for path in (place / "v").iterdir()] == [".view.lock"]


def test_a_page_of_a_view_stands_alone(view: Path) -> None:
    page = (view / "selection.html").read_text("utf8")
    assert page.count("<svg") == 5  # rarity, loss, clusters; labels before and after
    assert "http-equiv" in page
    assert "src=" not in page


# Audits


def _stub(contamination: float | None, copies: float, passes: float) -> Audited:
    class Told:
        tokens, unique_tokens = round(1000 * passes), 1000

    chosen = Selection.model_construct(contamination=contamination)
    facts = {"duplicate_tokens": 1000 * copies, "tokens": 1000}
    return Audited(Path(), Told(), chosen, facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("contamination", "copies", "passes", "reading", "ceiling"),
    [
        (0.8, 0.5, 5.0, "R3 or R5", 5.0),
        (0.29, 0.5, 5.0, "R4", None),
        (None, 0.3, 1.0, "R4", None),
        (0.1, 0.1, 5.0, "R2", None),
        (None, 0.0, 1.01, "R1", None),
        (1.0, 0.0, 1.0, "R3 or R5", None),
    ],
)
def test_the_facts_of_a_pool_decide_which_saving_a_run_is_about(
    contamination: float | None, copies: float, passes: float, reading: str, ceiling: float | None
) -> None:
    run = _stub(contamination, copies, passes)
    assert run.reading == reading
    assert run.ceiling == (None if ceiling is None else pytest.approx(ceiling))


def test_an_audit_bills_everything_and_compares_with_plain_runs(
    eff: Eff, data: Path, place: Path
) -> None:
    common = ["--data", data, *SETS, *QUIET]
    assert eff("aql", "--ratio", "0.01", *common, "--out", "a")[0] == 0
    for steps in (4, 64):
        assert eff("baseline", "--steps", steps, *common, "--out", f"b{steps}")[0] == 0
    flags = ["--against", "b4", "--against", "b64", "--json"]
    document = _document(eff("aql", "audit", "a", *flags))
    report = report_of(place / "a")
    bill = {row["what"]: row for row in document["bill"]}
    parts = ("training", "choosing in the loop", "scoring before")
    for unit in ("flops", "seconds"):
        total = sum(bill[name][unit] for name in parts)
        paid = getattr(report, unit)
        assert total == pytest.approx(paid["train"] + paid["select"])
    found = document["multipliers"]["tokens"]
    losses = [report_of(place / name).held_out for name in ("b4", "b64", "a")]
    low, high, mine = (one.loss for one in losses if one is not None)
    assert found["bound"] is None or not high <= mine <= low
    assert 4 * 128 / report.tokens <= found["value"] <= 64 * 128 / report.tokens
    code, out, _ = eff("aql", "audit", "a", "--against", "b4")
    assert code == 0
    assert "a screen, no interval" in " ".join(out.split())
    assert document["reading"] in " ".join(out.split())


def test_an_audit_refuses_what_cannot_be_compared(eff: Eff, data: Path, place: Path) -> None:
    common = ["--data", data, *SETS, *QUIET]
    assert eff("aql", "--ratio", "0.01", *common, "--out", "a")[0] == 0
    assert eff("baseline", "--steps", "3", *common, "--out", "b")[0] == 0
    wide = ["--steps", "3", *common, "--set", "model.width=16"]
    assert eff("baseline", *wide, "--out", "w")[0] == 0
    for flags, message in (
        (["b"], "chose nothing"),
        (["nowhere"], "there is no run"),
        (["a", "--against", "a"], "chose what it read"),
        (["a", "--against", "w"], "other settings (model)"),
        (["a", "--against", "nowhere"], "there is no run"),
    ):
        code, out, err = eff("aql", "audit", *flags)
        assert (code, out) == (2, "")
        assert message in err


# Bad input


def _one_line(told: tuple[int, str, str], message: str) -> None:
    code, out, err = told
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out, len(errors)) == (2, "", 1), err
    assert message in errors[0]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ratio", "0"], "ratio: should be greater than 0"),
        (["--ratio", "1.5"], "ratio: should be less than or equal to 1"),
        (["--ratio", "nan"], "ratio: "),
        (["--epochs", "0"], "epochs: "),
        (["--overhead-max", "0"], "overhead_max: should be greater than 0"),
        (["--selector", "bset"], "no selector called 'bset'"),
        (["--uncertainty", "laplas"], "no uncertainty called 'laplas'"),
        (["--curriculum", "stairs"], "no curriculum called 'stairs'"),
        (["--policy", "greedy"], "no policy called 'greedy'"),
        (["--weights", "some"], "weights: "),
        (["--selector", "ratio"], "goes by trusted text, and there is none"),
        (["--selector", "excess"], "goes by trusted text, and there is none"),
        (["--selector", "random", "--uncertainty", "entropy"], "uncertainty has no effect"),
        (["--set", "pacing.start=0.2"], "pacing has no effect"),
        (["--selector", "loss", "--weights", "importance"], "weights have no effect"),
        (["--holdout", "nowhere.txt"], "there is no file nowhere.txt"),
        (["--set", "prep.pool=1M"], "the pool is to have 1,000,000 tokens, the text has 200,000"),
        (["--epochs", "1", "--tokens", "100k", "--ratio", "0.1"], "less than the budget of"),
        (["--ratio", "0.99"], "tokens that may be read, less than the 198,000 wanted"),
        (["--set", "text_share=0.5"], "text_share is for runs that read all there is"),
        (["--uncertainty", "mc-dropout"], "mc-dropout needs a model with dropout"),
    ],
)
def test_bad_input_gets_one_line_and_loses_nothing(
    eff: Eff, data: Path, place: Path, flags: list[str], message: str
) -> None:
    common = ["--data", data, *SETS, *QUIET, "--out", "r"]
    _one_line(eff("aql", *common, *flags, "--quiet"), message)
    assert not (place / "r" / "config.toml").exists()


def test_a_folder_is_free_for_better_settings(eff: Eff, data: Path, place: Path) -> None:
    common = ["--data", data, *SETS, *QUIET, "--out", "r", "--steps", "2"]
    _one_line(eff("aql", *common, "--ratio", "0.99", "--quiet"), "tokens that may be read")
    assert eff("aql", *common, "--ratio", "0.01")[0] == 0


def test_a_ratio_of_one_is_all_that_may_be_read(eff: Eff, data: Path, place: Path) -> None:
    """Which is less than the text: windows that are no whole ones, and too many copies."""
    flags = ["--data", data, *SETS, *QUIET, "--steps", "3", "--out", "r", "--json"]
    report = _document(eff("aql", *flags, "--ratio", "1"))
    assert report["unique_tokens"] == report["tokens"]


def test_trusted_text_that_the_run_is_judged_on_is_refused(
    eff: Eff, data: Path, place: Path
) -> None:
    corpus = Corpus.open(data)
    tokens = corpus.val.read([0], 40_000)[0]
    texts = np.split(tokens, np.flatnonzero(tokens == corpus.tokenizer.separator))[1:-1]
    rows = [json.dumps({"text": corpus.tokenizer.decode(text)}) for text in texts]
    (place / "leak.jsonl").write_text("\n".join(rows), "utf8")
    flags = ["--data", data, "--holdout", "leak.jsonl", *SETS, *QUIET]
    _one_line(eff("aql", *flags), "of the documents that the run is judged on")


def test_too_little_trusted_text_is_refused(eff: Eff, data: Path, place: Path) -> None:
    (place / "few.txt").write_text("a fox sees the river.\n" * 9)
    told = eff("aql", "prep", data, "--holdout", "few.txt", "--quiet")
    _one_line(told, "few.txt has 1 passages of text")


def test_gradients_are_compared_with_the_trusted_text_that_a_corpus_has(
    made: Path, data: Path, place: Path
) -> None:
    holdout = made / "good.jsonl"
    pool = place / "pool.jsonl"
    rows = [f"a fox number {n} sees {'the river and ' * (n % 7)}home" for n in range(3000)]
    pool.write_text("\n".join(json.dumps({"text": row}) for row in rows), "utf8")
    how = {"holdout": str(holdout), "tokenizer": "bytes", "out": place / "own"}
    settings = PrepareSettings(sources=(str(pool),), **how)
    prepare(settings)
    corpus = Corpus.open(place / "own")
    assert corpus.trusted is not None
    given = _trusted(_settings(place / "own"), corpus, 32)
    assert given.inputs[0].tolist() == corpus.trusted.read([0], 32)[0].tolist()
    pool_only = Corpus.open(data)
    without = _trusted(_settings(data), pool_only, 32)
    assert without.inputs[0].tolist() == pool_only.train.read([0], 32)[0].tolist()


def test_a_clean_pool_that_holds_its_trusted_text_is_found_clean(eff: Eff, place: Path) -> None:
    random = Random(0)
    words = ["".join(random.choices("abcdefghijklmnop", k=5)) for _ in range(3000)]
    rare = [1 / (rank + 1) for rank in range(len(words))]  # most pairs of them are met once
    texts = [" ".join(random.choices(words, rare, k=120)) for _ in range(1300)]
    rows = [json.dumps({"text": text}) for text in texts]
    parts = {"pool": rows[100:], "trusted": rows[100::3], "val": rows[:50], "test": rows[50:100]}
    for name, part in parts.items():
        (place / f"{name}.jsonl").write_text("\n".join(part), "utf8")
    how = {"holdout": "trusted.jsonl", "val": "val.jsonl", "test": "test.jsonl"}
    how |= {"tokenizer": "bpe:2048", "out": place / "own"}
    prepare(PrepareSettings(sources=("pool.jsonl",), **how))
    found = _document(eff("aql", "prep", place / "own", "--json"))
    assert found["contamination"] < 0.15
    assert found["exponent"] == 0


def test_one_cluster_is_enough(eff: Eff, data: Path, place: Path) -> None:
    flags = ["--data", data, "--set", "prep.clusters=1", "--ratio", "0.01", *SETS, *QUIET]
    report = _document(eff("aql", *flags, "--policy", "exp3", "--json"))
    assert report["selection"]["clusters"] == 1
    assert report["selection"]["cluster_entropy"] == 0


def test_a_flag_before_a_subcommand_is_refused(eff: Eff, data: Path) -> None:
    _one_line(eff("aql", "--ratio", "0.2", "prep", str(data)), "--ratio stands before prep")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "are not what was written"),
        ("gone", "are damaged"),
        ("manifest", "is damaged"),
        ("other", "are of another text"),
        ("empty", "are damaged"),
    ],
)
def test_damaged_scores_are_refused_and_can_be_made_again(
    eff: Eff, data: Path, place: Path, damage: str, message: str
) -> None:
    document = _document(eff("aql", "prep", data, "--set", "prep.seed=9", "--force", "--json"))
    folder = Path(document["scores"])
    table, manifest = folder / sidecar.SCORES, folder / sidecar.MANIFEST
    facts = json.loads(manifest.read_text())
    if damage == "cut":
        table.write_bytes(table.read_bytes()[:-7])
    elif damage == "gone":
        table.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:50])
    elif damage == "other":
        manifest.write_text(json.dumps({**facts, "corpus": "0" * 64}))
    else:
        manifest.write_text("{}")
    flags = ["--data", data, "--set", "prep.seed=9", "--ratio", "0.01", *SETS, *QUIET, "--quiet"]
    _one_line(eff("aql", *flags), message)
    again = _document(eff("aql", "prep", data, "--set", "prep.seed=9", "--force", "--json"))
    assert (again["status"], again["tokens"]) == ("prepared", document["tokens"])
    assert _document(eff("aql", "prep", data, "--set", "prep.seed=9", "--json"))["tokens"]


def test_scores_that_were_half_written_are_made_again(eff: Eff, data: Path) -> None:
    document = _document(eff("aql", "prep", data, "--set", "prep.seed=10", "--json"))
    (Path(document["scores"]) / sidecar.MANIFEST).unlink()
    again = _document(eff("aql", "prep", data, "--set", "prep.seed=10", "--json"))
    assert again["status"] == "prepared"


def test_a_preparation_can_be_stopped(data: Path) -> None:
    settings = _settings(data, "prep.seed=11", ratio=0.01)
    with pytest.raises(EffError, match="the scores were not finished"):
        aql.run(settings, stop=lambda: signal.SIGINT)


# Scores that are no numbers


def _made_up(loss: list[float]) -> Scores:
    size = len(loss)
    columns = {name: np.ones(size, dtype=kind) for name, kind in COLUMNS.items()}
    columns |= {"cluster": np.arange(size, dtype=np.int16) % 2, "overlaps": np.zeros(size, bool)}
    columns |= {"loss": np.array(loss, np.float32), "copy": np.zeros(size, np.int32)}
    return Scores(columns, {"holdout": {"mode": "none"}})


@pytest.mark.parametrize("bad", [0, 1, 5, 6])
def test_scores_that_are_no_numbers_are_counted_and_never_chosen(bad: int) -> None:
    scores = _made_up([float("nan")] * bad + [1.0] * (6 - bad))
    assert scores.eligible(1).tolist() == [False] * bad + [True] * (6 - bad)
    ids = np.arange(6)
    arguments = (scores["loss"].astype(np.float64), ids, scores["length"], scores["cluster"])
    bounds = quotas_of(scores, np.ones(6, dtype=bool), 1.0, ChoiceSettings())
    for quotas in (None, bounds):
        for noise in (None, (0, 0)):
            choice = choose(*arguments, quotas, 6, noise)
            assert sorted(choice.ids.tolist()) == list(range(bad, 6))
            assert choice.quarantined == bad


# The same again


MANY = ["ratio=0.02", "curriculum=stages", "policy=exp3", "weights=importance"]
STEPS = 40


def _many(made: Path, out: Path, **flags: Any) -> AqlSettings:
    """Rounds, stages, two passes, arms, weights and a listener: all that could go wrong."""
    choice = [*MANY, f"prep.holdout={made / 'good.jsonl'}", "overhead_max=0.5"]
    flags = {"steps": STEPS, "eval_every": 3, "save_every": 10, "out": out, **flags}
    return _settings(made / "noisy", *choice, "batch.micro=3", "evaluation.floors=false", **flags)


class _Ids:
    """Writes down which passages every step reads."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        from effcli.engine.selection.source import Selected

        self.seen: dict[int, list[int]] = {}
        draw = Selected.draw

        def heard(source: Selected, progress: float) -> Any:
            batch = draw(source, progress)
            self.seen[source._meter.steps] = batch.ids.tolist()
            return batch

        patch.setattr(Selected, "draw", heard)


@pytest.fixture(scope="module")
def whole(
    made: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[int, list[int]]]:
    """A run without interruption: its end, and what it read."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        ids = _Ids(patch)
        aql.run(_many(made, folder))
    return final_state(folder), ids.seen


def test_the_run_that_is_cut_has_all_that_could_go_wrong(whole: Any) -> None:
    state = whole[0]["batches"]
    assert state["counts"]["epoch"] == 1
    assert state["counts"]["number"] > 5
    rows = [row["facts"] for row in whole[0]["records"] if row["kind"] == "selection"]
    assert len({row["stage"] for row in rows if "stage" in row}) > 1
    assert state["listener"]["sums"].abs().sum() > 0


@pytest.mark.parametrize("cuts", [(1,), (19, 20, 21), (5, 27, 39)])
def test_a_run_that_is_stopped_goes_on_exactly(
    made: Path, whole: Any, place: Path, monkeypatch: pytest.MonkeyPatch, cuts: tuple[int, ...]
) -> None:
    ids = _Ids(monkeypatch)
    for cut in cuts:
        with pytest.raises(Stopped):
            aql.run(_many(made, place / "run", resume=cut != cuts[0]), *stopping_after(cut))
    aql.run(_many(made, place / "run", resume=True))
    assert ids.seen == whole[1]
    assert not differences(final_state(place / "run"), whole[0])


def test_a_run_that_is_killed_goes_on_exactly_from_its_last_checkpoint(
    made: Path, whole: Any, place: Path
) -> None:
    def watch(record: Record) -> None:
        if isinstance(record, Step) and record.index == 25:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        aql.run(_many(made, place / "run"), watch)
    newest, _ = checkpoint.newest(place / "run" / "checkpoints")
    assert newest is not None
    assert newest.name == "step-000000020"
    aql.run(_many(made, place / "run", resume=True))
    assert not differences(final_state(place / "run"), whole[0])


def test_scores_that_changed_since_are_refused_when_a_run_goes_on(
    eff: Eff, data: Path, place: Path
) -> None:
    settings = _settings(data, "prep.seed=12", ratio=0.02, out=place / "run")
    with pytest.raises(Stopped):
        aql.run(settings, *stopping_after(1))
    where = _document(eff("aql", "prep", data, "--set", "prep.seed=12", "--json"))["scores"]
    table = Path(where) / sidecar.SCORES
    table.write_bytes(table.read_bytes()[::-1])
    with pytest.raises(InputError, match="not what was written"):
        aql.run(settings.model_copy(update={"resume": True}))
    eff("aql", "prep", data, "--set", "prep.seed=12", "--force")
    assert aql.run(settings.model_copy(update={"resume": True})).status == "complete"


@pytest.mark.parametrize("how", ["of shards", "of a stream"])
def test_two_processes_choose_the_same_passages_as_one(
    made: Path, data: Path, place: Path, how: str
) -> None:
    asked = [*MANY, f"streaming={str(how == 'of a stream').lower()}"]
    flags = [part for assignment in [*TINY, *asked] for part in ("--set", assignment)]
    common = ["--data", str(data), "--steps", "16", "--eval-every", "4", "--save-every", "0"]
    trusted = ["--set", f"prep.holdout={made / 'good.jsonl'}"]
    two = ranks(place, "aql", *flags, *common, *trusted, "--out", place / "two").communicate()
    assert [end.code for end in two] == [0, 0], two
    shape = {"steps": 16, "eval_every": 4, "out": place / "one"}
    aql.run(_settings(data, *asked, *trusted[1:], **shape))
    states = [final_state(place / name)["batches"] for name in ("one", "two")]
    for name in ("now", "counts", "picked"):  # a stream keeps no list of what it picked
        assert not differences(*(state.get(name) for state in states))
    one, other = (report_of(place / name) for name in ("one", "two"))
    assert other.flops["select"] == one.flops["select"]
    assert one.held_out is not None
    assert other.held_out is not None
    assert other.held_out.loss == pytest.approx(one.held_out.loss, abs=1e-3)


def test_a_budget_and_epochs_say_how_much_of_the_pool_is_read(
    corpus_folder: Path, place: Path
) -> None:
    small = [*TINY, "evaluation.floors=false", "page=false", "selector=random"]
    once = {"data": str(corpus_folder), "eval_every": 0, "save_every": 0, "tokens": 5120}
    for epochs, unique in ((None, 5120), (1, 5120), (2, 2560), (5, 1024)):
        flags = {**once, "epochs": epochs, "ratio": 0.2, "out": place / f"r{epochs}"}
        report = aql.run(
            resolve(AqlSettings, {k: v for k, v in flags.items() if v}, small).settings
        )
        assert report.tokens == 5120
        assert report.unique_tokens == unique
