"""Run a suite: every cell once, whoever started it; then say what the whole proves."""

import shutil
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from effcli.engine.bench.branch import branch
from effcli.engine.bench.document import PAGE, document_of, plan_of, write_document
from effcli.engine.bench.export import write_csv
from effcli.engine.bench.matrix import Cell
from effcli.engine.bench.outcome import outcome
from effcli.engine.bench.store import MOST_ATTEMPTS, Store
from effcli.engine.bench.work import DATABASE, Work, home
from effcli.engine.records import CellBegun, CellDone, Notice, Stop, Watch, never, unwatched
from effcli.engine.runs.lock import Busy, locked
from effcli.engine.runs.rundir import CHECKPOINTS, CONFIG
from effcli.errors import DivergedError, InputError, ResourceError, Stopped
from effcli.methods import bench_speed
from effcli.settings.bench import BenchSettings
from effcli.settings.speed import SpeedSuite
from effcli.settings.suite import read_suite

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
        return _reported(work, settings)
    finally:
        store.close()


def _known(settings: BenchSettings, store: Store) -> dict[str, Any]:
    plan = store.plan(settings.suite, settings.tier, settings.data)
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
    plan = plan_of(work, settings)
    work.store.remember(settings.suite, settings.tier, settings.data or "", plan)
    document = document_of(plan, work.store)
    folder = settings.out or home() / f"{plan['suite']}-{settings.tier}"
    write_document(document, folder)
    return {**document, "page": str(folder / PAGE)}


def plan_bench(settings: BenchSettings) -> dict[str, Any]:
    """What `--dry-run` shows: every cell with what it will cost."""
    store = Store(home() / DATABASE)
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

    def run(self) -> None:
        """Run cells until none is left, or no time for the next one."""
        while True:
            is_anywhere = False
            for cell, chain in self._work.pending():
                if (number := self._stop()) is not None:
                    raise Stopped(number, "between two cells")
                if not self._has_time_for(cell):
                    self._watch(Notice(f"no time is left for {cell.title}"))
                    return
                try:
                    self._claim(cell, chain)
                    break
                except Busy:
                    is_anywhere = True
            else:
                if not is_anywhere:
                    return
                time.sleep(POLL)

    def _has_time_for(self, cell: Cell) -> bool:
        limit = self._settings.max_minutes
        passed = time.monotonic() - self._started
        return limit is None or passed + self._work.seconds(cell) <= 60 * limit

    def _claim(self, cell: Cell, chain: list[Cell]) -> None:
        with locked(home() / f".{cell.id}.lock", f"cell {cell.id}"):
            if self._work.store.finished(cell.id) is None:
                self._watch(CellBegun(cell.title, *self._work.progress()))
                status, loss = self._finish(cell, chain)
                told = (*self._work.progress(), self._work.standing())
                self._watch(CellDone(cell.title, status, loss, *told))

    def _finish(self, cell: Cell, chain: list[Cell]) -> tuple[str, float | None]:
        """Run a cell and keep what it came to, or why it came to nothing."""
        store, folder = self._work.store, home() / cell.id
        began = time.monotonic()
        try:
            shared = self._train(cell, chain, folder)
            status = "complete"
        except DivergedError:
            shared, status = 0, "diverged"
        except (Stopped, ResourceError):  # nothing that the cell is to blame for
            raise
        except Exception as error:
            attempts = store.fail(cell.id, cell.title, f"{type(error).__name__}: {error}")
            again = "; once more" if attempts < MOST_ATTEMPTS else ""
            self._watch(Notice(f"{cell.title} failed{again}: {error}"))
            return "failed", None
        result = outcome(folder)
        if status == "diverged":
            result["loss"] = result["bits_per_byte"] = None
        flops = self._work.costs.flops(cell.settings, shared)
        self._work.costs.learn(cell.arm, flops, time.monotonic() - began)
        store.finish(cell.id, cell.title, status, dict(result))
        self._tidy(cell, chain)
        return status, result["loss"]

    def _train(self, cell: Cell, chain: list[Cell], folder: Path) -> int:
        """Run a cell, from where the one before it in its chain leaves it; returns where."""
        at = chain.index(cell)
        marks = [self._work.common(cell, later) for later in chain[at + 1 : at + 2]]
        places = {"out": folder, "resume": True, "save_at": tuple(k for k in marks if k)}
        settings = cell.settings.model_copy(update=places)
        shared = self._work.common(chain[at - 1], cell) if at else 0
        if not (folder / CONFIG).exists() and shared:
            source = home() / chain[at - 1].id
            try:
                branch(source, shared, cell.command, settings)
            except InputError:  # its checkpoint is gone: nothing but time is lost
                shared = 0
        method = import_module(f"effcli.methods.{cell.command}")
        method.run(settings, self._watch, self._stop)
        return shared

    def _tidy(self, cell: Cell, chain: list[Cell]) -> None:
        """Only the weights of an arm's largest run stay, and what the next run goes on from."""
        if cell.is_trial:
            shutil.rmtree(home() / cell.id / CHECKPOINTS, ignore_errors=True)
        elif at := chain.index(cell):
            shutil.rmtree(home() / chain[at - 1].id / CHECKPOINTS, ignore_errors=True)
