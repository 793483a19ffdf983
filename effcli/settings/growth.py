"""The sizes of a model that grows, and when it has them."""

import re
from itertools import pairwise

from effcli.settings.model import GPTSettings

_STAGE = re.compile(r"(\d{1,6})(%?)@(0|\d{1,3}(?:\.\d+)?%)")
Stage = tuple[float, GPTSettings]
"""The share of the budget that it begins at, and the model in it."""


def steps_of(text: str, name: str, whole: int) -> list[tuple[float, int]]:
    """Shares of the budget and what there is from each on: of `256@0,512@30%`, (0, 256), (.3, 512).

    Of a `whole` of 512, `50%@0,100%@30%` is the same. Raises ValueError with a line that names
    the setting.
    """
    found: list[tuple[float, int]] = []
    for item in text.split(","):
        if (match := _STAGE.fullmatch(item.strip())) is None:
            raise ValueError(f"{name}: {item.strip()!r} is not of the form 512@30%")
        size = int(match[1])
        if match[2]:
            size, rest = divmod(size * whole, 100)
            if rest:
                raise ValueError(f"{name}: {match[1]}% of {whole} is no whole number")
        found.append((float(match[3].rstrip("%")) / 100, size))
    if found[0][0] != 0:
        raise ValueError(f"{name}: the first is what it begins with: {found[0][1]}@0")
    if len(found) < 2:
        raise ValueError(f"{name}: one size is no growth")
    for (earlier, small), (later, large) in pairwise(found):
        if not earlier < later < 1:
            raise ValueError(f"{name}: shares of the budget rise, below 100%")
        if not 0 < small < large:
            raise ValueError(f"{name}: sizes rise: {large} comes after {small}")
    return found


def stages_of(model: GPTSettings, widths: str | None, depths: str | None) -> tuple[Stage, ...]:
    """Every model that a run has, in order; the last is `model`.

    Raises ValueError with one line where they do not end there, or heads would be cut.
    """
    channels = model.width // model.heads
    told = {"width": [(0.0, model.width)], "layers": [(0.0, model.layers)]}
    for field, text, name in (("width", widths, "grow"), ("layers", depths, "grow_depth")):
        if text is not None:
            told[field] = steps_of(text, name, getattr(model, field))
        if (last := told[field][-1][1]) != (own := getattr(model, field)):
            raise ValueError(f"{name} ends with {last}, and model.{field} is {own}")
    for _, width in told["width"]:
        if width % channels:
            raise ValueError(f"grow: width {width} is no multiple of a head's {channels} channels")
    stages = []
    for share in sorted({share for steps in told.values() for share, _ in steps}):
        size = {
            field: max(value for begin, value in steps if begin <= share)
            for field, steps in told.items()
        }
        size["heads"] = size["width"] // channels
        stages.append((share, type(model).model_validate({**model.model_dump(), **size})))
    return tuple(stages)
