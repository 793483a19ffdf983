"""What is shown of a bench: complete, honest about screens and bounds, harmless."""

import copy
import csv
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_document import HOSTILE, bench_document, hostile
from rich.console import Console
from scipy import stats

from effcli import units
from effcli.engine.bench import tables
from effcli.engine.bench.export import csv_rows, markdown, short_markdown, write_csv
from effcli.engine.bench.page import write_bench
from effcli.engine.bench.reading import headline, is_gain
from effcli.errors import InputError
from effcli.safe import safe
from effcli.ui.bench import bench_tables

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))  # whose reliability.py is not the folder of that name
import results  # noqa: E402

METHODS = ("tuned", "modern", "aql", "aql-without-a-curriculum-and-with-a-long-name")
DOCUMENTS: dict[str, dict[str, Any]] = {
    "complete": bench_document(),
    "methods": bench_document(METHODS, references=("tuned", "modern"), bound=">"),
    "failures": bench_document(METHODS, has_failures=True, is_partial=True),
    "screen": bench_document(seeds=3, is_partial=True),
    "one seed": bench_document(seeds=1, bound="<"),
    "one arm": bench_document(("modern",), is_tuned=False),
    "nothing": bench_document(seeds=0, is_tuned=False),
}


def _terminal(document: dict[str, Any], width: int = 100) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    for table in bench_tables(document):
        console.print(table)
    return stream.getvalue()


def _shown(document: dict[str, Any], place: Path) -> Iterator[str]:
    write_bench(document, place / "bench.html")
    yield (place / "bench.html").read_text("utf8")
    yield markdown(document)
    yield short_markdown(document)
    yield _terminal(document)


@pytest.mark.usefixtures("draws")
@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_document_is_shown_in_every_form(name: str, place: Path) -> None:
    page, *others = _shown(DOCUMENTS[name], place)
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert ("Screen: " in page) == (len(DOCUMENTS[name]["protocol"]["seeds"]) < 5)
    assert all(others)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_arm_is_in_every_table(name: str) -> None:
    document = DOCUMENTS[name]
    arms = {arm["name"] for arm in document["arms"]}
    for make in tables.EVERY:
        if make not in (tables.failed, tables.choices, tables.students, tables.hybrids):
            assert {row[0] for row in make(document).rows} - {""} == arms
    for table in bench_tables(document):
        if "came to nothing" not in str(table.title):
            assert {str(cell) for cell in table.columns[0].cells} - {""} == arms


def test_what_was_chosen_is_told_of_those_that_choose() -> None:
    document = copy.deepcopy(DOCUMENTS["complete"])
    assert not tables.choices(document).rows
    first, second = (arm["name"] for arm in document["arms"][:2])
    figures = {"precision": 0.5, "contamination": 0.81, "overhead_in_loop": 0.004}
    figures |= {"overhead_all_in": 0.02, "flops_all_in": 0.001}
    for cell in document["cells"]:
        if cell["arm"] == first:
            cell["selection"] = figures
        if cell["arm"] == second:
            cell["selection"] = {**figures, "precision": None}
    rows = tables.choices(document).rows
    assert {row[0] for row in rows} == {first, second}
    assert ["50.0%", "81.0%", "0.4%", "2.0%", "0.1%"] in [row[2:] for row in rows]
    assert "-" in [row[2] for row in rows if row[0] == second]


def test_students_and_hybrids_are_told_of() -> None:
    document = copy.deepcopy(DOCUMENTS["complete"])
    assert not tables.students(document).rows
    assert not tables.hybrids(document).rows
    first, second = (arm["name"] for arm in document["arms"][:2])
    made = {"bits": 1.58, "is_trained_in_low_bits": False, "file_bytes": 2**20}
    made |= {"linear_bits_per_weight": 1.625, "ratio_linear": 19.7, "ratio_total": 5.25}
    made |= {"weight_error": 0.2113, "roundtrip_gap": 0.0001}
    told = {"overhead": 0.14, "multiplier_mean": 1.15, "adopted": 2}
    for cell in document["cells"]:
        if cell["arm"] == first:
            cell["student"] = made
        if cell["arm"] == second:
            cell["hybrid"] = told
    shown = ["1.58 rounded", "1.05 MB", "1.62", "19.70", "5.25", "0.2113", "0.0001"]
    assert tables.students(document).rows == [[first, *shown]]
    assert tables.hybrids(document).rows == [[second, "1.15", "2", "-", "-", "0.14"]]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tables_are_whole(name: str) -> None:
    for make in tables.EVERY:
        table = make(DOCUMENTS[name])
        assert {len(row) for row in table.rows} <= {len(table.head)}


def test_failed_cells_are_named_with_their_reason(place: Path) -> None:
    for shown in (*_shown(DOCUMENTS["failures"], place),):
        if shown != short_markdown(DOCUMENTS["failures"]):
            assert "diverged: loss nan after step 12" in shown
            assert "failed: loss nan after step 12" in shown


@pytest.mark.parametrize("sign", [">", "<"])
def test_bounds_are_shown_as_bounds(sign: str, place: Path) -> None:
    document = bench_document(METHODS, bound=sign)
    bound = next(r for r in document["multipliers"] if r["bound"] and r["cost"] == "flops")
    page, full, short, terminal = _shown(document, place)
    shown = f"{bound['mean']:.2f}"
    assert {"<": "&lt;", ">": "&gt;"}[sign] + shown in page
    assert f"{sign}{shown}".replace("<", "&lt;") in full
    assert f"{sign}{shown}".replace("<", "&lt;") in short
    assert f"{sign}{shown}" in terminal


@pytest.mark.parametrize("seeds", [1, 2, 3, 4])
def test_a_screen_has_no_verdict(seeds: int, place: Path) -> None:
    document = bench_document(seeds=seeds)
    for shown in _shown(document, place):
        assert "screen" in shown.lower()
        assert not re.search(r"\b(better|worse|equivalent)\b", shown)


def test_the_verdict_is_one_sentence() -> None:
    rows = [r for r in DOCUMENTS["complete"]["multipliers"] if r["cost"] == "flops"]
    row = next(r for r in rows if (r["arm"], r["reference"]) == ("modern", "tuned"))
    interval = f"[{row['low']:.3g}, {row['high']:.3g}]"
    expected = f"modern reaches tuned's loss with {row['mean']:.3g}× fewer FLOPs {interval}, n=5."
    assert headline(DOCUMENTS["complete"]) == expected
    losing = bench_document(("modern", "aql"), references=("modern",))
    for row in losing["multipliers"]:
        row |= {"mean": 0.5, "low": 0.4, "high": 0.8, "verdict": "worse"}
    expected = "No gain: aql reaches modern's loss with 2× more FLOPs [1.25, 2.5], n=5, worse."
    assert headline(losing) == expected
    assert is_gain({**row, "verdict": "better", "bound": ">"})
    assert not is_gain({**row, "verdict": "beyond", "bound": ">"})  # nothing is proven by it
    losing["protocol"]["subject"] = "modern"
    assert headline(losing).startswith("Nothing was compared")
    losing["protocol"]["subject"] = "aql"
    assert headline(losing) == expected
    beside_all = {**DOCUMENTS["complete"]}
    beside_all["protocol"] = {**beside_all["protocol"], "subject": "modern"}
    assert headline(beside_all).count("modern reaches") == 2
    for bound, mean, said in (
        (
            ">",
            0.8,
            "No gain shown: aql reaches a loss beyond modern's measured range, with at most "
            "1.25× more FLOPs, n=5.",
        ),
        (
            "<",
            0.4,
            "No gain: aql does not reach any loss that modern was measured at, with more "
            "than 2.5× more FLOPs, n=5.",
        ),
    ):
        for row in losing["multipliers"]:
            row |= {"mean": mean, "low": None, "high": None, "verdict": "beyond", "bound": bound}
        assert headline(losing) == said
    assert headline(DOCUMENTS["one arm"]).startswith("Nothing was compared")
    assert headline(DOCUMENTS["screen"]).endswith("Partial: stopped before its last cell.")


@pytest.mark.usefixtures("draws")
def test_foreign_text_stays_text(place: Path) -> None:
    document = hostile(bench_document(METHODS, has_failures=True))
    page, full, short, terminal = _shown(document, place)
    for shown in (page, full, short, terminal):
        assert safe(shown) == shown
    for shown in (page, full.rsplit("\n", 1)[0], short):  # the last line is code
        assert "<script" not in shown
    assert "&lt;script&gt;alert(1)" in page
    assert "](" not in full.rsplit("\n", 1)[0]
    rows = [line for line in full.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    heads = [widths[n] for n, row in enumerate(rows) if row.startswith("| arm ")]
    assert set(widths) == set(heads)


def test_a_spreadsheet_gets_every_cell_and_no_formula(place: Path) -> None:
    document = hostile(bench_document(METHODS, has_failures=True))
    document["cells"][0]["arm"] = "=HYPERLINK(1)"
    rows = csv_rows(document)
    assert len(rows) == len(document["cells"])
    assert len({tuple(row) for row in rows}) == 1
    write_csv(document, place / "cells.csv")
    read = list(csv.DictReader(io.StringIO((place / "cells.csv").read_text("utf8"))))
    assert read[0]["arm"] == "'=HYPERLINK(1)"
    for row, cell in zip(read, document["cells"], strict=True):
        assert row["id"] == cell["id"]
        assert row["loss"] == ("" if cell["loss"] is None else str(cell["loss"]))
        if cell["status"] == "complete":
            assert float(row["flops.train"]) == cell["accounts"]["flops"]["train"]
            assert [float(row[f"tail.{n}"]) for n in range(1, 11)] == cell["tail"]
    write_csv({**document, "cells": []}, place / "none.csv")
    assert (place / "none.csv").read_text().startswith("id,arm,seed")


def test_a_page_is_written_whole_or_not_at_all(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = place / "bench.html"
    write_bench(DOCUMENTS["complete"], page)
    before = page.read_bytes()
    assert before.rstrip().endswith(b"</html>")
    for broken in ({}, {**DOCUMENTS["complete"], "cells": [{}]}):
        with pytest.raises(InputError, match="no document of a bench"):
            write_bench(broken, page)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("effcli.engine.runs.files.os.fsync", full)
    with pytest.raises(OSError, match="space"):
        write_bench(DOCUMENTS["screen"], page)
    assert page.read_bytes() == before
    assert [path.name for path in place.iterdir()] == ["bench.html"]


def test_energy_is_labeled_with_its_source(place: Path) -> None:
    page, full, _, _ = _shown(DOCUMENTS["complete"], place)
    assert "joules (estimated:tdp)" in page
    assert "joules (estimated:tdp)" in full


@pytest.mark.parametrize("n", [2, 5, 31, 40])
def test_a_mean_has_its_t_interval(n: int) -> None:
    values = [4.0 + 0.3 * (k % 3) for k in range(n)]
    mean, half = re.findall(r"[\d.]+", units.estimate(values))
    low, high = stats.t.interval(0.95, n - 1, stats.tmean(values), stats.sem(values))
    assert float(mean) == pytest.approx((low + high) / 2, abs=1e-3)
    assert float(half) == pytest.approx((high - low) / 2, abs=2e-3)


def test_pages_get_the_tables_of_kept_results(place: Path) -> None:
    begin, end = results.marks("baselines-cpu")
    (place / "docs" / "results").mkdir(parents=True)
    (place / "README.md").write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    (place / "docs" / "benchmarks.md").write_text(f"{begin}\n{end}\n")
    assert results.main("--check", root=place) == 0  # no results yet: nothing to be stale
    kept = place / "docs" / "results" / "baselines-cpu.json"
    kept.write_text(json.dumps(DOCUMENTS["complete"]))
    assert results.main("--check", root=place) == 1
    assert results.main(root=place) == 0
    made = (place / "README.md").read_text()
    assert made == f"before\n{begin}\n{short_markdown(DOCUMENTS['complete'])}\n{end}\nafter\n"
    assert results.some(DOCUMENTS["complete"]) in (place / "docs" / "benchmarks.md").read_text()
    assert kept.with_suffix(".md").read_text() == markdown(DOCUMENTS["complete"]) + "\n"
    assert results.main("--check", root=place) == 0


def test_the_pages_of_this_repository_are_what_its_results_make_them() -> None:
    assert results.main("--check") == 0
    kept = {path.stem for path in ROOT.glob("docs/results/*.json")}
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        marked = set(re.findall(r"<!-- bench:(.*?):begin -->", page.read_text("utf8")))
        assert marked <= kept, page


def test_hostile_text_is_hostile() -> None:
    assert safe(HOSTILE) != HOSTILE
