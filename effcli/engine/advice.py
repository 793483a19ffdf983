"""What to say when a run ends before its end, and what to do next."""

import shlex
from pathlib import Path

from effcli.engine.device import Device
from effcli.engine.records import Diverged
from effcli.engine.runs import checkpoint
from effcli.engine.runs.report import Report
from effcli.errors import DivergedError, EffError, OutOfMemory, ResourceError, Stopped


def resuming(command: str, folder: Path) -> str:
    """The command line that continues a run."""
    return f"eff {command} --resume --out {shlex.quote(str(folder))}"


def stopped(error: Stopped | ResourceError, command: str, report: Report) -> EffError:
    """A signal came, or another process is gone, and everything is saved."""
    message = f"{error.message}; step {report.steps} is saved in {report.run}"
    hint = f"continue with: {resuming(command, Path(report.run))}"
    if isinstance(error, Stopped):
        return Stopped(error.signal_number, message, hint, report.as_json())
    return ResourceError(message, hint, report.as_json())


def not_begun(error: Stopped, command: str, folder: Path) -> Stopped:
    """A signal came before the first step; what a teacher said until then is kept, in its cache."""
    hint = f"continue with: {resuming(command, folder)}"
    return Stopped(error.signal_number, error.message, hint)


def diverged(record: Diverged, rate: float, checkpoints: Path, report: Report) -> DivergedError:
    """The numbers are not finite any more."""
    last, _ = checkpoint.newest(checkpoints)
    where = f"the last good checkpoint is {last}" if last else "no checkpoint was saved yet"
    return DivergedError(
        f"step {record.step}: the loss is {record.loss}, the gradient's norm"
        f" {record.grad_norm}, at learning rate {record.lr:.3g}; {where}",
        f"try a lower rate in a new run, for example --lr {rate / 3:.2g}",
        report.as_json(),
    )


def out_of_memory(command: str, folder: Path, micro: int, device: Device) -> OutOfMemory:
    """The smallest change that fits."""
    gigabytes = device.peak_memory_bytes() / 1e9
    message = f"out of memory with {micro} sequences at once (peak {gigabytes:.1f} GB)"
    hint = "a new run with --set device.recompute=true, a smaller preset, or a shorter context"
    if micro > 1:
        again = f"{resuming(command, folder)} --set batch.micro={micro // 2}"
        hint = f"the same result in less memory: {again}"
    return OutOfMemory(message, hint)
