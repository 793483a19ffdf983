"""The text that is on every machine: the sources and documentation of Python itself."""

import ast
import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from effcli.engine.data.source import SPLITS, Row, digest
from effcli.errors import InputError

_LEFT_OUT = {"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"}
_TOPICS = "pydoc_data/topics.py"  # generated; its content is read as topics, not as source
_HELD_OUT = 0.05


class StandardLibrary:
    """`python`: the standard library as installed; `python:docs`: its prose only.

    Split by a hash of the file's name. The text depends on the Python version, so
    results compare only between corpora with the same manifest.
    """

    splits = frozenset(SPLITS)
    tokenizer = "bpe:4096"
    held_out_share = _HELD_OUT
    used: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, view: str = "") -> None:
        if view not in ("", "docs"):
            raise InputError(f"python:{view}: there is no such view", "python or python:docs")
        self.name = f"python-{view}" if view else "python"
        self._docs_only = view == "docs"
        self._root = Path(sysconfig.get_paths()["stdlib"])
        self._share = 0.0

    @cached_property
    def _files(self) -> list[str]:
        files = (path.relative_to(self._root) for path in self._root.rglob("*.py"))
        kept = sorted(f.as_posix() for f in files if not _LEFT_OUT.intersection(f.parts))
        return [name for name in kept if name != _TOPICS]

    def rows(self, split: str) -> Iterator[Row]:
        """Files and help topics whose name falls into the split."""
        names = [name for name in self._files if _split_of(name) == split]
        for index, name in enumerate(names):
            self._share = index / len(names)
            data = (self._root / name).read_bytes()
            text = _prose(data) if self._docs_only else data
            if text.strip():  # many a package has an empty __init__.py
                yield Row(text)
        for topic, text in _topics().items():
            if _split_of(f"{_TOPICS}:{topic}") == split:
                yield Row(text)

    def share_read(self) -> float | None:
        """How many of the split's files have been read."""
        return self._share

    def stamp(self) -> str:
        """Python's version."""
        return platform.python_version()

    def describe(self) -> dict[str, Any]:
        """Python's version, and a hash of every file."""
        files = {f: hashlib.sha256((self._root / f).read_bytes()).hexdigest() for f in self._files}
        topics = hashlib.sha256(repr(sorted(_topics().items())).encode()).hexdigest()
        return {
            "kind": "python",
            "view": "docs" if self._docs_only else "all",
            "python": platform.python_version(),
            "license": "PSF-2.0",
            "files": {**files, _TOPICS: topics},
        }


def _split_of(name: str) -> str:
    at = digest(name.encode()) / 2**64
    if at < _HELD_OUT:
        return "val"
    return "test" if at < 2 * _HELD_OUT else "train"


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some systems ship Python without its documentation
        return {}
    return topics


def _prose(data: bytes) -> str:
    """All docstrings of a module, in order."""
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError):  # some files of the library are broken on purpose
        return ""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            line = getattr(node, "lineno", 0)
            found.append((line, ast.get_docstring(node) or ""))
    return "\n\n".join(text for _, text in sorted(found) if text)
