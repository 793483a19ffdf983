"""Run a suite: every cell once, whoever started it; then say what the whole proves."""

import shutil
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from effcli.engine.bench.branch import branch
from effcli.engine.bench.document import PAGE, document_of, plan_of, write_document
from effcli.engine.bench.export import write_csv
from effcli.engine.bench.matrix import Cell
from effcli.engine.bench.outcome import outcome
from effcli.engine.bench.store import MOST_ATTEMPTS, Store
from effcli.engine.bench.work import DATABASE, Work, home, key_of
from effcli.engine.data.corpus import Corpus, locate
from effcli.engine.records import CellBegun, CellDone, Notice, Stop, Watch, never, unwatched
from effcli.engine.runs import checkpoint
from effcli.engine.runs.lock import Busy, locked
from effcli.engine.runs.rundir import CHECKPOINTS, CONFIG
from effcli.errors import DivergedError, InputError, OutOfMemory, ResourceError, Stopped
from effcli.methods import bench_speed
from effcli.settings.bench import BenchSettings
from effcli.settings.speed import SpeedSuite
from effcli.settings.suite import read_suite

LOCKS = "locks"
POLL = 1.0  # seconds between looks at what another process is doing


def run(settings: BenchSettings, watch: Watch = unwatched, stop: Stop = never) -> dict[str, Any]:
    """Run what is missing of a suite, and make its document; `show` makes it of what there is."""
    store = Store(home() / DATABASE)
    try:
        if settings.action != "run":
            return _known(settings, store)
        suite = read_suite(settings.suite)
        if isinstance(suite, SpeedSuite):
            return bench_speed.run(suite, settings, store, watch, stop)
        work = Work(settings, store)
        try:
            _Runner(work, settings, watch, stop).run()
        except Stopped as error:
            _reported(work, settings)
            hint = "the same command goes on; what is done is in the report"
            raise Stopped(error.signal_number, "finished cells are kept", hint) from None
        except ResourceError:
            with suppress(ResourceError, OSError):
                _reported(work, settings)
            raise
        return _reported(work, settings)
    finally:
        store.close()


def _known(settings: BenchSettings, store: Store) -> dict[str, Any]:
    corpus = None if settings.data is None else Corpus.open(locate(settings.data)).hash
    plan = store.plan(*key_of(settings.suite, settings.tier), corpus)
    if plan is None:
        message = f"nothing is known of {settings.suite} at tier {settings.tier} in {home()}"
        raise InputError(message, f"run `eff bench {settings.suite} --tier {settings.tier}`")
    if plan.get("kind") == "speed":
        return bench_speed.known(plan, settings, store)
    document = document_of(plan, store)
    if settings.csv is not None:
        write_csv(document, settings.csv)
    if settings.out is not None:
        write_document(document, settings.out)
        document["page"] = str(settings.out / PAGE)
    return document


def _reported(work: Work, settings: BenchSettings) -> dict[str, Any]:
    plan = _remembered(work, settings)
    document = document_of(plan, work.store)
    folder = settings.out or home() / f"{plan['suite']}-{settings.tier}"
    write_document(document, folder)
    return {**document, "page": str(folder / PAGE)}


def _remembered(work: Work, settings: BenchSettings) -> dict[str, Any]:
    plan = plan_of(work, settings)
    work.store.remember(*work.key, work.corpus.hash, plan)
    return plan


def plan_bench(settings: BenchSettings) -> dict[str, Any]:
    """What `--dry-run` shows: every cell with what it will cost."""
    if settings.action != "run":
        raise InputError(f"--dry-run has no effect on `{settings.action}`, which runs nothing")
    store = Store.glance(home() / DATABASE)
    try:
        suite = read_suite(settings.suite)
        if isinstance(suite, SpeedSuite):
            return bench_speed.plan_speed(suite, settings, store)
        work = Work(settings, store)
        rows = []
        for cell, shared in work.cells():
            flops = work.costs.flops(cell.settings, shared)
            is_done = store.finished(cell.id) is not None
            seconds = 0.0 if is_done else work.seconds(cell, shared)
            row = {"id": cell.id, "arm": cell.arm, "seed": cell.seed, "share": cell.share}
            row |= {"is_trial": cell.is_trial, "is_done": is_done, "shared_steps": shared}
            rows.append({**row, "flops": flops, "seconds": seconds})
    finally:
        store.close()
    return {
        "schema": 1,
        "command": "dry-run",
        "suite": settings.suite,
        "tier": settings.tier,
        "cells": rows,
        "flops": sum(row["flops"] for row in rows),
        "seconds": sum(row["seconds"] for row in rows),
    }


class _Runner:
    def __init__(self, work: Work, settings: BenchSettings, watch: Watch, stop: Stop) -> None:
        self._work, self._settings, self._watch, self._stop = work, settings, watch, stop
        self._started = time.monotonic()
        (home() / LOCKS).mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Run cells until none is left, or no time for any of them."""
        _remembered(self._work, self._settings)  # for whoever looks while it runs
        while True:
            is_anywhere = False
            for cell, chain in self._work.pending():
                if (number := self._stop()) is not None:
                    raise Stopped(number, "between two cells")
                if not self._has_time_for(cell, chain):
                    continue
                try:
                    self._claim(cell, chain)
                    break
                except Busy:
                    is_anywhere = True
            else:
                if not is_anywhere:
                    return
                time.sleep(POLL)

    def _has_time_for(self, cell: Cell, chain: list[Cell]) -> bool:
        limit = self._settings.max_minutes
        passed = time.monotonic() - self._started
        needed = self._work.seconds(cell, self._taken_over(cell, chain))
        return limit is None or passed + needed <= 60 * limit

    def _taken_over(self, cell: Cell, chain: list[Cell]) -> int:
        """Steps that a cell goes on from, of the one before it."""
        at = chain.index(cell)
        return self._work.common(chain[at - 1], cell) if at else 0

    def _claim(self, cell: Cell, chain: list[Cell]) -> None:
        with locked(home() / LOCKS / cell.id, f"cell {cell.id}"):
            if self._work.store.finished(cell.id) is None:
                self._watch(CellBegun(cell.title, *self._work.progress()))
                status, loss = self._finish(cell, chain)
                if cell.is_trial:
                    _remembered(self._work, self._settings)  # others may have names now
                told = (*self._work.progress(), self._work.standing())
                self._watch(CellDone(cell.title, status, loss, *told))

    def _finish(self, cell: Cell, chain: list[Cell]) -> tuple[str, float | None]:
        """Run a cell and keep what it came to, or why it came to nothing."""
        store, folder = self._work.store, home() / cell.id
        status = "complete"
        try:
            self._train(cell, chain, folder)
        except DivergedError:
            status = "diverged"
        except Exception as error:
            if not _is_its_own(error):
                raise
            attempts = store.fail(cell.id, cell.title, f"{type(error).__name__}: {error}")
            again = "; once more" if attempts < MOST_ATTEMPTS else ""
            self._watch(Notice(f"{cell.title} failed{again}: {error}"))
            return "failed", None
        result = outcome(folder)
        if status == "diverged":
            result["loss"] = result["bits_per_byte"] = None
        took = result["accounts"]["seconds"]["total"]  # with the trunk, as are the FLOPs
        self._work.costs.learn(cell.arm, result["flops"], took)
        store.finish(cell.id, cell.title, status, dict(result))
        self._tidy(cell, chain)
        return status, result["loss"]

    def _train(self, cell: Cell, chain: list[Cell], folder: Path) -> None:
        """Run a cell, from where the one before it in its chain leaves it."""
        at = chain.index(cell)
        marks = [self._work.common(cell, later) for later in chain[at + 1 : at + 2]]
        places: dict[str, Any] = {
            "out": folder,
            "resume": True,
            "save_at": tuple(k for k in marks if k),
        }
        if cell.teacher:
            places["teacher"] = (self._teacher(cell).resolve(),)
        settings = cell.settings.model_copy(update=places)
        shared = self._taken_over(cell, chain)
        if not (folder / CONFIG).exists() and shared:
            with suppress(InputError):  # its checkpoint is gone: nothing but time is lost
                branch(home() / chain[at - 1].id, shared, cell.command, settings)
        method = import_module(f"effcli.methods.{cell.command}")
        method.run(settings, self._watch, self._stop)

    def _teacher(self, cell: Cell) -> Path:
        """The folder of the run that teaches a cell, which is run again if it is gone."""
        folder = home() / cell.teacher
        if not checkpoint.steps(folder / CHECKPOINTS):
            seed = self._work.seeds[0] if cell.is_trial else cell.seed
            teacher = self._work.teacher(cell.arm, seed)
            assert teacher is not None
            with locked(home() / LOCKS / teacher.id, f"cell {teacher.id}"):
                shutil.rmtree(folder, ignore_errors=True)
                self._train(teacher, [teacher], folder)
        return folder

    def _tidy(self, cell: Cell, chain: list[Cell]) -> None:
        """Only the weights of an arm's largest run stay, and what the next run goes on from."""
        if cell.is_trial:
            shutil.rmtree(home() / cell.id / CHECKPOINTS, ignore_errors=True)
        elif at := chain.index(cell):
            shutil.rmtree(home() / chain[at - 1].id / CHECKPOINTS, ignore_errors=True)


def _is_its_own(error: Exception) -> bool:
    """Whether a cell failed, rather than what all cells need."""
    if isinstance(error, OutOfMemory):
        return True
    return not isinstance(error, Stopped | ResourceError | OSError | MemoryError)
