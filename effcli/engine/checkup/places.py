"""Where things are kept, whether there is room, and whether the hub can be reached."""

import hashlib
import os
import shutil
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from effcli.engine.checkup.rows import Row, Status
from effcli.engine.measure.peak import cache_folder
from effcli.engine.runs.rundir import root as runs_root
from effcli.offline import is_offline
from effcli.settings.corpora import prepared
from effcli.settings.corpora import root as corpora_root
from effcli.units import size

LEAST_FREE = 10**9
HUB = "https://huggingface.co"
HUB_SECONDS = 3.0
_BLOBS = "https://openaipublic.blob.core.windows.net"
PUBLISHED = {
    "gpt2": ("gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json"),
    "cl100k": ("encodings/cl100k_base.tiktoken",),
    "o200k": ("encodings/o200k_base.tiktoken",),
}


def places() -> Iterator[Row]:
    """The folders of runs, corpora and facts about this machine, and what is in them."""
    corpora = prepared()
    yield _place("runs", runs_root(), "EFF_RUNS", "missing")
    # Training only reads a corpus; to make one there must be a place for it.
    yield _place("corpora", corpora_root(), "EFF_DATA", "note" if corpora else "missing")
    yield _place("cache", cache_folder(), "EFF_CACHE", "note")
    if corpora:
        yield Row("prepared", "ok", ", ".join(corpora), number=len(corpora))
    else:
        yield Row("prepared", "note", "no corpus yet", "eff prepare makes one", 0)


def _place(name: str, folder: Path, variable: str, bad: Status) -> Row:
    shown = f"{folder.absolute()} ({variable if os.environ.get(variable) else 'default'})"
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    hint = f"set {variable} to another folder"
    if not there.is_dir():
        return Row(name, bad, f"{shown}: {there} is not a folder", hint)
    if not os.access(there, os.W_OK | os.X_OK):
        return Row(name, bad, f"{shown}: cannot be written", hint)
    free = shutil.disk_usage(there).free
    if free < LEAST_FREE:
        return Row(name, bad, f"{shown}: only {size(free)} free", f"make room, or {hint}", free)
    return Row(name, "ok", f"{shown}, {size(free)} free", number=free)


def tokenizers() -> Iterator[Row]:
    """Which published tokenizers need no network any more."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder is None:
        folder = str(Path(tempfile.gettempdir()) / "data-gym-cache")
    here = [
        name
        for name, files in PUBLISHED.items()
        if folder and all((Path(folder) / _key(file)).is_file() for file in files)
    ]
    lacking = [name for name in PUBLISHED if name not in here]
    shown = f"{', '.join(here) or 'none'} in {folder or 'no cache'}"
    hint = f"{', '.join(lacking)}: downloaded at the first use; bytes and bpe:N need no network"
    yield Row("tokenizers", "note" if lacking else "ok", shown, hint if lacking else None)


def _key(file: str) -> str:
    """The name that tiktoken gives to a file in its cache."""
    return hashlib.sha1(f"{_BLOBS}/{file}".encode(), usedforsecurity=False).hexdigest()


def hub() -> Iterator[Row]:
    """Whether the hub answers; asked in a thread, since to look up a name can take minutes."""
    endpoint = os.environ.get("HF_ENDPOINT") or HUB
    parts = urllib.parse.urlsplit(endpoint)
    name = f"{parts.scheme}://{parts.hostname}"  # whoever puts a password into it keeps it
    if is_offline() or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Row("hub", "note", f"{name} was not asked: offline")
        return
    if parts.scheme not in ("http", "https") or not parts.hostname:
        yield Row("hub", "note", f"HF_ENDPOINT is not a web address: {name}", f"as in {HUB}")
        return
    answer: list[str | None] = []
    thread = threading.Thread(target=lambda: answer.append(_failure(endpoint)), daemon=True)
    thread.start()
    thread.join(HUB_SECONDS + 1)
    failure = answer[0] if answer else "no answer in time"
    if failure is None:
        yield Row("hub", "ok", f"{name} answers")
    else:
        hint = "named corpora and gpt2 need it; local files, `python` and grammar:SEED do not"
        yield Row("hub", "note", f"{name} cannot be reached: {failure}", hint)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows nothing: any answer is one."""

    def redirect_request(self, *_: Any) -> None:
        """Let the redirection be the answer."""
        return


def _failure(endpoint: str) -> str | None:
    request = urllib.request.Request(endpoint, method="HEAD", headers={"User-Agent": "eff"})
    try:
        urllib.request.build_opener(_Stay).open(request, timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
    except Exception as error:
        reason = getattr(error, "reason", error)
        return (str(reason).strip() or type(error).__name__).splitlines()[0][:120]
    return None
