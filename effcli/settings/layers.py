"""Defaults < recipe < preset < file < --set < flags: one value each, and where it came from."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from effcli.errors import InputError
from effcli.registry import Registry, suggestion
from effcli.settings import presets
from effcli.settings.base import Settings
from effcli.settings.train import BUDGETS, TrainSettings

S = TypeVar("S", bound=Settings)
Tree = dict[str, Any]
CONFIG = "config.toml"
"""What a run was asked for, in its folder."""
COMMAND_LINE = "the command line"
LARGEST_FILE = 2**14  # bytes; the parser takes memory by the square of a key's depth


@dataclass(frozen=True)
class Resolved(Generic[S]):
    """Checked settings, and the origin of every value that is not a default."""

    settings: S
    origins: Mapping[str, str]


def resolve(
    cls: type[S],
    flags: Mapping[str, Any],
    assignments: Iterable[str] = (),
    config: Path | None = None,
) -> Resolved[S]:
    """Put all layers on top of each other and check the result once."""
    above: list[tuple[str, Mapping[str, Any]]] = []
    if config is not None:
        above.append((config.name, read_toml(config)))
    above.append(("--set", parse_assignments(assignments)))
    above.append((COMMAND_LINE, flags))
    return stack(cls, above)


def stack(cls: type[S], layers: Iterable[tuple[str, Mapping[str, Any]]]) -> Resolved[S]:
    """Put layers, each with its origin, on top of the defaults, and check the result once.

    Names may be dotted.
    """
    above = [(origin, _nested(values)) for origin, values in layers]
    stacked = _Layers(cls)
    if issubclass(cls, TrainSettings):
        stacked.start_from_preset(above)
    for origin, values in above:
        stacked.add(origin, values)
    return stacked.check()


def read_toml(path: Path) -> Tree:
    """Read a settings file, or say what is wrong with it and where."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{path} is too large for a settings file")
        return tomllib.loads(path.read_text("utf8"))
    except FileNotFoundError:
        raise InputError(f"there is no settings file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the settings file {path}: {error}") from None
    except (ValueError, RecursionError) as error:  # also numbers and lists beyond all bounds
        raise InputError(f"{path} is not valid TOML: {error}") from None


def parse_assignments(assignments: Iterable[str]) -> Tree:
    """Turn `model.layers=4` into a tree; values are TOML, or else plain text."""
    flat: Tree = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise InputError(f"--set {assignment}: not of the form name=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            value = text
        flat[name.strip()] = value
    return _nested(flat)


def _nested(flat: Mapping[str, Any]) -> Tree:
    tree: Tree = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise InputError(f"{name} is set twice, in two ways")
        node[leaf] = value
    return tree


class _Layers:
    def __init__(self, cls: type[Settings]) -> None:
        self._cls: Any = cls
        self._values = _defaults(cls)
        self._origins: dict[str, str] = {}

    def start_from_preset(self, above: list[tuple[str, Tree]]) -> None:
        given = {name: value for _, values in above for name, value in values.items()}
        origin, ground = self._cls.ground(given)
        preset = self._chosen("preset", above, ground.get("preset", "nano"), presets.PRESETS)
        content = presets.read(preset)
        usual = ground.get("recipe", content["recipe"])
        recipe = self._chosen("recipe", above, usual, presets.RECIPES)
        if not self._cls.PRESET_BUDGET:
            content = {key: value for key, value in content.items() if key not in BUDGETS}
        own = {key: value for key, value in content.items() if key not in presets.RECIPES}
        if "name" in ground.get("model", {}):  # first, so that recipe and preset are its own
            self.add(origin, {"model": {"name": ground["model"]["name"]}})
        self.add(f"recipe {recipe}", presets.read(recipe))
        self.add(f"preset {preset}", {**own, "preset": preset, "recipe": recipe})
        self.add(f"preset {preset}", content.get(recipe, {}))
        self.add(origin, {k: v for k, v in ground.items() if k not in ("preset", "recipe")})

    def _chosen(
        self, name: str, above: list[tuple[str, Tree]], default: str, known: tuple[str, ...]
    ) -> str:
        given = [(origin, values[name]) for origin, values in above if name in values]
        for (lower, first), (upper, second) in pairwise(given):
            if first != second:
                # The file was written on top of its own preset, so another one would do nothing.
                message = f"{name} is {first!r} in {lower} and {second!r} in {upper}"
                raise InputError(message, f"give {name} in one place only")
        choice = given[-1][1] if given else default
        if choice not in known:
            raise InputError(
                f"there is no {name} called {choice!r}", suggestion(str(choice), list(known))
            )
        return str(choice)

    def add(self, origin: str, values: Tree) -> None:
        if any(name in values for name in BUDGETS) and issubclass(self._cls, TrainSettings):
            # A budget replaces the budgets below it: whoever asks for 500 steps wants no other end.
            for name in BUDGETS:
                self._values[name] = None
                self._origins.pop(name, None)
        self._merge(self._cls, self._values, values, origin, "")

    def _merge(self, cls: Any, into: Tree, values: Tree, origin: str, prefix: str) -> None:
        for key, value in values.items():
            name = prefix + key
            field = cls.model_fields.get(key)
            if field is None:
                message = f"there is no setting called {name!r} (from {origin})"
                raise InputError(message, suggestion(key, list(cls.model_fields)))
            registry = _registry(field)
            if registry and isinstance(value, str):
                value = {"name": value}
            if isinstance(value, dict) and registry and value.get("name", "") != "":
                self._choose_part(registry, into, key, value["name"], name)
            inner = _inner(field, registry, into.get(key))
            if inner is not None and isinstance(value, dict):
                self._merge(inner, into[key], value, origin, f"{name}.")
            elif isinstance(value, dict) and get_origin(field.annotation) is not dict:
                below = next(iter(value), "")
                raise InputError(f"there is no setting called '{name}.{below}' (from {origin})")
            else:
                into[key] = value
                self._origins[name] = origin

    def _choose_part(self, registry: Registry, into: Tree, key: str, part: Any, name: str) -> None:
        """Take another part: its predecessor's values go, but for those of a common ancestor."""
        old = into.get(key, {})
        if old.get("name") == part:
            return
        new = registry.load(str(part))
        shared = _shared(registry.load(old["name"]), new) if "name" in old else ()
        into[key] = _defaults(new) | {field: old[field] for field in shared}
        for origin in [o for o in self._origins if o.startswith(f"{name}.")]:
            if origin.removeprefix(f"{name}.") not in shared:
                del self._origins[origin]

    def check(self) -> Resolved[Any]:
        try:
            return Resolved(self._cls.model_validate(self._values), self._origins)
        except ValidationError as error:
            needed = any(one["type"] == "missing" for one in error.errors(include_url=False))
            hint = "--help shows what is needed" if needed else None
            raise InputError(self._explain(error), hint) from None

    def _explain(self, error: ValidationError) -> str:
        first, *others = error.errors(include_url=False)
        name = ".".join(str(step) for step in first["loc"])
        if first["type"] == "missing":
            return f"{name.upper()} is missing"
        message = first["msg"].removeprefix("Value error, ")
        message = message.replace("Input should be", "should be", 1)
        origins = [o for n, o in self._origins.items() if n == name]
        got = f" (got {_short(first['input'])}" if not isinstance(first["input"], dict) else ""
        if got:
            got += f", from {origins[0]})" if origins else ")"
        more = f"; and {len(others)} more" if others else ""
        return f"{name}: {message}{got}{more}" if name else f"{message}{more}"


def storable(settings: Settings) -> Tree:
    """Settings as they are kept in a file: no places, nothing that is unset."""
    places = set(getattr(settings, "PLACES", ()))
    tree: Tree = settings.model_dump(mode="json", exclude=places, exclude_none=True)
    return tree


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _defaults(cls: type[Settings]) -> Tree:
    tree: Tree = {}
    for name, field in cls.model_fields.items():
        if not field.is_required():
            value = field.get_default(call_default_factory=True)
            tree[name] = _defaults(type(value)) if isinstance(value, Settings) else value
    return tree


def _shared(old: type[Settings], new: type[Settings]) -> tuple[str, ...]:
    """The fields that mean the same in both, because one is a kind of the other."""
    if not (issubclass(new, old) or issubclass(old, new)):
        return ()
    one, other = old.model_fields, new.model_fields
    names = one.keys() & other.keys()
    return tuple(n for n in names if one[n].annotation == other[n].annotation)


def _registry(field: FieldInfo) -> Registry | None:
    return next((m for m in field.metadata if isinstance(m, Registry)), None)


def _inner(field: FieldInfo, registry: Registry | None, current: Any) -> type[Settings] | None:
    """The settings class below a field, if there is one."""
    if registry is not None:
        inner: type[Settings] = registry.load(current["name"])
        return inner
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    return None
