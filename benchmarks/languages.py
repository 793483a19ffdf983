"""What one phase model of two languages is worth, beside one for each, and what pairs align.

    python benchmarks/languages.py --first train.en --second train.de --names en,de
    python benchmarks/languages.py --first train.en --cipher

Both files have a line for each text, and lines of the same number mean the same. With --cipher
the second language is the first in other letters. Every model reads each of its languages as
often; runs that are finished are not repeated.
"""

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from effcli.engine.data.prepare import prepare
from effcli.engine.runs.files import write_json
from effcli.engine.runs.report import report_of
from effcli.engine.runs.rundir import status
from effcli.methods import qllm
from effcli.settings.layers import resolve
from effcli.settings.prepare import PrepareSettings
from effcli.settings.qllm import QllmSettings

HELD_OUT, PAIRS = 1000, 5000  # lines: the last are held out, of the first some are pairs
BARE = ["model.pair_rows=0", "model.value_tables=false", "evaluation.texts=0", "page=false"]
BARE += ["evaluation.floors=false", "evaluation.samples=0", "eval_every=0", "device.threads=1"]
ARMS: dict[str, tuple[int, dict[str, str]]] = {
    "first": (1, {}),
    "second": (1, {}),
    "both": (2, {"align_weight": "0"}),
    "aligned": (2, {}),
    "aligned, concepts": (2, {"model.concepts": "256"}),
    "semantic": (2, {"align_weight": "0", "phase_init": "semantic"}),
}
Rows = list[tuple[str, str]]


def ciphered(text: str) -> str:
    """The same in other letters: whatever is no letter stays."""
    lower, upper = 0x430, 0x410  # Cyrillic
    table = {ord("a") + n: lower + n for n in range(26)}
    return text.translate({**table, **{ord("A") + n: upper + n for n in range(26)}})


def read(first: Path, second: Path | None) -> Rows:
    """Texts and what they are in the other language; each text once."""
    one = first.read_text("utf8").splitlines()
    other = (
        [ciphered(text) for text in one]
        if second is None
        else second.read_text("utf8").splitlines()
    )
    rows = {
        a.strip(): b.strip() for a, b in zip(one, other, strict=True) if a.strip() and b.strip()
    }
    return [row for row in rows.items() if "\t" not in "".join(row)]


def corpora(rows: Rows, names: list[str], work: Path) -> dict[str, Path]:
    """Both languages, and each alone by the same tokenizer."""
    found: dict[str, Path] = {}
    for arm, chosen in (("both", [0, 1]), ("first", [0]), ("second", [1])):
        found[arm] = work / arm
        if found[arm].exists():
            continue
        for split, part in (("train", rows[:-HELD_OUT]), ("val", rows[-HELD_OUT:])):
            lines = [{"text": row[n], "lang": names[n]} for row in part for n in chosen]
            random.Random(0).shuffle(lines)
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (work / f"{arm}-{split}.jsonl").write_text(text)
        tokenizer = "bpe:4096" if arm == "both" else f"like:{found['both']}"
        how: dict[str, Any] = {"tokenizer": tokenizer, "label_column": "lang", "out": found[arm]}
        sources, val = (str(work / f"{arm}-train.jsonl"),), work / f"{arm}-val.jsonl"
        prepare(PrepareSettings(sources=sources, val=val, **how))
    return found


def run(arm: str, seed: int, tokens: int, names: list[str], work: Path) -> dict[str, Any]:
    """The report of a run, which is made if there is none yet."""
    languages, sets = ARMS[arm]
    folder = work / "runs" / f"{arm.replace(', ', '-')}-{seed}"
    own = names if languages == 2 else [names[["first", "second"].index(arm)]]
    flags: dict[str, Any] = {
        "data": str(work / (arm if languages == 1 else "both")),
        "languages": ",".join(own),
        "tokens": languages * tokens,
        "seed": seed,
        "out": folder,
        "resume": folder.exists(),
    }
    if languages == 2:
        flags["align"] = str(work / "pairs.tsv")
    if not folder.exists() or status(folder) != "complete":
        parts = [f"{name}={value}" for name, value in sets.items()]
        qllm.run(resolve(QllmSettings, flags, [*BARE, *parts]).settings)
    report = report_of(folder).as_json()
    return {"languages": report["languages"], "flops": sum(report["flops"].values())}


def summary(found: dict[str, list[dict[str, Any]]], names: list[str]) -> Table:
    """Means over seeds."""
    table = Table("model", *(f"loss of {name}" for name in names), "finds its own", "FLOPs")
    for arm, runs in found.items():
        cells = [arm]
        for name in names:
            losses = [
                one["languages"]["held_out"][name]["loss"]
                for one in runs
                if name in one["languages"]["held_out"]
            ]
            spread = f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
            cells.append(f"{statistics.mean(losses):.3f}{spread}" if losses else "")
        shares = [
            statistics.mean(one["languages"]["retrieval"].values())
            for one in runs
            if one["languages"]["retrieval"]
        ]
        cells.append(", ".join(f"{share:.1%}" for share in shares))
        cells.append(f"{statistics.mean(one['flops'] for one in runs):.3g}")
        table.add_row(*cells)
    return table


def main() -> None:
    """Read what is asked for, run what is missing, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=Path, required=True, help="a line for each text")
    parser.add_argument("--second", type=Path, help="the same lines in another language")
    parser.add_argument("--cipher", action="store_true", help="instead, other letters")
    parser.add_argument("--names", default="first,second", help="of the languages")
    parser.add_argument("--tokens", type=int, default=400_000, help="of each language")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("languages"), help="folder of the runs")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    asked = parser.parse_args()
    if asked.cipher == (asked.second is not None):
        parser.error("give --second or --cipher")
    names = asked.names.split(",")
    rows = read(asked.first, asked.second)
    asked.work.mkdir(parents=True, exist_ok=True)
    pairs = ["\t".join(names), *("\t".join(row) for row in rows[:PAIRS])]
    (asked.work / "pairs.tsv").write_text("\n".join(pairs) + "\n")
    corpora(rows, names, asked.work)
    work = [(seed, arm) for seed in range(asked.seeds) for arm in ARMS]
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for seed, arm in track(work, "training"):
        found[arm].append(run(arm, seed, asked.tokens, names, asked.work))
    Console().print(summary(found, names))
    if asked.out is not None:
        facts = {"tokens": asked.tokens, "names": names, "is_cipher": asked.cipher}
        write_json(asked.out, {"schema": 1, **facts, "arms": found})


if __name__ == "__main__":
    main()
