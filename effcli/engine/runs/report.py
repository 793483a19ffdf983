"""What a run came to: a pure function of its folder."""

import math
from pathlib import Path
from typing import Any, Literal

from effcli.engine.runs.files import write_json
from effcli.engine.runs.pieces import (
    Beside,
    Codes,
    Energy,
    Floors,
    HeldOutResult,
    Hybrid,
    Languages,
    PhaseResult,
    Piece,
    Selection,
    Size,
    Student,
    Texts,
    Tuning,
)
from effcli.engine.runs.rundir import CONFIG, REPORT, RunDir
from effcli.errors import InputError
from effcli.settings.growth import steps_of
from effcli.settings.layers import read_toml

Row = dict[str, Any]
SCHEMA = 1
Status = Literal["complete", "stopped", "diverged", "unfinished"]


_OF_SOME = (
    "mix",
    "selection",
    "student",
    "hybrid",
    "growth",
    "text",
    "phase",
    "languages",
    "gpt",
)  # which other runs have not


class Report(Piece):
    """`report.json`, and what `--json` prints. Documented in docs/report.md."""

    schema_version: int = SCHEMA
    command: str
    run: str
    status: Status
    parameters: int
    steps: int
    tokens: int
    unique_tokens: int
    held_out: HeldOutResult | None
    floors: Floors | None
    flops: dict[str, float]
    seconds: dict[str, float]
    tokens_per_second: float
    mfu: float
    peak_flops_per_second: float
    energy: Energy
    peak_memory_bytes: int
    cost: float | None
    tuning: Tuning | None = None
    tail: list[float] | None = None
    mix: dict[str, float] | None = None
    selection: Selection | None = None
    student: Student | None = None
    hybrid: Hybrid | None = None
    growth: list[Size] | None = None
    text: Texts | None = None
    phase: PhaseResult | None = None
    languages: Languages | None = None
    gpt: Beside | None = None

    def as_json(self) -> dict[str, Any]:
        """The document, with the schema's number under its public name."""
        content = self.model_dump(mode="json")
        for name in _OF_SOME:
            if content[name] is None:
                del content[name]
        if content["held_out"] and content["held_out"]["entropy_bits_per_byte"] is None:
            del content["held_out"]["entropy_bits_per_byte"]  # only generated text has a known one
        return {"schema": content.pop("schema_version"), **content}

    def write(self) -> None:
        """Put it into the run's folder."""
        write_json(Path(self.run) / REPORT, self.as_json())

    @property
    def cost_flops(self) -> float:
        """What the run spent, evaluation aside."""
        return sum(value for account, value in self.flops.items() if account != "eval")

    @property
    def cost_seconds(self) -> float:
        """What the run took, evaluation and compilation aside."""
        aside = ("eval", "compile", "total")
        return sum(value for account, value in self.seconds.items() if account not in aside)


def report_of(folder: Path) -> Report:
    """Read a run's folder."""
    run = RunDir(folder)
    if not (folder / CONFIG).exists():
        raise InputError(f"there is no run in {folder}")
    settings, env = read_toml(folder / CONFIG), run.env()
    last: dict[str, Row] = {}
    codes: list[Row] = []
    try:
        sizes = _first_size(settings)
        for row in run.records():
            last[row["kind"]] = row
            if row["kind"] == "codes":
                codes.append(row)
            elif row["kind"] == "grown":
                sizes.append(_grown(row, last))
        return _report(folder, settings, env, last, codes, sizes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the run in {folder} is damaged: {error}") from None


def _report(
    folder: Path, settings: Row, env: Row, last: dict[str, Row], codes: list[Row], sizes: list[Size]
) -> Report:
    ledger = last.get("ledger")
    if ledger is None:
        raise InputError(f"the run in {folder} has not got anywhere yet")
    seconds, price = ledger["seconds"], settings.get("price_per_hour")
    train_seconds, peak = seconds["train"], env["peak_flops_per_second"]
    evaluation, entropy = last.get("evaluation"), env["corpus"]["entropy_bits_per_byte"]
    held_out = None
    if evaluation is not None and evaluation["step"] == ledger["steps"]:
        held_out = HeldOutResult(
            loss=evaluation["loss"],
            perplexity=math.exp(min(evaluation["loss"], 700.0)),
            bits_per_byte=evaluation["bits_per_byte"],
            windows=evaluation["windows"],
            entropy_bits_per_byte=entropy,
        )
    floors = last.get("floors")
    return Report(
        command=env["command"],
        run=str(folder),
        status=ledger["status"],
        parameters=env["parameters"],
        steps=ledger["steps"],
        tokens=ledger["tokens"],
        unique_tokens=ledger["unique_tokens"],
        held_out=held_out,
        floors=None if floors is None else Floors(**{k: floors[k] for k in Floors.model_fields}),
        flops=ledger["flops"],
        seconds=seconds,
        tokens_per_second=ledger["tokens"] / train_seconds if train_seconds else 0.0,
        mfu=ledger["flops"]["train"] / train_seconds / peak if train_seconds else 0.0,
        peak_flops_per_second=peak,
        energy=_energy(ledger["joules"]),
        peak_memory_bytes=ledger["peak_memory_bytes"],
        cost=None if price is None else price * seconds["total"] / 3600,
        tuning=None if "tuning" not in env else Tuning(**env["tuning"]),
        tail=last["tail"]["losses"] if "tail" in last else None,
        mix={part["name"]: part["share"] for part in env["corpus"].get("parts", ())} or None,
        selection=_selection(env["selection"], last, ledger) if "selection" in env else None,
        student=_student(last["student"]["facts"], codes) if "student" in last else None,
        hybrid=Hybrid(**last["hybrid"]["facts"]) if "hybrid" in last else None,
        growth=sizes or None,
        text=Texts(**last["texts"]["facts"]) if "texts" in last else None,
        phase=PhaseResult(**last["phases"]["facts"]) if "phases" in last else None,
        languages=_languages(last),
        gpt=Beside(**last["beside"]["facts"]) if "beside" in last else None,
    )


def _languages(last: dict[str, Row]) -> Languages | None:
    if "languages" not in last:
        return None
    alignment = last["alignment"]["facts"] if "alignment" in last else {}
    return Languages(**last["languages"]["facts"], **alignment)


def _first_size(settings: Row) -> list[Size]:
    """What a run that grows began with; nothing for any other."""
    names = {"width": "grow", "layers": "grow_depth"}
    if not any(name in settings for name in names.values()):
        return []
    size = {field: settings["model"][field] for field in names}
    for field, name in names.items():
        if name in settings:
            size[field] = steps_of(settings[name], name, size[field])[0][1]
    return [Size(step=0, tokens=0, **size, difference=None, held_out=None)]


def _grown(row: Row, last: dict[str, Row]) -> Size:
    """A size, from its row and the last ones of all kinds before it."""
    facts = {name: row[name] for name in ("step", "width", "layers", "difference")}
    held_out = last["evaluation"]["loss"] if "evaluation" in last else None
    return Size(**facts, tokens=last["step"]["tokens"], held_out=held_out)


def _student(facts: Row, looks: list[Row]) -> Student:
    codes = [Codes(**{name: row[name] for name in Codes.model_fields}) for row in looks]
    return Student(**facts, codes=codes)


def _selection(
    made: dict[str, Any], last: dict[str, dict[str, Any]], ledger: dict[str, Any]
) -> Selection:
    facts = last["selection"]["facts"] if "selection" in last else {}
    shares = {}
    for unit, name in (("seconds", "overhead"), ("flops", "flops")):
        spent, trained = ledger[unit]["select"], ledger[unit]["train"] or 1.0
        shares[f"{name}_in_loop"] = max(0.0, spent - made[unit]) / trained
        shares[f"{name}_all_in"] = spent / trained
    return Selection(
        ratio=made["ratio"],
        mode=made["mode"],
        unique_tokens=ledger["unique_tokens"],
        contamination=made["contamination"],
        duplicates_removed=made["duplicate_tokens"],
        clusters=made["clusters"],
        cluster_entropy=facts.get("cluster_entropy"),
        precision=facts.get("precision"),
        reused=facts.get("reused"),
        **shares,
    )


def _energy(joules: dict[str, float]) -> Energy:
    if len(joules) == 1:
        ((source, value),) = joules.items()
        return Energy(joules=value, source=source)
    return Energy(joules=None, source="none" if not joules else "several: " + ", ".join(joules))
