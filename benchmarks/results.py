"""Put the tables of kept benches where they are shown.

python benchmarks/results.py            # README a short one, docs/*.md some, docs/results all
python benchmarks/results.py --check    # only looks whether they are there
"""

import json
import sys
from pathlib import Path
from typing import Any

from effcli.engine.bench.export import markdown, short_markdown
from effcli.engine.bench.reading import headline
from effcli.engine.bench.table import escaped
from effcli.engine.bench.tables import losses, summary, tuning

ROOT = Path(__file__).parents[1]


def marks(name: str) -> tuple[str, str]:
    """What stands before and after the tables of a kept bench."""
    return f"<!-- bench:{name}:begin -->", f"<!-- bench:{name}:end -->"


def between(text: str, name: str, made: str) -> str:
    """A page with the tables of a kept bench, if it has the marks for them."""
    begin, end = marks(name)
    if begin not in text:
        return text
    before, rest = text.split(begin, 1)
    return f"{before}{begin}\n{made}\n{end}{rest.split(end, 1)[1]}"


def some(document: dict[str, Any]) -> str:
    """What a page of docs shows: all references, every budget, what tuning took."""
    tables = [make(document) for make in (summary, losses, tuning)]
    return "\n\n".join([escaped(headline(document)), *(table.as_markdown() for table in tables)])


def pages(root: Path = ROOT) -> dict[Path, str]:
    """README and docs as they should be, and a page of its own for every result."""
    results = sorted(root.glob("docs/results/*.json"))
    documents = [json.loads(path.read_bytes()) for path in results]
    made = {
        path.with_suffix(".md"): markdown(document) + "\n"
        for path, document in zip(results, documents, strict=True)
    }
    others = [*root.glob("docs/*.md"), *root.glob("docs/methods/*.md")]
    for page in (root / "README.md", *sorted(others)):
        text = page.read_text("utf8")
        for path, document in zip(results, documents, strict=True):
            shown = short_markdown if page.name == "README.md" else some
            text = between(text, path.stem, shown(document))
        made[page] = text
    return made


def main(*arguments: str, root: Path = ROOT) -> int:
    """Rewrite the pages, or say which of them are not what the results make them."""
    stale = {
        page: text
        for page, text in pages(root).items()
        if not page.exists() or page.read_text("utf8") != text
    }
    if "--check" in arguments:
        for page in stale:
            print(f"{page.relative_to(root)} is not what docs/results makes it: make results")
        return 1 if stale else 0
    for page, text in stale.items():
        page.write_text(text, "utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
