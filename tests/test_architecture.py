"""The house is still the house: who imports whom, and how big things are."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "effcli"
FILES = sorted(ROOT.rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION, MOST_ARGUMENTS = 300, 50, 8

BASE = {"errors", "registry", "catalog", "safe", "offline", "units", "launch"}
ROOMS = {
    # room: (rooms of the house it may import, outside libraries it may import)
    "errors": (set(), set()),
    "safe": (set(), set()),
    "units": (set(), set()),
    "offline": (set(), set()),
    "launch": (set(), set()),
    "registry": ({"errors"}, set()),
    "catalog": ({"registry"}, set()),
    "settings": ({"errors", "registry", "catalog", "settings"}, {"pydantic", "pydantic_core"}),
    "engine": (
        {
            "errors",
            "registry",
            "catalog",
            "safe",
            "offline",
            "units",
            "launch",
            "settings",
            "engine",
        },
        {"torch", "numpy", "datasets", "huggingface_hub", "tiktoken", "tokenizers", "rustbpe"}
        | {"pyarrow", "safetensors", "filelock", "jaxtyping", "pydantic", "pynvml"}
        | {"tomli_w", "jinja2", "markupsafe", "matplotlib", "scipy", "rensa"}
        | {"sklearn", "threadpoolctl", "gguf", "fla"},
    ),
    "methods": (
        {"errors", "registry", "catalog", "settings", "engine", "methods"},
        {"torch", "scipy"},
    ),
    "ui": ({"errors", "safe", "units", "ui"}, {"rich"}),
    "commands": (BASE | {"settings", "ui", "commands"}, {"typer", "rich"}),
    "app": (BASE | {"settings", "ui", "commands"}, {"typer"}),
    "__main__": ({"app"}, set()),
    "__init__": (set(), set()),
}
EXCEPTIONS = {
    ("settings/flags.py", "typer"),  # the one file that turns settings into flags
    ("ui/progress.py", "effcli.engine.records"),  # types of facts, nothing that works
    ("ui/standing.py", "effcli.engine.records"),
}


def _room(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every imported module, and whether it is imported inside a function."""
    tree = ast.parse(path.read_text("utf8"))
    inner = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in inner
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node in inner


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_room_imports_only_what_the_plan_allows(path: Path) -> None:
    own, outside = ROOMS[_room(path)]
    for module, is_inside in _imports(path):
        place = str(path.relative_to(ROOT))
        top = module.split(".")[0]
        if (place, module) in EXCEPTIONS or (place, top) in EXCEPTIONS:
            continue
        if top in sys.stdlib_module_names or module == "effcli":
            continue
        if top == "effcli":
            room = module.split(".")[1]
            allowed = own | (
                {"methods", "engine"} if is_inside and _room(path) == "commands" else set()
            )
            assert room in allowed, f"{place} imports {module}"
        else:
            assert top in outside, f"{place} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_grows_beyond_its_ceiling(path: Path) -> None:
    text = path.read_text("utf8")
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            arguments = [a for a in node.args.args + node.args.kwonlyargs if a.arg != "self"]
            assert lines <= LONGEST_FUNCTION, f"{node.name} has {lines} lines"
            assert len(arguments) <= MOST_ARGUMENTS, f"{node.name} has {len(arguments)} arguments"


def test_the_engine_never_prints() -> None:
    for path in ROOT.joinpath("engine").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            assert not (is_call and node.func.id == "print"), path


def test_every_part_of_the_catalog_exists() -> None:
    from effcli import catalog
    from effcli.registry import Registry

    registries = [value for value in vars(catalog).values() if isinstance(value, Registry)]
    assert registries
    for registry in registries:
        for name in registry:
            part = registry.load(name)
            assert callable(part) or is_dataclass(part)


def test_the_loop_is_one_page() -> None:
    tree = ast.parse((ROOT / "engine" / "loop.py").read_text("utf8"))
    loop = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "train")
    assert (loop.end_lineno or 0) - loop.lineno < 60
