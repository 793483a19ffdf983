"""Text becomes a corpus: once, whole or not at all."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from effcli.engine.data import tokenizers
from effcli.engine.data.corpus import Corpus, remember, tokenizer_of
from effcli.engine.data.job import Job
from effcli.engine.data.sources import Plan, open_source, open_sources, plan
from effcli.engine.records import Stop, Watch, never, unwatched
from effcli.engine.runs.files import sync_folder
from effcli.engine.runs.lock import locked
from effcli.errors import InputError
from effcli.settings.corpora import CORPUS_FILE, root
from effcli.settings.prepare import PrepareSettings


def prepare(
    settings: PrepareSettings,
    given: Collection[str] = (),
    watch: Watch = unwatched,
    stop: Stop = never,
) -> dict[str, Any]:
    """Make the corpus that the settings describe, unless it is there already.

    `given` names the settings that the user gave: one that has no effect is an error.
    An interrupted preparation is continued.
    """
    chosen = plan(settings)
    tokenizers.parse(chosen.tokenizer)
    folder = settings.out or root() / chosen.corpus
    folder = folder if folder.name else folder.resolve()  # so that `.` has a name, too
    if settings.verify:
        corpus, _ = Corpus.verified(folder)
        return corpus.summary("verified")
    request = _request(settings, chosen)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock"), f"the preparation of {folder}"):
        status = "unchanged"
        if settings.force or not (folder / CORPUS_FILE).exists():
            if folder.exists() and not (folder / CORPUS_FILE).exists() and any(folder.iterdir()):
                raise InputError(f"{folder} holds something else", "choose another --out")
            sources = open_sources(chosen, settings, given)
            _replace(folder, Job(settings, chosen, request, sources, watch, stop).run(folder))
            status = "prepared"
        else:
            _check_same(folder, request, settings)
    remember(folder)
    return Corpus.open(folder).summary(status)


def _request(settings: PrepareSettings, chosen: Plan) -> dict[str, Any]:
    """What decides the content of a corpus, as far as the user said it."""
    asked = settings.model_dump(mode="json", exclude=set(settings.PLACES))
    kind, argument = tokenizers.parse(chosen.tokenizer)
    # By its hash: a corpus can get another tokenizer, and one corpus has several names.
    tokenizer = f"like:{tokenizer_of(argument).hash}" if kind == "like" else chosen.tokenizer
    return {**asked, "sources": list(chosen.names), "tokenizer": tokenizer}


def _check_same(folder: Path, request: dict[str, Any], settings: PrepareSettings) -> None:
    manifest = Corpus.open(folder).manifest
    if changed := [name for name in request if request[name] != manifest["request"].get(name)]:
        message = f"{folder} was prepared with other settings ({', '.join(changed)})"
        raise InputError(message, "choose another --out, or replace it with --force")
    known = zip(request["sources"], manifest["sources"], manifest["stamps"], strict=True)
    for name, described, stamp in known:
        if described["kind"] != "local":
            continue  # cannot change, or is asked for by name: whoever wants news has --force
        source = open_source(name, settings)
        if source.stamp() != stamp and source.describe() != described:
            message = f"{name} is not the text any more that {folder} was prepared from"
            raise InputError(message, "choose another --out, or replace the corpus with --force")


def _replace(folder: Path, work: Path) -> None:
    """Put the finished work where the corpus belongs; an old one goes only then."""
    old = folder.with_name(f"{folder.name}.old-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    work.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
