"""Named starting points: sizes (presets) and ways to build and train (recipes), as TOML."""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

RECIPES = ("modern", "textbook")
PRESETS = ("nano", "tiny", "small", "base", "seed", "gpt2", "gpt2-medium")


@cache
def read(name: str) -> dict[str, Any]:
    """The content of the preset or recipe called `name`."""
    text = files("effcli.settings.presets").joinpath(f"{name}.toml").read_text("utf8")
    return tomllib.loads(text)
