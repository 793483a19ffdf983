"""Names lead to parts, also those of other packages."""

import math
import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from effcli import registry
from effcli.errors import InputError
from effcli.registry import Registry


def test_a_part_is_loaded_by_name() -> None:
    assert Registry("tool", {"dumps": "json:dumps"}).load("dumps")({}) == "{}"


def test_an_unknown_name_gets_a_hint() -> None:
    tools = Registry("tool", {"hammer": "a:b", "saw": "c:d"})
    with pytest.raises(InputError) as raised:
        tools.load("hamer")
    assert raised.value.message == "there is no tool called 'hamer'"
    assert raised.value.hint == "did you mean 'hammer'?"
    with pytest.raises(InputError) as raised:
        tools["zzz"]
    assert raised.value.hint == "known: hammer, saw"


def test_nothing_is_imported_before_it_is_used() -> None:
    Registry("tool", {"ghost": "no_such_module:thing"})
    assert "ghost" in Registry("tool", {"ghost": "no_such_module:thing"})


def test_other_packages_add_parts_and_cannot_replace_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("a_guest")
    module.part = lambda: "from outside"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_guest", module)
    points = [
        EntryPoint("tool.guest", "a_guest:part", registry.ENTRY_POINTS),
        EntryPoint("tool.hammer", "a_guest:part", registry.ENTRY_POINTS),
        EntryPoint("other.thing", "a_guest:part", registry.ENTRY_POINTS),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    tools = Registry("tool", {"hammer": "json:dumps"})
    assert set(tools) == {"hammer", "guest"}
    assert tools.load("guest")() == "from outside"
    assert tools["hammer"] == "json:dumps"


def test_a_script_adds_parts_and_cannot_replace_ours() -> None:
    registry = Registry("thing", {"ours": "math:pi"})
    registry.add("theirs", "math:e")
    assert registry.load("theirs") == math.e
    assert list(registry) == ["ours", "theirs"]
    for name in ("ours", "theirs"):
        with pytest.raises(InputError, match="already"):
            registry.add(name, "math:tau")
    assert registry.load("ours") == math.pi
