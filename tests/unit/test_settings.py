"""Layers, origins, names and numbers of settings."""

import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from effcli.errors import InputError
from effcli.settings import presets
from effcli.settings.base import parse_number
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import parse_assignments, resolve, storable
from effcli.settings.prepare import PrepareSettings
from effcli.settings.train import BUDGETS


def _resolve(
    flags: dict[str, Any] | None = None, sets: list[str] | None = None, config: Any = None
) -> Any:
    return resolve(BaselineSettings, flags or {}, sets or [], config)


def test_later_layers_win_and_say_so(place: Path) -> None:
    (place / "a.toml").write_text("seed = 3\neval_every = 7\n[model]\nlayers = 5\n")
    resolved = _resolve({"seed": "4"}, ["model.width=64", "eval_every=9"], place / "a.toml")
    assert (resolved.settings.seed, resolved.settings.eval_every) == (4, 9)
    assert (resolved.settings.model.layers, resolved.settings.model.width) == (5, 64)
    assert resolved.origins["seed"] == "the command line"
    assert resolved.origins["eval_every"] == "--set"
    assert resolved.origins["model.layers"] == "a.toml"
    assert resolved.origins["model.context"] == "preset nano"
    assert resolved.origins["model.norm"] == "recipe modern"
    assert "keep" not in resolved.origins


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("recipe", [None, *presets.RECIPES])
def test_every_preset_is_valid_in_every_recipe(preset: str, recipe: str | None) -> None:
    flags = {"preset": preset} | ({"recipe": recipe} if recipe else {})
    settings = _resolve(flags).settings
    assert settings.recipe == (recipe or presets.read(preset)["recipe"])
    assert settings.optim.name == ("muon" if settings.recipe == "modern" else "adamw")
    assert any(getattr(settings, budget) for budget in BUDGETS)


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("recipe", presets.RECIPES)
def test_a_run_can_be_repeated_from_its_file(preset: str, recipe: str, place: Path) -> None:
    first = _resolve({"preset": preset, "recipe": recipe, "seed": "5"}, ["optim.lr=0.123"]).settings
    (place / "config.toml").write_text(tomli_w.dumps(storable(first)))
    assert _resolve(config=place / "config.toml").settings == first


def test_a_budget_replaces_the_budgets_below_it(place: Path) -> None:
    assert _resolve().settings.tokens == 1_500_000
    settings = _resolve({"steps": "100000"}).settings
    assert (settings.steps, settings.tokens) == (100_000, None)
    (place / "a.toml").write_text("minutes = 3\n")
    settings = _resolve({"flops": "1e12"}, config=place / "a.toml").settings
    assert (settings.flops, settings.minutes) == (1e12, None)
    both = _resolve({"steps": "5", "tokens": "1k"}).settings
    assert (both.steps, both.tokens) == (5, 1000)


def test_another_part_drops_the_settings_of_its_predecessor() -> None:
    settings = _resolve(sets=["optim.name=adamw", "schedule=cosine"]).settings
    assert settings.optim.model_dump().keys().isdisjoint({"momentum"})
    assert settings.optim.embedding_rate == 1.0
    assert settings.optim.lr == 1e-3
    assert settings.schedule.name == "cosine"
    kept = _resolve(sets=["optim.name=muon", "optim.momentum=0.9"]).settings
    assert (kept.optim.momentum, kept.optim.lr) == (0.9, 0.02)


@pytest.mark.parametrize(
    ("flags", "sets", "message", "hint"),
    [
        ({}, ["mdoel.layers=2"], "no setting called 'mdoel'", "did you mean 'model'?"),
        ({}, ["model.layer=2"], "no setting called 'model.layer'", "did you mean 'layers'?"),
        ({}, ["optim.momentums=1"], "no setting called 'optim.momentums'", "momentum"),
        ({}, ["optim.name=adam"], "no optimizer called 'adam'", "adamw"),
        ({}, ["schedule=wds"], "no schedule called 'wds'", "wsd"),
        ({"preset": "nona"}, [], "no preset called 'nona'", "nano"),
        ({"recipe": "textbok"}, [], "no recipe called 'textbok'", "textbook"),
        ({"optim.lr": "-1"}, [], "optim.lr: should be greater than 0 (got '-1'", None),
        ({"steps": "ten"}, [], "steps: should be a valid integer", None),
        ({"steps": "0"}, [], "steps: should be greater than or equal to 1", None),
        ({}, ["model.layers"], "not of the form name=value", None),
        ({}, ["model.width=7"], "not a multiple of 2 heads", None),
        ({}, ["model.context=4", "model.shift=4"], "beyond a context of 4", None),
        ({}, ["schedule.warmup=0.7"], "more than the whole run", None),
        ({}, ["batch.micro=64"], "micro 64 is more than the 32 sequences of a step", None),
        ({}, ["optim.lr=nan"], "optim.lr", None),
        ({}, ["model=3"], "model", None),
        ({}, ["optim.momentum=0.9", "optim.name=adamw"], "optim.momentum", None),
        (
            {"recipe": "textbook"},
            ["optim.momentum=0.9"],
            "no setting called 'optim.momentum'",
            None,
        ),
    ],
)
def test_a_mistake_is_one_line_with_a_hint(
    flags: dict[str, Any], sets: list[str], message: str, hint: str | None
) -> None:
    with pytest.raises(InputError) as raised:
        _resolve(flags, sets)
    assert message in raised.value.message
    assert "\n" not in raised.value.message
    if hint is not None:
        assert hint in (raised.value.hint or "")


def test_a_preset_that_would_do_nothing_is_an_error(place: Path) -> None:
    (place / "a.toml").write_text('preset = "tiny"\n')
    with pytest.raises(InputError, match=r"preset is 'tiny' in a\.toml and 'small' in the command"):
        _resolve({"preset": "small"}, config=place / "a.toml")
    assert _resolve({"preset": "tiny"}, config=place / "a.toml").settings.preset == "tiny"


@pytest.mark.parametrize(
    ("content", "message"),
    [("a = = 1", "not valid TOML"), ("nonsense = 1", "no setting called 'nonsense' (from a.toml)")],
)
def test_a_bad_file_is_named(place: Path, content: str, message: str) -> None:
    (place / "a.toml").write_text(content)
    with pytest.raises(InputError) as raised:
        _resolve(config=place / "a.toml")
    assert message in raised.value.message


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 9000, "{a=" * 3000])
def test_what_is_beyond_all_bounds_is_a_mistake_like_any_other(place: Path, text: str) -> None:
    (place / "my.toml").write_text(f"steps = {text}\n")
    with pytest.raises(InputError, match=r"my\.toml is not valid TOML"):
        resolve(BaselineSettings, {}, (), place / "my.toml")
    with pytest.raises(InputError, match="keep"):
        resolve(BaselineSettings, {}, [f"keep={text}"])


def test_a_settings_file_is_small(place: Path) -> None:
    (place / "my.toml").write_text(f"{'.'.join(['a'] * 20_000)} = 1\n")
    with pytest.raises(InputError, match="too large"):
        resolve(BaselineSettings, {}, (), place / "my.toml")


def test_a_missing_file_is_named(place: Path) -> None:
    with pytest.raises(InputError, match="there is no settings file"):
        _resolve(config=place / "none.toml")


@pytest.mark.parametrize(
    ("text", "number"),
    [("2M", 2_000_000), ("1.5b", 1_500_000_000), ("30k", 30_000), ("1e9", 10**9), ("1_000", 1000)],
)
def test_numbers_may_be_written_as_people_do(text: str, number: int) -> None:
    assert parse_number(text) == number
    assert _resolve({"tokens": text}).settings.tokens == number


@given(st.text(max_size=30))
def test_no_text_breaks_the_number_parser(text: str) -> None:
    parse_number(text)


@given(st.lists(st.text(max_size=20), max_size=4))
def test_no_text_breaks_assignments(texts: list[str]) -> None:
    with suppress(InputError):
        parse_assignments(texts)


def test_settings_cannot_be_changed() -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        _resolve().settings.seed = 3


def test_every_setting_is_documented() -> None:
    from effcli import catalog

    classes: list[Any] = [BaselineSettings, PrepareSettings]
    for registry in (catalog.MODELS, catalog.OPTIMIZERS, catalog.SCHEDULES):
        classes += [registry.load(name) for name in registry]
    for cls in classes:
        for name, field in cls.model_fields.items():
            is_group = hasattr(field.annotation, "model_fields")
            assert field.description or is_group or name == "name", f"{cls.__name__}.{name}"


def test_settings_of_presets_hold_only_differences() -> None:
    for preset in presets.PRESETS:
        text = presets.files("effcli.settings.presets").joinpath(f"{preset}.toml").read_text()
        content = tomllib.loads(text)
        assert content["recipe"] in presets.RECIPES
        assert "seed" not in content
