"""Which run `--resume` means, and whether what was asked still fits it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from effcli.engine.runs.rundir import CONFIG, unfinished
from effcli.errors import InputError
from effcli.settings.layers import Resolved, resolve
from effcli.settings.train import TrainSettings


def resumed(
    command: str,
    cls: type[Any],
    ask: Callable[[Path | None], Resolved[Any]],
    out: str | None,
) -> Resolved[Any]:
    """The settings of the run to continue; what is given anew may not change its result."""
    folder = Path(out) if out else unfinished(command)
    config = folder / CONFIG
    if not config.exists():
        return ask(None)  # it never got as far as writing down what was asked
    asked = ask(config)
    before = resolve(cls, {}, (), config).settings
    changed = _changes(before, asked.settings)
    if changed:
        message = f"{folder} was begun with other settings: {', '.join(changed)}"
        raise InputError(message, "resume with the settings it began with, or start a new run")
    settings = asked.settings.model_copy(update={"out": folder, "resume": True})
    return Resolved(settings, asked.origins)


def _changes(before: TrainSettings, after: TrainSettings) -> list[str]:
    skipped = {*before.PLACES, *before.FREE, "data"}  # the corpus is compared by its content
    old, new = _leaves(before.model_dump()), _leaves(after.model_dump())
    return [
        f"{name} was {old.get(name)!r}, now {value!r}"
        for name, value in new.items()
        if value != old.get(name) and not skipped & {name, name.partition(".")[0]}
    ]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves
