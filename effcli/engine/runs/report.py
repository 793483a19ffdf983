"""What a run came to: a pure function of its folder."""

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from effcli.engine.runs.files import write_json
from effcli.engine.runs.rundir import CONFIG, REPORT, RunDir
from effcli.errors import InputError
from effcli.settings.layers import read_toml

Row = dict[str, Any]
SCHEMA = 1
Status = Literal["complete", "stopped", "diverged", "unfinished"]


class _Piece(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HeldOutResult(_Piece):
    """The held-out text, looked at after the last step."""

    loss: float
    perplexity: float
    bits_per_byte: float
    windows: int
    entropy_bits_per_byte: float | None = None


class Floors(_Piece):
    """Loss of counting alone, on the same windows."""

    unigram: float
    bigram: float
    trigram: float


class Energy(_Piece):
    """Joules, and where the number comes from; none where two ways would have to be mixed."""

    joules: float | None
    source: str


class Tuning(_Piece):
    """What was spent on finding the settings, which no other figure includes."""

    trials: int
    tokens: int
    flops: float
    seconds: float
    chosen: dict[str, float]
    losses: list[float | None]
    """Held-out loss of every trial; none where it diverged."""


class Selection(_Piece):
    """What a selective run read, and what choosing it cost."""

    ratio: float
    """Share of the pool that was to be read."""
    mode: str
    """`file`: trusted text was given; `alike`: the pool is like held-out text; else `none`."""
    unique_tokens: int
    overhead_in_loop: float
    """Seconds of choosing during training, as a share of those of training."""
    overhead_all_in: float
    """With those of scoring the corpus before."""
    flops_in_loop: float
    """The same in FLOPs."""
    flops_all_in: float
    contamination: float | None
    """Estimated share of the pool that trusted text is not like."""
    duplicates_removed: int
    """Tokens of copies that could not be read."""
    clusters: int
    cluster_entropy: float | None
    """Of the last choice, in nats."""
    precision: float | None
    """Share of the chosen tokens that is labeled as good."""
    reused: int | None = None
    """Candidates whose uncertainty an earlier run had kept; none where nothing is reused."""


class Codes(_Piece):
    """What the codes of all layers together did, by a look in the low-bit phase."""

    step: int
    zeros: float
    """Share of the weights that is read back as zero."""
    dead_zone: float
    """Share so near to a threshold that noise decides the code."""
    flips: float | None
    """Share whose code differs from that of the last look; none at the first."""
    empty_rows: int
    """Outputs that do not depend on the input."""


class Student(_Piece):
    """What a distillation has made, measured from its file."""

    bits: float
    is_trained_in_low_bits: bool
    """Else it was rounded after training."""
    file: str
    """In the run's folder."""
    file_bytes: int
    bytes: dict[str, int]
    """Of the file, by what they are for."""
    linear_bits_per_weight: float | None
    """Of the blocks' matrices, scales included."""
    ratio_linear: float | None
    """Bytes of these matrices in float32 over those in the file."""
    ratio_total: float
    """The same of all weights and the whole file."""
    ratio_linear_bf16: float | None
    ratio_total_bf16: float
    loss: float
    """Of the file, read again, on a part of the held-out text; in nats per token."""
    roundtrip_gap: float
    """What packing has cost of it."""
    logit_gap: float
    """The largest difference of a logit from those of the trained model, tables rounded."""
    agreement: float
    """Share of positions at which both find the same token most likely."""
    weight_error: float | None
    """Mean squared error of the rounded weights over their mean square."""
    teacher_loss: float | None = None
    """On all held-out text."""
    teachers: list[str] = []
    codes: list[Codes] = []
    """Every look, for a student that was trained in low bits."""


class Hybrid(_Piece):
    """What the parts of `--hybrid` did, and what they cost."""

    overhead: float
    """FLOPs of probes, as a share of those of training."""
    multiplier_mean: float | None = None
    """Of the learning rate, by the controller."""
    decisions: int | None = None
    adopted: int | None = None
    constraint_activation_rate: float | None = None
    """Share of all moves of tensors that the trust region cut."""
    final_radius: float | None = None


class Report(_Piece):
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
    selection: Selection | None = None
    student: Student | None = None
    hybrid: Hybrid | None = None

    def as_json(self) -> dict[str, Any]:
        """The document, with the schema's number under its public name."""
        content = self.model_dump(mode="json")
        for name in ("selection", "student", "hybrid"):  # which other commands have not
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
    for row in run.records():
        last[row["kind"]] = row
        if row["kind"] == "codes":
            codes.append(row)
    try:
        return _report(folder, settings, env, last, codes)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the run in {folder} is damaged: {error}") from None


def _report(
    folder: Path, settings: Row, env: Row, last: dict[str, Row], codes: list[Row]
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
        selection=_selection(env["selection"], last, ledger) if "selection" in env else None,
        student=_student(last["student"]["facts"], codes) if "student" in last else None,
        hybrid=Hybrid(**last["hybrid"]["facts"]) if "hybrid" in last else None,
    )


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
