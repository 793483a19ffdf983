"""Versions of what must be there, and of what may be."""

import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from effcli import __version__
from effcli.catalog import TRACKERS
from effcli.engine.checkup.rows import Row
from effcli.engine.runs.tracking import is_installed

PACKAGE = "effcli"
_REQUIREMENT = re.compile(r"([\w.-]+)\s*(?:(>=|==)\s*([\w.]+))?\s*$")


def versions() -> Iterator[Row]:
    """The program, Python, and every package that it cannot do without."""
    yield Row("eff", "ok", __version__)
    yield Row("python", "ok", f"{platform.python_version()}, {platform.system()}")
    try:
        wanted = requires(PACKAGE) or []
    except PackageNotFoundError:
        yield Row("packages", "note", "eff runs from its source, so what it needs is not recorded")
        return
    for requirement in wanted:
        if match := _REQUIREMENT.match(requirement):  # extras have a condition and do not match
            yield _package(match[1], match[2], match[3])


def _package(name: str, relation: str | None, least: str | None) -> Row:
    try:
        there = version(name)
    except PackageNotFoundError:
        return Row(name, "missing", "not installed", _pip(name, relation, least))
    if least is not None and _numbers(there) < _numbers(least):
        wanted = _pip(name, relation, least)
        return Row(name, "missing", f"{there}, older than {least}", wanted)
    return Row(name, "ok", there)


def _pip(name: str, relation: str | None, least: str | None) -> str:
    return f"pip install '{name}{relation or ''}{least or ''}'"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a tracker of another package may be called anything
        return "installed"


def _numbers(text: str) -> list[int]:
    """A version as numbers; what comes after them, as in `2.13.0+cpu`, decides nothing here."""
    return [int(number) for number in re.findall(r"\d+", text.partition("+")[0])[:3]]


def extras() -> Iterator[Row]:
    """What is only needed by those who ask for it."""
    for name in TRACKERS:
        if not all(map(is_installed, TRACKERS.load(name).needs)):
            yield Row(name, "note", "not installed", f"pip install '{PACKAGE}[{name}]'")
        else:
            yield Row(name, "ok", _version(name))
