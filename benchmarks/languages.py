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
from effcli.engine.device import Device
from effcli.engine.models.phase import Phase
from effcli.engine.phase.pairs import Pairs
from effcli.engine.phase.speaking import retrieval
from effcli.engine.runs.files import write_json
from effcli.engine.runs.report import report_of
from effcli.engine.runs.rundir import status
from effcli.engine.runs.trained import open_trained
from effcli.methods import qllm
from effcli.methods.qllm_inspect import CPU
from effcli.settings.layers import resolve
from effcli.settings.prepare import PrepareSettings
from effcli.settings.qllm import QllmSettings

HELD_OUT, PAIRS = 1000, 5000  # lines: the last are held out, of the first some are pairs
BARE = ["model.pair_rows=0", "model.value_tables=false", "evaluation.texts=0", "page=false"]
BARE += ["evaluation.floors=false", "evaluation.samples=0", "eval_every=0", "device.threads=1"]
FEW = 222  # of them, a tenth of which is set aside
ARMS: dict[str, tuple[int, dict[str, str]]] = {
    "first": (0, {}),
    "second": (0, {}),
    "both": (PAIRS, {"align_weight": "0"}),
    "aligned": (PAIRS, {}),
    "aligned, few pairs": (FEW, {}),
    "aligned, concepts": (PAIRS, {"model.concepts": "256"}),
    "semantic": (PAIRS, {"align_weight": "0", "phase_init": "semantic"}),
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
    pairs, sets = ARMS[arm]
    folder = work / "runs" / arm.replace(",", "").replace(" ", "-") / str(seed)
    own = names if pairs else [names[["first", "second"].index(arm)]]
    flags: dict[str, Any] = {
        "data": str(work / ("both" if pairs else arm)),
        "languages": ",".join(own),
        "tokens": len(own) * tokens,
        "seed": seed,
        "out": folder,
        "resume": folder.exists(),
    }
    if pairs:
        flags["align"] = str(work / f"pairs-{pairs}.tsv")
    if not folder.exists() or status(folder) != "complete":
        parts = [f"{name}={value}" for name, value in sets.items()]
        qllm.run(resolve(QllmSettings, flags, [*BARE, *parts]).settings)
    report = report_of(folder)
    assert report.languages is not None
    found = {"held_out": {name: text.loss for name, text in report.languages.held_out.items()}}
    if pairs:
        found["finds"] = finds(folder, work / f"pairs-{PAIRS}.tsv")
    return {**found, "flops": sum(report.flops.values())}


def finds(folder: Path, pairs: Path) -> dict[str, float]:
    """Which share of the same texts, set aside by every arm, finds its own."""
    model, tokenizer = open_trained(folder, Device(CPU))
    assert isinstance(model, Phase)
    return retrieval(model, Pairs.read(pairs, tokenizer))


def spread(values: list[float], form: str) -> str:
    """Their mean, and the deviation of one from it."""
    if not values:
        return ""
    aside = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{aside}"


def summary(found: dict[str, list[dict[str, Any]]], names: list[str]) -> Table:
    """Means over seeds."""
    table = Table("model", *(f"loss of {name}" for name in names), "finds its own", "FLOPs")
    for arm, runs in found.items():
        cells = [arm]
        for name in names:
            losses = [one["held_out"][name] for one in runs if name in one["held_out"]]
            cells.append(spread(losses, ".3f"))
        shares = [statistics.mean(one["finds"].values()) for one in runs if "finds" in one]
        cells.append(spread(shares, ".1%"))
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
    for count in (PAIRS, FEW):
        lines = ["\t".join(row) for row in ((*names,), *rows[:count])]
        (asked.work / f"pairs-{count}.tsv").write_text("\n".join(lines) + "\n")
    corpora(rows, names, asked.work)
    work = [(seed, arm) for seed in range(asked.seeds) for arm in ARMS]
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for seed, arm in track(work, "training"):
        found[arm].append(run(arm, seed, asked.tokens, names, asked.work))
    Console().print(summary(found, names))
    if asked.out is not None:
        facts = {"tokens": asked.tokens, "names": names, "is_cipher": asked.cipher, "pairs": PAIRS}
        write_json(asked.out, {"schema": 1, **facts, "arms": found})


if __name__ == "__main__":
    main()
