"""Mounts the commands; the one place where errors become exit codes."""

import atexit
import errno
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

import typer
from typer.exceptions import TyperException

from effcli import __version__, launch
from effcli.commands import aql, distill, qllm
from effcli.commands.baseline import baseline
from effcli.commands.bench import bench
from effcli.commands.doctor import doctor
from effcli.commands.export import export
from effcli.commands.generate import generate
from effcli.commands.mount import mount, mount_group
from effcli.commands.prepare import prepare
from effcli.commands.report import report
from effcli.commands.verify import verify
from effcli.errors import (
    CheckError,
    DivergedError,
    EffError,
    InputError,
    ResourceError,
    Stopped,
)
from effcli.safe import guard_libraries, safe
from effcli.settings.aql import (
    AqlSettings,
    AuditSettings,
    PolicySettings,
    PrepSettings,
    SelectSettings,
)
from effcli.settings.baseline import BaselineSettings
from effcli.settings.bench import BenchSettings
from effcli.settings.distill import CacheSettings, CheckSettings, DistillSettings, PackSettings
from effcli.settings.export import ExportSettings
from effcli.settings.generate import GenerateSettings
from effcli.settings.prepare import PrepareSettings
from effcli.settings.probe import ProbeSettings
from effcli.settings.qllm import InspectSettings, QllmSettings, WriteSettings
from effcli.settings.reading import DoctorSettings, ReportSettings, VerifySettings
from effcli.ui.console import flush, show_error

app = typer.Typer(
    name="eff",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train small language models for less, and prove what each saving is worth.",
)
mount(app, "prepare", PrepareSettings, prepare, has_plan=True)
mount(app, "baseline", BaselineSettings, baseline, has_plan=True, in_parallel=True)
below = mount_group(app, "aql", AqlSettings, aql.train, "train", in_parallel=True)
mount(below, "prep", PrepSettings, aql.prep)
mount(below, "select", SelectSettings, aql.select)
mount(below, "audit", AuditSettings, aql.audit)
policy = typer.Typer(name="policy", help="Weights of a learned policy.")
policy.callback()(lambda: None)
mount(policy, "train", PolicySettings, aql.policy_train)
below.add_typer(policy)
students = mount_group(app, "distill", DistillSettings, distill.train, "train", in_parallel=True)
mount(students, "cache", CacheSettings, distill.cache)
mount(students, "pack", PackSettings, distill.pack)
mount(students, "verify", CheckSettings, distill.verify)
waves = mount_group(app, "qllm", QllmSettings, qllm.train, "train", in_parallel=True)
mount(waves, "generate", WriteSettings, qllm.generate)
mount(waves, "inspect", InspectSettings, qllm.inspect)
mount(waves, "probe", ProbeSettings, qllm.probe)
mount(app, "export", ExportSettings, export)
mount(app, "generate", GenerateSettings, generate)
mount(app, "report", ReportSettings, report)
mount(app, "verify", VerifySettings, verify)
mount(app, "bench", BenchSettings, bench, has_plan=True)
mount(app, "doctor", DoctorSettings, doctor)

LET_SPEAK = 10.0  # seconds that the first process has to say what all of them found
_COMMON = InputError, CheckError, DivergedError, Stopped
_RESOURCES = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOMEM,
}


@app.callback(invoke_without_command=True)
def _top(version: bool = typer.Option(False, "--version", help="Show the version.")) -> None:
    if version:
        typer.echo(f"eff {__version__}")


def main() -> None:
    """The program."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: its number must not go to a file
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf8"))  # noqa: SIM115
    guard_libraries()
    code = run(sys.argv[1:])
    if not launch.is_alone():
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> None:
    """End now: threads of a process group may abort an interpreter that takes itself apart."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code. Never raises for what a user can cause."""
    try:
        code = app(arguments or ["--help"], prog_name="eff", standalone_mode=False)
        flush()
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        show_error(Stopped(signal.SIGINT, "before anything was done"))
        return 130
    except SystemExit as error:  # typer's: after completion, or (1) when nobody reads its help
        return 0 if error.code in (None, 1) else int(error.code)
    except BaseException as error:
        if "--debug" in arguments:
            sys.stderr.write(safe("".join(traceback.format_exception(error))))
        expected = _expected(error, arguments)
        # What stops every process is said once; what stops one of them is said by that one.
        if launch.rank() == 0 or not isinstance(expected, _COMMON):
            show_error(expected)
        elif isinstance(expected, InputError):
            time.sleep(LET_SPEAK)  # who ends with an error ends the others, before they have spoken
        return expected.code if isinstance(expected, Stopped) else expected.exit_code
    return code if isinstance(code, int) else 0


def _expected(error: BaseException, arguments: list[str]) -> EffError:
    """The error to show for an exception."""
    if isinstance(error, EffError):
        return error
    if isinstance(error, TyperException):
        return _usage(error, arguments)
    if isinstance(error, MemoryError):
        return ResourceError("out of memory", "use a smaller preset or batch.micro")
    if isinstance(error, OSError) and error.errno in _RESOURCES:
        where = f": {error.filename}" if error.filename else ""
        is_forbidden = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        hint = "change its permissions" if is_forbidden else "make room"
        return ResourceError(
            f"{os.strerror(error.errno or 0).lower()}{where}", f"{hint}, or choose another folder"
        )
    if isinstance(error, OSError) and error.filename:
        return InputError(f"{os.strerror(error.errno or 0).lower()}: {error.filename}")
    hint = "this is a bug; --debug shows where, please report it"
    return EffError(f"{type(error).__name__}: {error}", hint)


def _usage(error: TyperException, arguments: list[str]) -> InputError:
    """A wrong command line, in one line, with the nearest right word."""
    message = error.format_message().split(" (Possible options:")[0].rstrip(".")
    known = getattr(error, "possibilities", None) or []
    name = getattr(error, "option_name", "")
    if close := get_close_matches(name, known, n=1):
        return InputError(_lower(message), f"did you mean {close[0]}?")
    names = {one.name for one in app.registered_commands}
    names |= {one.typer_instance.info.name for one in app.registered_groups if one.typer_instance}
    command = "".join(f" {word}" for word in arguments[:1] if word in names)
    return InputError(_lower(message), f"see eff{command} --help")


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
