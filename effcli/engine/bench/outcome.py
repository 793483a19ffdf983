"""What is kept of a finished run."""

from pathlib import Path
from typing import Any

from effcli.engine.runs import checkpoint
from effcli.engine.runs.report import report_of
from effcli.engine.runs.rundir import CHECKPOINTS, RunDir


def outcome(folder: Path) -> dict[str, Any]:
    """The figures of a run: its costs, its held-out loss and the way there."""
    report = report_of(folder)
    held_out = report.held_out
    looks = [row for row in RunDir(folder).records() if row["kind"] == "evaluation"]
    return {
        "parameters": report.parameters,
        "steps": report.steps,
        "tokens": report.tokens,
        "unique_tokens": report.unique_tokens,
        "flops": report.cost_flops,
        "seconds": report.cost_seconds,
        "joules": report.energy.joules,
        "energy_source": report.energy.source,
        "loss": None if held_out is None else held_out.loss,
        "bits_per_byte": None if held_out is None else held_out.bits_per_byte,
        "tail": report.tail,
        **{
            name: None if (part := getattr(report, name)) is None else part.model_dump()
            for name in ("selection", "student", "hybrid")
        },
        "accounts": {"flops": report.flops, "seconds": report.seconds},
        "peak_memory_bytes": report.peak_memory_bytes,
        "artifact_bytes": _artifact_bytes(folder),
        "curve": [
            [row[unit] for unit in ("tokens", "flops", "seconds", "joules", "loss")]
            for row in looks
        ],
    }


def _artifact_bytes(folder: Path) -> int | None:
    """Size of the weights, where there is a checkpoint."""
    places = checkpoint.steps(folder / CHECKPOINTS)
    return (places[-1] / checkpoint.MODEL).stat().st_size if places else None
