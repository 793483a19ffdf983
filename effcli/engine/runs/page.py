"""`report.html`: one file, no network, made from the run's folder alone."""

from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from effcli import units
from effcli.engine.runs import plots
from effcli.engine.runs.files import write_text
from effcli.engine.runs.report import Report
from effcli.engine.runs.rundir import CONFIG, PAGE, RunDir
from effcli.errors import InputError
from effcli.safe import safe

TENTHS = "tenth of the held-out tokens, rarest first"
OF_PHASES = {
    "local energy": "local_energy",
    "overlap of keys": "frame_potential",
    "entanglement": "entanglement",
    "likeness of halves": "half_similarity",
    "stability": "stability",
    "imaginary share": "imaginary_share",
}
DAMAGED = (KeyError, TypeError, ValueError, AttributeError)
"""What reading a folder raises that somebody has changed."""


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("effcli.engine.runs", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: safe(value) if type(value) is str else value,
    )
    environment.filters |= {"count": units.count, "flops": units.flops, "bytes": units.size}
    return environment


def render(template: str, **values: Any) -> str:
    """A page from a template of this room. Text is escaped, plots are not."""
    return _templates().get_template(template).render(**values)


def write_page(folder: Path, report: Report) -> Path:
    """Draw a run."""
    rows = list(RunDir(folder).records())
    page = folder / PAGE
    try:
        phases = [] if report.phase is None else of_phases(report.phase.model_dump())
        content = render(
            "run.html",
            report=report.as_json(),
            cost_flops=report.cost_flops,
            env=RunDir(folder).env(),
            config=(folder / CONFIG).read_text("utf8"),
            samples=[row for row in rows if row["kind"] == "sample"],
            plots=[Markup(svg) for svg in _plots(report, rows)],
            choices=[Markup(svg) for svg in _choices(rows)],
            codes=[Markup(svg) for svg in _codes(report)],
            phases=[Markup(svg) for svg in phases],
        )
    except (*DAMAGED, jinja2.TemplateError) as error:
        raise InputError(f"the run in {folder} is damaged: {error}") from error
    write_text(page, content)
    return page


def _plots(report: Report, rows: list[dict[str, Any]]) -> list[str]:
    steps = [row for row in rows if row["kind"] == "step"]
    looks = [row for row in rows if row["kind"] == "evaluation"]
    floors = {} if report.floors is None else report.floors.model_dump()
    drawn = []
    for unit, label in (
        ("tokens", "tokens"),
        ("flops", "FLOPs"),
        ("seconds", "seconds of training"),
    ):
        lines = {
            "training": [(row[unit], row["loss"]) for row in steps],
            "held out": [(row[unit], row["loss"]) for row in looks],
        }
        levels, marks = _visible(floors, steps), _grown(report, steps, unit)
        drawn.append(plots.curves(label, "loss, nats per token", lines, levels, marks=marks))
    if report.tail:
        tenths = {"held out": list(enumerate(report.tail, 1))}
        drawn.append(plots.curves(TENTHS, "loss, nats per token", tenths, {}))
    speed = [
        (b["tokens"], (b["tokens"] - a["tokens"]) / (b["seconds"] - a["seconds"]))
        for a, b in pairwise(steps)
        if b["seconds"] > a["seconds"]
    ]
    rates = {"rate": [(row["tokens"], row["lr"]) for row in steps]}
    drawn.append(plots.curves("tokens", "tokens per second", {"speed": speed}, {}))
    drawn.append(plots.curves("tokens", "learning rate", rates, {}))
    drawn.append(plots.bars("FLOPs", {k: v for k, v in report.flops.items() if v}))
    accounts = {k: v for k, v in report.seconds.items() if v and k != "total"}
    drawn.append(plots.bars("seconds", accounts))
    return drawn


def _choices(rows: list[dict[str, Any]]) -> list[str]:
    """What a selective run read, over time; nothing for a run that read everything."""
    tokens = {row["step"]: row["tokens"] for row in rows if row["kind"] == "evaluation"}
    told = [row for row in rows if row["kind"] == "selection" and "admitted" in row["facts"]]
    if not told:
        return []

    def over_time(name: str) -> plots.Series:
        return [(tokens[row["step"]], row["facts"][name]) for row in told]

    window = {"admitted share": over_time("admitted"), "stage": over_time("stage")}
    drawn = [
        plots.curves("tokens", "window of difficulty", window, {}),
        plots.curves("tokens", "clusters chosen from", {"used": over_time("clusters_used")}, {}),
        plots.curves(
            "tokens", "entropy of clusters, nats", {"h": over_time("cluster_entropy")}, {}
        ),
    ]
    last = told[-1]["facts"]["histogram"]
    centers = [(low + high) / 2 for low, high in pairwise(last["edges"])]
    lines = {
        name: [(x, n / max(1, sum(last[key]))) for x, n in zip(centers, last[key], strict=True)]
        for name, key in (("looked at", "looked_at"), ("chosen", "chosen"))
    }
    label = "uncertainty of the last candidates, deviations"
    drawn.append(plots.curves(label, "share of the passages", lines, {}))
    return drawn


def _codes(report: Report) -> list[str]:
    """What the codes of a student did while it was trained in them; nothing for any other run."""
    looks = [] if report.student is None else report.student.codes
    if not looks:
        return []
    lines = {
        "zeros": [(look.step, look.zeros) for look in looks],
        "dead zone": [(look.step, look.dead_zone) for look in looks],
        "flips since the last look": [(o.step, o.flips) for o in looks if o.flips is not None],
    }
    return [plots.curves("step", "share of the weights", lines, {})]


def _grown(report: Report, steps: list[dict[str, Any]], unit: str) -> dict[str, float]:
    """Where a model has become a larger one; nothing for any other run."""
    spent = {row["index"]: row[unit] for row in steps}
    sizes = (report.growth or [])[1:]
    return {f"{one.width} × {one.layers}": spent[one.step] for one in sizes}


def _visible(floors: Mapping[str, float], steps: list[dict[str, Any]]) -> dict[str, float]:
    """Floors within the range of the curve."""
    top = max((row["loss"] for row in steps), default=0.0)
    return {name: level for name, level in floors.items() if level <= top}


def of_phases(facts: Mapping[str, Any]) -> list[str]:
    """Coherence of phases over distances, and what is in 0..1 of them."""
    points = [(float(lag), value) for lag, value in facts["coherence"].items()]
    lines, all_of_it = {"coherence": points}, {"of all pairs": facts["mean_coherence"]}
    drawn = plots.curves("tokens between", "cosine of phases", lines, all_of_it, log_x=True)
    amounts = {name: facts[key] for name, key in OF_PHASES.items() if facts[key] is not None}
    least = facts["welch_bound"]
    marks = {} if least is None else {"overlap of keys": least}
    return [drawn, plots.levels(amounts, marks)]
