"""Hostile settings, tokenizers, corpora and runs: consistent in themselves, and made to harm."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from effcli.engine.data.corpus import manifest_hash
from effcli.engine.data.write import describe_file
from effcli.engine.runs import checkpoint
from reliability.harness import eff, need, prepared, training
from reliability.hostile_sources import pickled

Case = tuple[Callable[[Path], list[Any]], tuple[int, ...]]
THREADS = ["--set", "device.threads=1"]
DEEP = 100_000


def _settings(corpus: Path) -> dict[str, Case]:
    """Settings files and assignments."""
    texts: dict[str, str | bytes] = {
        "a huge number": f"steps = {'9' * 5000}\n",
        "a large number": f"steps = {'9' * 26}\n[model]\nwidth = 1{'0' * 16}\n",
        "deep arrays": f"steps = {'[' * DEEP}{']' * DEEP}\n",
        "deep tables": f"steps = {'{a=' * DEEP}1{'}' * DEEP}\n",
        "a deep key": f"{'.'.join(['a'] * 20_000)} = 1\n",
        "NUL": 'data = "a\\u0000b"\n',
        "no text": b"\xff\xfe\x00",
        "no number": "[optim]\nlr = nan\n",
        "infinity": "[optim]\nlr = inf\n",
        "a long key": f"{'k' * 10_000_000} = 1\n",
        "a part from elsewhere": '[model]\nname = "os:system"\n',
        "a preset from elsewhere": 'preset = "../../../etc/passwd"\n',
        "escapes": 'preset = "\\u001b]52;c;cm0=\\u0007"\n',
        "a place as a table": "keep = {a = 1}\n",
    }

    def of(text: str | bytes) -> Callable[[Path], list[Any]]:
        def line(case: Path) -> list[Any]:
            path = case / "settings.toml"
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            if path.read_bytes().startswith(b"data"):
                return ["baseline", "--config", path, "--dry-run"]
            return ["baseline", "--config", path, *_where(corpus, case)]

        return line

    def assigned(text: str) -> Callable[[Path], list[Any]]:
        return lambda case: ["baseline", "--set", text, *_where(corpus, case)]

    files = {f"settings: {name}": (of(text), (2, 3)) for name, text in texts.items()}
    sets = {
        "--set: a huge number": (assigned(f"keep={'9' * 5000}"), (2,)),
        "--set: deep arrays": (assigned(f"keep={'[' * DEEP}"), (2,)),
        "--set: NUL": (assigned('preset="a\\u0000b"'), (2,)),
    }
    return {**files, **sets}


def _where(corpus: Path, case: Path) -> list[Any]:
    return ["--data", corpus, "--out", case / "out" / "run", "--dry-run", "--quiet", *THREADS]


def _rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps(change(content)), "utf8")


def _with(**changes: Any) -> Callable[[Any], Any]:
    return lambda content: {**content, **changes}


def _tokenizers(corpus: Path) -> dict[str, Case]:
    """Tokenizer files, in a corpus."""
    changes: dict[str, Callable[[Any], Any]] = {
        "missing bytes": lambda c: {**c, "tokens": c["tokens"][:200]},
        "twice the same": lambda c: {**c, "tokens": [*c["tokens"], c["tokens"][0]]},
        "an endless pattern": _with(pattern="(a+)+$"),
        "a far separator": _with(separator=2**60),
        "an infinite separator": _with(separator=float("inf")),
        "a huge number": _with(separator=int("9" * 4000)),
        "no map": lambda _: [],
        "numbers": lambda c: {**c, "tokens": list(range(300))},
        "nothing": lambda c: {**c, "tokens": []},
        "a name with escapes": _with(name="\x1b]0;x\x07"),
    }

    def of(change: Callable[[Any], Any]) -> Callable[[Path], list[Any]]:
        def line(case: Path) -> list[Any]:
            shutil.copytree(corpus, case / "corpus")
            _rewrite(case / "corpus" / "tokenizer.json", change)
            return training(case / "corpus", case / "out" / "run", steps=1)

        return line

    return {f"tokenizer: {name}": (of(change), (2,)) for name, change in changes.items()}


def _corpora(corpus: Path) -> dict[str, Case]:
    """Manifests whose own hash holds."""

    def split(**changes: Any) -> Callable[[Any], Any]:
        def change(manifest: Any) -> Any:
            manifest["splits"]["train"].update(changes)
            return manifest

        return change

    def ids(manifest: Any, folder: Path) -> Any:
        for name, described in manifest["splits"]["train"]["files"].items():
            if name.endswith(".bin"):
                (folder / name).write_bytes(b"\xff" * described["bytes"])
                manifest["splits"]["train"]["files"][name] = describe_file(folder / name)
        return manifest

    changes: dict[str, Callable[..., Any]] = {
        "more tokens than there are": split(tokens=10**15),
        "less than nothing": split(tokens=-5),
        "tokens as text": split(tokens="many"),
        "no shards": split(shards=[]),
        "shards elsewhere": split(shards=["../../../../../../../etc/passwd"] * 9),
        "objects": _with(dtype="object"),
        "unknown numbers": _with(dtype="<q9"),
        "empty shards": _with(shard_tokens=0),
        "no splits": _with(splits={}),
        "unknown ids": ids,
    }

    def of(change: Callable[..., Any]) -> Callable[[Path], list[Any]]:
        def line(case: Path) -> list[Any]:
            folder = case / "corpus"
            shutil.copytree(corpus, folder)
            manifest = json.loads((folder / "corpus.json").read_bytes())
            del manifest["sha256"]
            changed = change(manifest, folder) if change is ids else change(manifest)
            sealed = {**changed, "sha256": manifest_hash(changed)}
            (folder / "corpus.json").write_text(json.dumps(sealed), "utf8")
            return training(folder, case / "out" / "run", steps=1)

        return line

    return {f"corpus: {name}": (of(change), (2,)) for name, change in changes.items()}


def _header(entries: dict[str, Any], body: bytes = bytes(64)) -> bytes:
    head = json.dumps(entries).encode()
    return struct.pack("<Q", len(head)) + head + body


def _one(begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [16], "data_offsets": [begin, end]}


def _weights(run: Path) -> dict[str, Case]:
    """Weights whose hashes hold."""

    def values(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            save_file({k: change(v) for k, v in load_file(path).items()}, path)

        return write

    def raw(data: bytes) -> Callable[[Path], None]:
        return lambda path: path.write_bytes(data) and None

    changes: dict[str, tuple[Callable[[Path], Any], tuple[int, ...]]] = {
        "a pickle": (lambda path: path.write_bytes(pickled(path.parents[2])), (2,)),
        "a huge header": (raw(struct.pack("<Q", 2**60) + b"{}"), (2,)),
        "a long header": (raw(struct.pack("<Q", 90_000_000) + b" " * 90_000_000), (2,)),
        "a deep header": (raw(struct.pack("<Q", DEEP) + b"[" * DEEP), (2,)),
        "overlaps": (raw(_header({"a": _one(0, 64), "b": _one(0, 64)})), (2,)),
        "beyond its end": (raw(_header({"a": _one(0, 2**40)})), (2,)),
        "other tensors": (raw(_header({"a": _one(0, 64)})), (2,)),
        "other shapes": (values(lambda v: v.flatten()[:1].clone()), (2,)),
        "other numbers": (values(lambda v: v.to(torch.int8)), (2,)),
        "not a number": (values(lambda v: v * float("nan")), (2, 5)),
        "infinite": (values(lambda v: v + float("inf")), (2, 5)),
        "nothing": (raw(b""), (2,)),
    }

    def of(change: Callable[[Path], Any]) -> Callable[[Path], list[Any]]:
        def line(case: Path) -> list[Any]:
            _changed_run(run, case / "run", checkpoint.MODEL, change)
            return _generate(case / "run")

        return line

    return {f"weights: {name}": (of(change), codes) for name, (change, codes) in changes.items()}


def _changed_run(run: Path, copy: Path, name: str, change: Callable[[Path], Any]) -> None:
    """A copy of a run with one file of every checkpoint changed, and its hashes made to fit."""
    shutil.copytree(run, copy)
    for place in checkpoint.steps(copy / "checkpoints"):
        change(place / name)

        def fit(manifest: Any, path: Path = place / name) -> Any:
            manifest["files"][name] = describe_file(path)
            return manifest

        _rewrite(place / checkpoint.MANIFEST, fit)


def _generate(run: Path) -> list[Any]:
    return ["generate", run, "a", "--max-new-tokens", "2", "--quiet", *THREADS]


def _runs(run: Path) -> dict[str, Case]:
    """Other files of a run, and who reads them."""
    deep = "[" * DEEP + "]" * DEEP
    changes: list[tuple[str, str, str, str]] = [
        ("env.json", "no map", "[]", "generate"),
        ("env.json", "nothing in it", "{}", "generate"),
        ("env.json", "deep", deep, "generate"),
        ("env.json", "text for a map", '{"corpus": "x"}', "report"),
        ("records.jsonl", "deep", f'{{"kind": {deep}}}\n', "report"),
        ("records.jsonl", "a list for a kind", '{"kind": []}\n', "report"),
        ("records.jsonl", "nothing in a ledger", '{"kind": "ledger"}\n', "report"),
        ("records.jsonl", "not UTF-8", "\udcff\udcfe\n", "report"),
        ("tokenizer.json", "deep", deep, "generate"),
        ("config.toml", "no model", "steps = 1\n", "generate"),
        ("config.toml", "a model of nothing", '[model]\nname = "gpt"\nlayers = -1\n', "generate"),
        ("config.toml", "a model of text", 'model = "gpt"\n', "generate"),
        ("config.toml", "a giant", '[model]\nname = "gpt"\nwidth = 9999999996\n', "generate"),
        ("config.toml", "a model from elsewhere", '[model]\nname = "os:x"\n', "generate"),
        ("state.json", "no map", "[]", "generate"),
        ("state.json", "deep", deep, "generate"),
        ("files.json", "no map", "[]", "verify"),
        ("files.json", "elsewhere", '{"../../../../etc/passwd": {}}', "verify"),
    ]

    def of(name: str, text: str, command: str) -> Callable[[Path], list[Any]]:
        def write(path: Path) -> None:
            path.write_bytes(text.encode("utf8", errors="surrogateescape"))

        def forget(path: Path) -> None:
            """Whoever writes the settings can leave out their hash, too."""
            _rewrite(path, lambda state: {k: v for k, v in state.items() if k != "asked"})

        def line(case: Path) -> list[Any]:
            copy = case / "out" / "run"
            if name == checkpoint.STATE:
                _changed_run(run, copy, name, write)
            else:
                _changed_run(run, copy, checkpoint.STATE, forget)
                write(copy / name)
            return _generate(copy) if command == "generate" else [command, copy, "--quiet"]

        return line

    return {
        f"{name}: {what}": (of(name, text, command), (2, 3, 4))
        for name, what, text, command in changes
    }


def run_cases(work: Path) -> dict[str, Case]:
    """Command lines by name, and the exit codes that they may end with."""
    corpus = prepared(work)
    run = work / "trained"
    need(eff(work, *training(corpus, run, steps=4, save_every=2)))
    made = (_settings(corpus), _tokenizers(corpus), _corpora(corpus), _weights(run), _runs(run))
    return {name: case for cases in made for name, case in cases.items()}
