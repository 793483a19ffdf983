"""What a selective run cost, what its pool was like, and which saving it can claim.

"Five times less" has several readings, and a pool decides which of them a run can be about:
R1 fewer tokens of clean text, R2 fewer different tokens at equal FLOPs, R3 a pool with noise,
R4 a pool full of copies, R5 a narrow target in a broad pool. Noise and another domain are not
told apart by what is trusted, so R3 and R5 are one here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effcli.engine.bench.analysis import multiplier
from effcli.engine.runs.compare import NOT_THE_METHOD, cost_of, held_out_text, is_comparable
from effcli.engine.runs.pieces import Selection
from effcli.engine.runs.report import Report, report_of
from effcli.engine.runs.rundir import CONFIG, RunDir
from effcli.errors import InputError
from effcli.settings.layers import read_toml
from effcli.units import count, flops, size

READINGS = {
    "R1": "fewer tokens of clean text",
    "R2": "fewer different tokens, read several times",
    "R3 or R5": "a pool with noise or another domain in it",
    "R4": "a pool full of copies",
}
LARGE = 0.3  # share of a pool that decides what it is like
REPEATED = 1.05  # passes from which text is read again; a last step may begin another pass
Row = dict[str, Any]


@dataclass(frozen=True)
class Audited:
    """A selective run, and what its folder says of it."""

    folder: Path
    report: Report
    selection: Selection
    made: Mapping[str, Any]
    """What was known of the pool before training."""

    @classmethod
    def of(cls, folder: Path) -> "Audited":
        """Read a run's folder."""
        report, made = report_of(folder), RunDir(folder).env().get("selection")
        if report.selection is None or made is None:
            hint = "name a run of `eff aql`; `eff report` shows any run"
            raise InputError(f"the run in {folder} chose nothing", hint)
        if report.status != "complete":
            message = f"the run in {folder} is {report.status}"
            raise InputError(message, "let it end with --resume before it is judged")
        return cls(folder, report, report.selection, made)

    @property
    def contamination(self) -> float | None:
        """Share of the pool that trusted text is not like, if that is known."""
        return self.selection.contamination

    @property
    def copies(self) -> float:
        """Share of the pool that are copies too many."""
        return float(self.made["duplicate_tokens"] / self.made["tokens"])

    @property
    def passes(self) -> float:
        """How often the chosen text was read."""
        return self.report.tokens / max(1, self.report.unique_tokens)

    @property
    def reading(self) -> str:
        """Which saving a multiplier of this run is about."""
        if (self.contamination or 0.0) >= LARGE:
            return "R3 or R5"
        if self.copies >= LARGE:
            return "R4"
        return "R2" if self.passes > REPEATED else "R1"

    @property
    def ceiling(self) -> float | None:
        """The most that leaving out what is not good can save: 1 / (1 - contamination)."""
        if self.reading != "R3 or R5" or not self.contamination or self.contamination >= 1:
            return None
        return 1 / (1 - self.contamination)


def audit(folder: Path, against: Sequence[Path]) -> dict[str, Any]:
    """The bill of a run, its pool, and its multiplier over plain runs, if there are some."""
    run = Audited.of(folder)
    plain = [_plain(run, other) for other in against]
    gains = {unit: _gain(run, plain, unit) for unit in ("tokens", "flops")} if plain else {}
    memory = max((one.peak_memory_bytes for one in plain), default=None)
    return {
        "schema": 1,
        "command": "aql audit",
        "run": str(folder),
        "reading": run.reading,
        "ceiling": run.ceiling,
        "multipliers": {unit: {"value": v, "bound": b} for unit, (v, b) in gains.items()},
        "pool": {
            "mode": run.selection.mode,
            "contamination": run.contamination,
            "copies": run.copies,
            "passes": run.passes,
        },
        "bill": _bill(run, memory),
        "claims": _claims(run, gains, [str(other) for other in against]),
    }


def _plain(run: Audited, folder: Path) -> Report:
    """A run that read everything, and that can stand beside this one."""
    report = report_of(folder)
    if report.selection is not None:
        raise InputError(f"the run in {folder} chose what it read", "name runs of `eff baseline`")
    if not is_comparable(report):
        raise InputError(f"the run in {folder} is {report.status}", "let it end with --resume")
    if held_out_text(folder, report) != held_out_text(run.folder, run.report):
        message = f"the run in {folder} was judged on other text than the one in {run.folder}"
        raise InputError(message, "train it on the same corpus, with the same evaluation")
    if different := _differences(run.folder, folder):
        message = f"the run in {folder} has other settings ({', '.join(different)})"
        raise InputError(message, "only what was read may differ")
    return report


def _differences(one: Path, other: Path) -> list[str]:
    """Settings of training that two runs have and that differ."""
    known, others = read_toml(one / CONFIG), read_toml(other / CONFIG)
    names = (set(known) & set(others)) - NOT_THE_METHOD - {"batch", "out", "resume"}
    different = {name for name in names if _shown(known[name]) != _shown(others[name])}
    if known["batch"]["sequences"] != others["batch"]["sequences"]:
        different.add("batch.sequences")
    return sorted(different)


def _shown(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _gain(run: Audited, plain: Sequence[Report], unit: str) -> tuple[float, str | None]:
    """Times the cost that reading everything takes to this run's loss, or a bound of it."""
    assert run.report.held_out is not None
    points = [(cost_of(one, unit), one.held_out.loss) for one in plain if one.held_out is not None]
    found = multiplier(points, cost_of(run.report, unit), run.report.held_out.loss)
    assert found is not None
    return found


def _bill(run: Audited, memory: int | None) -> list[Row]:
    report, made, selection = run.report, run.made, run.selection
    before = {"flops": float(made["flops"]), "seconds": float(made["seconds"])}
    spent = {"flops": report.flops["select"], "seconds": report.seconds["select"]}
    inside = {unit: max(0.0, spent[unit] - before[unit]) for unit in spent}
    trained = {"flops": report.flops["train"], "seconds": report.seconds["train"]}
    rows = [
        _costs(name, costs)
        for name, costs in (
            ("training", trained),
            ("choosing in the loop", inside),
            ("scoring before", before),
        )
    ]
    shares = (
        ("overhead in the loop", selection.overhead_in_loop, selection.flops_in_loop),
        ("overhead all in", selection.overhead_all_in, selection.flops_all_in),
    )
    rows += [
        {
            "what": name,
            "shown": f"{seconds:.2%} of the seconds, {spent:.2%} of the FLOPs of training",
            "seconds_share": seconds,
            "flops_share": spent,
        }
        for name, seconds, spent in shares
    ]
    beside = f", {report.peak_memory_bytes / memory - 1:+.1%} beside plain runs" if memory else ""
    shown = f"{size(report.peak_memory_bytes)}{beside}"
    return [*rows, {"what": "memory", "shown": shown, "bytes": report.peak_memory_bytes}]


def _costs(name: str, costs: Mapping[str, float]) -> Row:
    shown = f"{flops(costs['flops'])} FLOPs, {costs['seconds']:.2f} s"
    return {"what": name, "shown": shown, **costs}


def _claims(
    run: Audited, gains: Mapping[str, tuple[float, str | None]], against: Sequence[str]
) -> list[Row]:
    eta = run.contamination
    rows = {
        "contamination": "cannot be measured" if eta is None else f"{eta:.0%} of the pool",
        "copies": f"{run.copies:.0%} of the pool",
        "read": f"{count(run.report.unique_tokens)} different tokens, {run.passes:.2f} times",
        "reading": f"{run.reading}: {READINGS[run.reading]}",
    }
    if run.ceiling is not None:
        rows["ceiling"] = f"{run.ceiling:.2f} times fewer tokens, by leaving out all that is bad"
    for unit, (value, bound) in gains.items():
        name = "FLOPs" if unit == "flops" else unit
        shown = f"{bound or ''}{value:.2f} times fewer {name} than {', '.join(against)}"
        rows[f"multiplier, {name}"] = f"{shown} ({run.reading})"
    if gains:
        rows["certainty"] = "a screen, no interval: `eff bench` gives one"
    else:
        rows["multiplier"] = "none without plain runs to compare with: --against RUN"
    return [{"what": name, "shown": shown} for name, shown in rows.items()]
