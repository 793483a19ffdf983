"""What tests share: a tiny corpus, tiny settings, fixed seeds, places of their own."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

os.environ["MPLBACKEND"] = "svg"

import numpy as np
import pytest
import torch
from hypothesis import settings
from matplotlib.figure import Figure

from effcli.engine.data.corpus import Corpus
from effcli.engine.data.prepare import prepare
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve
from effcli.settings.prepare import PrepareSettings

# A test that is slow on a busy machine is not wrong.
settings.register_profile("patient", deadline=None, max_examples=50)
settings.load_profile("patient")

TINY = [
    "model.layers=2",
    "model.width=32",
    "model.heads=2",
    "model.context=32",
    "batch.sequences=4",
    "evaluation.tokens=640",
    "evaluation.samples=0",
    "device.threads=1",
    "device.compile=off",
    "device.precision=float32",
]


_draw = Figure.savefig


def _leave_blank(_: Figure, stream: TextIO, **__: Any) -> None:
    """Nothing to see, and as large as a figure."""
    stream.write(f"<svg>{' ' * 30_000}</svg>")


@contextmanager
def drawing() -> Iterator[None]:
    """Figures are drawn. Elsewhere they are only made: a page's take longer than a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _draw)
        yield


@pytest.fixture
def draws() -> Iterator[None]:
    """For tests of what is in a figure."""
    with drawing():
        yield


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches of the tests' own, shared by the whole session, and figures that stay blank."""
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setenv("EFF_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(Figure, "savefig", _leave_blank)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and the same random numbers in every test."""
    monkeypatch.chdir(tmp_path)
    for name in ("EFF_DATA", "EFF_RUNS", "NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    torch.manual_seed(0)
    np.random.seed(0)
    return tmp_path


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grammar corpus of bytes."""
    folder = tmp_path_factory.mktemp("corpora") / "grammar"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFF_DATA", str(folder.parent))
        sources, tokens = ("grammar:1",), 60_000
        prepare(PrepareSettings(sources=sources, max_tokens=tokens, out=folder))
    return folder


@pytest.fixture
def corpus(corpus_folder: Path) -> Corpus:
    """The grammar corpus, opened."""
    return Corpus.open(corpus_folder)


Settings = Callable[..., BaselineSettings]


@pytest.fixture(scope="session")
def bare(corpus_folder: Path) -> Settings:
    """Makes settings of a tiny model that say nothing of budgets and looks."""

    def make(*assignments: str, **flags: Any) -> BaselineSettings:
        flags = {"data": str(corpus_folder), **flags}
        return resolve(BaselineSettings, flags, [*TINY, *assignments]).settings

    return make


@pytest.fixture
def tiny(bare: Settings) -> Settings:
    """Makes settings of a model of 30k weights: `tiny("optim.lr=0.1", steps=5)`."""

    def make(*assignments: str, **flags: Any) -> BaselineSettings:
        flags.setdefault("steps", 6)
        if {"tokens", "flops", "minutes"} & set(flags):
            del flags["steps"]
        return bare(*assignments, **{"eval_every": 0, "save_every": 0, **flags})

    return make


@pytest.fixture
def eff(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in this process: `code, out, err = eff("baseline", ...)`."""
    from effcli.app import run

    def call(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="rewrite the golden files")
