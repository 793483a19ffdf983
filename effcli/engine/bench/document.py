"""The document of a suite: a function of what was planned and of what is known of its cells."""

import os
import platform
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from effcli import units
from effcli.engine.bench.analysis import (
    COSTS,
    EQUAL,
    Family,
    Table,
    differences,
    frontier,
    laws,
    multipliers,
)
from effcli.engine.bench.export import markdown
from effcli.engine.bench.matrix import Cell, source_hash
from effcli.engine.bench.page import write_bench
from effcli.engine.bench.statistics import FEWEST
from effcli.engine.bench.store import Store
from effcli.engine.bench.work import Work
from effcli.engine.device import Device
from effcli.engine.runs.files import write_json, write_text
from effcli.engine.runs.rundir import environment
from effcli.settings.bench import BenchSettings
from effcli.settings.train import BUDGETS

FIGURES = (
    *("parameters", "steps", "tokens", "unique_tokens", "flops", "seconds", "joules"),
    *("energy_source", "loss", "bits_per_byte", "tail", "selection", "student", "hybrid"),
    *("accounts", "artifact_bytes", "peak_memory_bytes", "curve"),
)
PAGE = "bench.html"


def plan_of(work: Work, settings: BenchSettings) -> dict[str, Any]:
    """Everything of the document that is no result, and the names of the cells."""
    matrix = work.matrix
    whole = matrix.settings(matrix.references[0])
    return {
        "suite": Path(settings.suite).stem,
        "tier": settings.tier,
        "title": matrix.suite.title,
        "about": matrix.suite.about,
        "manifest": _manifest(work, settings),
        "protocol": {
            "budget": {n: value for n in BUDGETS if (value := getattr(whole, n)) is not None},
            "shares": list(matrix.tier.shares),
            "seeds": list(work.seeds),
            "tuning_seed": matrix.suite.tuning_seed,
            "trials": matrix.tier.trials,
            "finals": matrix.tier.finals,
            "margin": matrix.suite.margin,
            "references": matrix.references,
            "subject": matrix.suite.subject,
            "arms": len(matrix.suite.arms),
        },
        "arms": [_arm(work, name) for name in matrix.ordered()],
        "cells": [_cell(cell) for cell, _ in work.cells()],
    }


def _manifest(work: Work, settings: BenchSettings) -> dict[str, Any]:
    corpus, whole = work.corpus, work.matrix.settings(work.matrix.references[0])
    given = {"--tier": settings.tier, "--seeds": settings.seeds, "--data": settings.data}
    given["--arms"] = ",".join(settings.arms) or None
    known = machine(settings.suite, given)
    measured_at = known.pop("measured_at")
    device = Device(whole.device)
    return {
        **known,
        "precision": str(device.dtype).removeprefix("torch."),
        "corpus": {
            "name": corpus.folder.name,
            "hash": corpus.hash,
            "tokenizer": corpus.identity()["tokenizer"],
            "train_tokens": corpus.train.tokens,
        },
        "measured_at": measured_at,
    }


def machine(suite: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The command line of a suite with the flags that were given, and where it ran."""
    words = ["eff", "bench", suite]
    for flag, value in given.items():
        words += [] if value is None else [flag, str(value)]
    known = environment()
    return {
        "line": shlex.join(words),
        "eff": known["eff"],
        "code": source_hash(),
        "commit": known["commit"],
        "python": known["python"],
        "torch": known["packages"]["torch"],
        "system": known["system"],
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _arm(work: Work, name: str) -> dict[str, Any]:
    matrix, arm = work.matrix, work.matrix.arms[name]
    return {
        "name": name,
        "about": arm.about,
        "is_reference": name in matrix.references,
        "command": arm.command,
        "settings": arm.settings,
        "teacher": arm.teacher,
        "chosen": work.chosen(name),
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "id": cell.id,
        "arm": cell.arm,
        "is_trial": cell.is_trial,
        "seed": cell.seed,
        "share": cell.share,
    }


def document_of(plan: Mapping[str, Any], store: Store) -> dict[str, Any]:
    """What the finished cells of a plan prove."""
    known = {cell["id"]: store.known(cell["id"]) for cell in plan["cells"]}
    cells = [_told(cell, known[cell["id"]]) for cell in plan["cells"] if not cell["is_trial"]]
    _keep_longest_curves(cells)
    table, names = Table(cells), [arm["name"] for arm in plan["arms"]]
    families = _families(plan, names)
    return {
        "schema": 1,
        "command": "bench",
        "status": "complete" if all(known.values()) else "partial",
        **{name: plan[name] for name in ("suite", "tier", "title", "about")},
        "manifest": plan["manifest"],
        "protocol": plan["protocol"],
        "arms": [_with_tuning(arm, plan["cells"], known, table) for arm in plan["arms"]],
        "cells": cells,
        "multipliers": [
            row for one in families for cost in COSTS for row in multipliers(table, one, cost)
        ],
        "differences": [
            row for one in families for at in EQUAL for row in differences(table, one, at)
        ],
        "laws": laws(table, names),
        "frontier": frontier(table),
        "notes": _notes(plan, cells),
    }


def _families(plan: Mapping[str, Any], names: list[str]) -> list[Family]:
    """Each reference, with the arms and the later references that are compared with it."""
    protocol = plan["protocol"]
    references, total = protocol["references"], protocol.get("arms", len(names))
    families = []
    for at, reference in enumerate(references):
        arms = [name for name in names if name not in references[: at + 1]]
        size = max(len(arms), total - 1 - at)
        families.append(Family(reference, arms, protocol["seeds"], size, protocol["margin"]))
    return families


def _told(cell: Mapping[str, Any], result: Mapping[str, Any] | None) -> dict[str, Any]:
    result = result or {"status": "missing"}
    row = {name: cell[name] for name in ("id", "arm", "seed", "share")}
    row |= {"status": result["status"], "error": result.get("error")}
    return row | {name: result.get(name) for name in FIGURES}


def _keep_longest_curves(cells: list[dict[str, Any]]) -> None:
    longest: dict[tuple[str, int], float] = {}
    for cell in cells:
        key = (cell["arm"], cell["seed"])
        if cell["status"] == "complete":
            longest[key] = max(cell["share"], longest.get(key, 0.0))
    for cell in cells:
        if cell["share"] != longest.get((cell["arm"], cell["seed"])):
            cell["curve"] = []


def _with_tuning(
    arm: Mapping[str, Any],
    cells: list[dict[str, Any]],
    known: Mapping[str, Mapping[str, Any] | None],
    table: Table,
) -> dict[str, Any]:
    trials = [
        known[cell["id"]] for cell in cells if cell["is_trial"] and cell["arm"] == arm["name"]
    ]
    done = [trial for trial in trials if trial is not None]
    tuning = None
    if done:
        tuning = {
            "trials": len(trials),
            **{
                unit: sum(t.get(unit) or 0 for t in done) for unit in ("tokens", "flops", "seconds")
            },
            "chosen": (arm["chosen"] or {}) if len(done) == len(trials) else {},
            "losses": [trial.get("loss") for trial in done],
        }
    last = table.of(arm["name"])
    return {
        **{name: arm[name] for name in ("name", "about", "is_reference", "command", "settings")},
        "teacher": arm.get("teacher"),
        "parameters": last[-1].get("parameters") if last else None,
        "artifact_bytes": last[-1]["artifact_bytes"] if last else None,
        "tuning": tuning,
    }


def _notes(plan: Mapping[str, Any], cells: list[dict[str, Any]]) -> list[str]:
    notes = []
    seeds = len(plan["protocol"]["seeds"])
    if seeds < FEWEST:
        notes.append(f"A screen: {seeds} seeds prove nothing, so no arm is called better or worse.")
    sources = {cell["energy_source"] for cell in cells if cell["energy_source"]}
    if sources and not all(source.startswith("measured") for source in sources):
        notes.append(f"Joules are {', '.join(sorted(sources))}: they follow the seconds.")
    for status in ("diverged", "failed"):
        if bad := sorted({cell["arm"] for cell in cells if cell["status"] == status}):
            notes.append(
                f"Runs of {', '.join(bad)} {status}: what is left of an arm proves no gain."
            )
    for teacher in dict.fromkeys(arm.get("teacher") for arm in plan["arms"]):
        spent = [cell["flops"] for cell in cells if cell["arm"] == teacher and cell["flops"]]
        if spent:
            taught = ", ".join(arm["name"] for arm in plan["arms"] if arm.get("teacher") == teacher)
            notes.append(
                f"What {taught} cost leaves out the training of their teacher: {teacher}, "
                f"{units.flops(max(spent))} FLOPs, which is taken to be there already."
            )
    if missing := sum(cell["status"] == "missing" for cell in cells):
        notes.append(f"{missing} of {len(cells)} runs are not done yet.")
    return notes


def write_document(document: dict[str, Any], folder: Path) -> None:
    """Write bench.json, bench.md and bench.html."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "bench.json", document)
    write_text(folder / "bench.md", markdown(document) + "\n")
    write_bench(document, folder / PAGE)
