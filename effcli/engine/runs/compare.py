"""Several runs beside each other: how much less did one spend to the same loss?

Losses are compared only between complete runs, each at the end of a schedule of its
own: the middle of a longer schedule flatters whoever decays earlier. The reference's
runs at different budgets give loss = a - b·ln(cost); a run's multiplier is the
reference's cost at the run's loss, divided by the run's cost. Outside what was measured
there is only a bound.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from effcli.engine.runs import plots
from effcli.engine.runs.files import write_text
from effcli.engine.runs.page import DAMAGED, render
from effcli.engine.runs.report import Report, report_of
from effcli.engine.runs.rundir import CONFIG, RunDir
from effcli.errors import InputError
from effcli.settings.layers import read_toml
from effcli.settings.train import BUDGETS

UNITS = ("tokens", "flops", "seconds")
NOT_THE_METHOD = {
    *BUDGETS,
    *("seed", "data", "preset", "eval_every", "save_every", "save_at", "keep", "tune"),
    *("price_per_hour", "device", "evaluation", "energy", "track", "page"),
}
Points = list[tuple[float, float]]


def compare(folders: list[Path]) -> dict[str, Any]:
    """A row for each run; the first run and its siblings at other budgets are the reference."""
    reports = [report_of(folder) for folder in folders]
    texts = [held_out_text(folder, report) for folder, report in zip(folders, reports, strict=True)]
    methods = [_method(folder) for folder in folders]
    siblings = [
        report
        for report, method, text in zip(reports, methods, texts, strict=True)
        if method == methods[0] and text == texts[0] and is_comparable(report)
    ]
    notes = []
    if len(set(texts)) > 1:
        notes.append("Runs with other held-out windows than the reference's have no multiplier.")
    if any(report.tuning for report in reports):
        notes.append("What a run's tuning took is included in its tokens, FLOPs and seconds.")
    if len({report.tokens for report in siblings}) < 2:
        notes.append(
            "The reference was run at one budget only, so there are bounds and no multipliers: "
            "give runs of it at other budgets, too."
        )
    rows = []
    for report, text in zip(reports, texts, strict=True):
        gains: dict[str, float | str] = {}
        is_reference = report in siblings
        if text == texts[0] and siblings and is_comparable(report) and not is_reference:
            found = {unit: _gain(unit, report, siblings) for unit in UNITS}
            gains = {unit: gain for unit, gain in found.items() if gain is not None}
        rows.append(_row(report, gains, is_reference))
    return {
        "schema": 1,
        "command": "report",
        "reference": reports[0].run,
        "runs": rows,
        "notes": notes,
    }


def _method(folder: Path) -> str:
    settings = read_toml(folder / CONFIG)
    kept = {name: value for name, value in settings.items() if name not in NOT_THE_METHOD}
    kept["batch"] = {name: n for name, n in settings["batch"].items() if name != "micro"}
    tuning = RunDir(folder).env().get("tuning") or {}
    return json.dumps([kept, tuning.get("chosen")], sort_keys=True)


def held_out_text(folder: Path, report: Report) -> tuple[Any, ...]:
    """What a run was judged on: losses on other windows say nothing about each other."""
    windows = None if report.held_out is None else report.held_out.windows
    corpus = RunDir(folder).env()["corpus"]["hash"]
    return corpus, read_toml(folder / CONFIG)["model"]["context"], windows


def is_comparable(report: Report) -> bool:
    """Whether a run has ended, so that its loss says what its budget came to."""
    return report.status == "complete" and report.held_out is not None and report.steps > 0


def cost_of(report: Report, unit: str) -> float:
    """What a run and its tuning took, in one of UNITS."""
    costs = {"tokens": report.tokens, "flops": report.cost_flops, "seconds": report.cost_seconds}
    before = 0.0 if report.tuning is None else getattr(report.tuning, unit)
    return float(costs[unit] + before)


def _loss(report: Report) -> float:
    assert report.held_out is not None
    return report.held_out.loss


def _gain(unit: str, report: Report, siblings: list[Report]) -> float | str | None:
    """The multiplier, or its bound as text where the reference was not measured.

    None where there is neither: a reference that does not get better with more.
    """
    losses, costs = np.array([(_loss(s), cost_of(s, unit)) for s in siblings]).T
    loss, cost = _loss(report), cost_of(report, unit)
    if len({sibling.tokens for sibling in siblings}) < 2:  # seeds of one budget: their mean
        sign = ">" if loss < losses.mean() else "<"
        return f"{sign}{costs.mean() / cost:.2f}"
    if loss < losses.min():
        return f">{costs[losses.argmin()] / cost:.2f}"
    if loss > losses.max():
        return f"<{costs[losses.argmax()] / cost:.2f}"
    slope, start = np.polyfit(np.log(costs), losses, 1)
    return float(math.exp((loss - start) / slope) / cost) if slope < 0 else None


def _row(report: Report, gains: dict[str, float | str], is_reference: bool) -> dict[str, Any]:
    held_out = report.held_out
    return {
        "run": report.run,
        "status": report.status,
        "loss": None if held_out is None else held_out.loss,
        "bits_per_byte": None if held_out is None else held_out.bits_per_byte,
        **{unit: cost_of(report, unit) for unit in UNITS},
        "is_reference": is_reference,
        "multipliers": gains,
    }


def write_comparison(comparison: dict[str, Any], page: Path) -> None:
    """Draw a comparison: the curve of every run, and where each ended."""
    looks: dict[str, dict[str, Points]] = {unit: {} for unit in UNITS}
    for row in comparison["runs"]:
        try:
            for record in RunDir(Path(row["run"])).records():
                if record["kind"] == "evaluation":
                    for unit in UNITS:
                        points = looks[unit].setdefault(row["run"], [])
                        points.append((float(record[unit]), float(record["loss"])))
        except DAMAGED as error:
            raise InputError(f"the run in {row['run']} is damaged: {error}") from None
    labels = {"tokens": "tokens", "flops": "FLOPs", "seconds": "seconds of training"}
    drawn = [
        plots.curves(labels[unit], "held-out loss, nats per token", looks[unit], {}, log_x=True)
        for unit in UNITS
    ]
    content = render("comparison.html", comparison=comparison, plots=[Markup(p) for p in drawn])
    write_text(page, content)
