"""Look at what a trained phase model does: its phases, memories, interference and concepts."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from effcli.engine.data.corpus import Corpus
from effcli.engine.data.opening import read_as
from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.device import Device
from effcli.engine.models.phase import Phase
from effcli.engine.phase import inspecting
from effcli.engine.phase.gradients import gradient_shares
from effcli.engine.phase.likeness import likeness, require_texts, text_length
from effcli.engine.phase.looking import facts, hear
from effcli.engine.phase.page import write_inspection
from effcli.engine.records import Notice, Watch, unwatched
from effcli.engine.runs.rundir import RunDir
from effcli.engine.runs.trained import open_trained
from effcli.errors import CheckError, InputError
from effcli.methods.report import require_ours
from effcli.settings.layers import CONFIG, read_toml
from effcli.settings.qllm import InspectSettings
from effcli.settings.train import DeviceSettings

CPU = DeviceSettings(name="cpu", compile="off", precision="float32")
PAGE = "inspect.html"
DRAWN = 64  # tokens of a text whose interference is drawn


@torch.no_grad()
def inspect(settings: InspectSettings, watch: Watch = unwatched) -> dict[str, Any]:
    """Measure the model of a run on held-out text, and draw it on a page."""
    run = settings.run
    page = settings.out or run / PAGE
    _require_room(page, run)
    model, tokenizer = open_trained(run, Device(CPU), lambda text: watch(Notice(text)))
    if not isinstance(model, Phase):
        message = f"the model of the run in {run} has no phases to look at"
        raise InputError(message, f"eff report {run} shows any run")
    given = None if settings.text is None else _ids(settings.text, tokenizer)
    corpus = _corpus(run)
    if settings.mauve is not None:
        _require_texts(corpus, settings, model, tokenizer)
    windows, name = _windows(settings, corpus, max(2, model.context), given)
    drawn = (windows[0] if given is None else given)[:DRAWN]
    heard = hear(model, windows)
    portrait, maps = inspecting.portrait(model, tokenizer, windows), inspecting.maps(model, drawn)
    names = [inspecting.label(tokenizer, token) for token in drawn.tolist()]
    document = {
        "schema": 1,
        "command": "qllm inspect",
        "run": str(run),
        "page": str(page),
        "measured": {
            "corpus": name,
            "windows": len(windows),
            "tokens": windows.numel(),
        },
        "phase": facts(model, heard),
        "portrait": portrait.told(),
        "gradients": gradient_shares(model, windows),
        "memories": inspecting.memories(model, heard),
        "widths": inspecting.widths(model, windows),
        "rotations": inspecting.rotations(model, heard),
        "text": {"is_given": given is not None, "tokens": names},
        "interference": [one.told() for one in maps],
        "concepts": inspecting.concepts(model, heard, windows, tokenizer),
        "mauve": None,
    }
    if settings.mauve is not None and corpus is not None:
        document["mauve"] = likeness(model, tokenizer, corpus.val, settings.mauve, watch)
    write_inspection(page, document, portrait, maps, inspecting.histograms(model, heard))
    return document


def _require_room(page: Path, run: Path) -> None:
    """Refuse a place where no page can be, before anything is measured."""
    require_ours(page)
    if page.parent != run and not page.parent.is_dir():
        raise InputError(f"there is no folder {page.parent}", "choose another --out")


def _require_texts(
    corpus: Corpus | None, settings: InspectSettings, model: Phase, tokenizer: Tokenizer
) -> None:
    """Refuse to compare texts with what is not there, before anything is measured."""
    if corpus is None:
        message = f"mauve: the held-out text of the run in {settings.run} is not there any more"
        raise InputError(message, "leave out --mauve")
    assert settings.mauve is not None
    require_texts(corpus.val, tokenizer, settings.mauve, text_length(model))


def _ids(text: str, tokenizer: Tokenizer) -> Tensor:
    ids = torch.from_numpy(tokenizer.encode(text).astype("int64"))
    if len(ids) < 2:
        raise InputError("text: is shorter than two tokens, of which one could read the other")
    return ids


def _windows(
    settings: InspectSettings, corpus: Corpus | None, length: int, given: Tensor | None
) -> tuple[Tensor, str | None]:
    """Held-out text and the name of its corpus; without one, the text given."""
    if corpus is not None and len(starts := corpus.val.spread(length, settings.windows)):
        return torch.from_numpy(corpus.val.read(starts, length)), corpus.name
    if given is None:
        there = "is not there any more" if corpus is None else f"has no {length} tokens"
        message = f"the held-out text of the run in {settings.run} {there}"
        raise InputError(message, "give a text to look at with --text")
    length = min(length, len(given))
    rows = min(settings.windows, len(given) // length)
    return given[: rows * length].view(rows, length), None


def _corpus(run: Path) -> Corpus | None:
    """The text that a run was trained on, if it is where it was, and is what it was."""
    wanted, config = RunDir(run).env()["corpus"], read_toml(run / CONFIG)
    for name in (config.get("data"), wanted.get("name")):
        with suppress(InputError, CheckError, TypeError):
            corpus = read_as(name, config.get("text_share", 1.0), config.get("languages", ()))
            if corpus.hash == wanted.get("hash"):
                return corpus
    return None
