"""`inspect.html`: one file, no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from effcli.engine.phase.inspecting import Map, Portrait
from effcli.engine.phase.plots import half_lives, heat, portrait, token_name, turns
from effcli.engine.runs.files import write_text
from effcli.engine.runs.page import of_phases, render
from effcli.engine.runs.plots import Series


def write_inspection(
    page: Path,
    document: dict[str, Any],
    seen: Portrait,
    maps: Sequence[Map],
    lives: Mapping[str, Series],
) -> None:
    """Draw what was found, whole or not at all."""
    plots = [portrait(seen), *of_phases(document["phase"])]
    if lives:
        plots.append(half_lives(lives))
    if document["rotations"]:
        plots.append(turns(document["rotations"]))
    drawn = [heat(one, document["text"]["tokens"]) for one in maps]
    concepts = [
        {**row, "tokens": [token_name(name) for name in row["tokens"]]}
        for row in document["concepts"]
    ]
    content = render(
        "inspect.html",
        document=document,
        plots=[Markup(svg) for svg in plots],
        maps=[Markup(svg) for svg in drawn],
        concepts=concepts,
    )
    write_text(page, content)
