"""Put the kept figures of the benchmarks between their marks in README and docs/performance.md.

python benchmarks/tables.py                     # of what is kept in docs/data
python benchmarks/tables.py FOLDER/bench.json   # of `eff bench speed`, which is kept there first
"""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs" / "data"
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
NAMES = {
    "reference": "plain script",
    "modern-adamw": "modern, AdamW",
    "textbook-float32": "textbook, float32",
}


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def speed(kept: dict[str, Any]) -> str:
    """Every variant at every shape: times the plain script, and share of the peak."""
    variants = list(dict.fromkeys(name for shape in kept.values() for name in shape["rows"]))
    rows = []
    for variant in variants:
        cells = [NAMES.get(variant, variant)]
        for shape in kept.values():
            row = shape["rows"].get(variant)
            cells.append(
                f"{row['times_reference']:.2f} × ({row['utilization']:.0%})" if row else ""
            )
        rows.append(cells)
    return markdown(["times the plain script (share of the peak)", *kept], rows)


def overheads(kept: dict[str, Any]) -> str:
    """What surrounds the steps."""
    rows = [
        [
            preset,
            f"{row['input']:.2%}",
            f"{row['records']:.2%}",
            f"{row['save_in_steps']:.2f} steps",
            f"{row['first_step_seconds']:.1f} s",
        ]
        for preset, row in kept.items()
    ]
    return markdown(["", "input", "records and progress", "a save", "first step after"], rows)


def prepare(kept: dict[str, Any]) -> str:
    """Rates and their ratios."""
    seconds = kept["seconds"]
    rows, base = [], ""
    for way, taken in seconds.items():
        base = base if way.startswith("eff") else way
        ratio = f"{seconds[base] / taken:.2f} × {base}" if way != base else ""
        rows.append([way, f"{kept['bytes'] / 1e6 / taken:,.0f}", ratio])
    return markdown(["", "MB/s", "ratio"], rows)


def generation(kept: dict[str, Any]) -> str:
    """Rates over a whole text, and over its end."""
    rates = kept["rates"]
    rows = []
    for way, (whole, end) in rates.items():
        ratios = (
            f"{whole / rates[base][0]:.2f} ({end / rates[base][1]:.2f})"
            for base in ("uncached", "minimal")
        )
        rows.append([way, f"{whole:,.0f} ({end:,.0f})", *ratios])
    title = f"{kept['preset']}, 512 tokens (the last 64 alone)"
    return markdown([title, "tokens/s", "× uncached", "× minimal"], rows)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "speed": speed,
    "overheads": overheads,
    "prepare": prepare,
    "generation": generation,
}


def keep(bench: Path) -> None:
    """Keep what `eff bench speed` measured."""
    document = json.loads(bench.read_bytes())
    for name, found in (("speed", document["shapes"]), ("prepare", document["prepare"])):
        if found:
            (DATA / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", "utf8")


def main(*benches: str) -> None:
    """Rewrite both pages."""
    for bench in benches:
        keep(Path(bench))
    for page in PAGES:
        text = page.read_text("utf8")
        for name, table in TABLES.items():
            begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
            data = DATA / f"{name}.json"
            if begin in text and data.exists():
                before, rest = text.split(begin)
                made = table(json.loads(data.read_bytes()))
                text = f"{before}{begin}\n{made}\n{end}{rest.split(end)[1]}"
        page.write_text(text, "utf8")


if __name__ == "__main__":
    main(*sys.argv[1:])
