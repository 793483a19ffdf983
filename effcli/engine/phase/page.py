"""`inspect.html`: one file, no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from effcli.engine.phase.inspecting import Map, Portrait
from effcli.engine.phase.plots import half_lives, heat, portrait, token_name, turns
from effcli.engine.runs.files import write_text
from effcli.engine.runs.page import render
from effcli.engine.runs.plots import Series, curves, levels

ENERGIES = {
    "local energy": "local_energy",
    "overlap of keys": "frame_potential",
    "entanglement": "entanglement",
    "likeness of halves": "half_similarity",
    "imaginary share": "imaginary_share",
}


def write_inspection(
    page: Path,
    document: dict[str, Any],
    seen: Portrait,
    maps: Sequence[Map],
    lives: Mapping[str, Series],
) -> None:
    """Draw what was found, whole or not at all."""
    plots = [portrait(seen), *_measured(document["phase"])]
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


def _measured(facts: dict[str, Any]) -> list[str]:
    """Coherence over distances, and the energies."""
    points = [(float(lag), value) for lag, value in facts["coherence"].items()]
    lines, all_of_it = {"coherence": points}, {"of all pairs": facts["mean_coherence"]}
    drawn = [curves("tokens between", "cosine of phases", lines, all_of_it, log_x=True)]
    amounts = {name: facts[key] for name, key in ENERGIES.items() if facts[key] is not None}
    least = facts["welch_bound"]
    return [*drawn, levels(amounts, {} if least is None else {"overlap of keys": least})]
