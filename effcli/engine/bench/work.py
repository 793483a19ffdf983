"""What a suite still has to run, in an order in which any beginning of it is worth something."""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from effcli.engine.bench.branch import shared_steps
from effcli.engine.bench.costs import Costs
from effcli.engine.bench.matrix import Cell, Matrix, in_order, require_pairs
from effcli.engine.bench.store import Store
from effcli.engine.data.corpus import Corpus, locate
from effcli.engine.runs.rundir import root
from effcli.errors import InputError
from effcli.settings.bench import BenchSettings
from effcli.settings.suite import Suite, read_suite

FOLDER, DATABASE = "bench", "results.sqlite"


def home() -> Path:
    """Where results and the folders of cells are."""
    return root() / FOLDER


def key_of(suite: str, tier: str) -> tuple[str, str]:
    """The name that a suite's plan is kept under: its own, or the full path of its file."""
    path = Path(suite)
    return str(path.resolve()) if path.is_file() else suite, tier


class Work:
    """A suite, checked as a whole, and what is known of its cells."""

    def __init__(self, settings: BenchSettings, store: Store) -> None:
        self.corpus = Corpus.open(locate(settings.data))
        suite = read_suite(settings.suite)
        self.key = key_of(settings.suite, settings.tier)
        assert isinstance(suite, Suite)  # another kind has work of its own
        folder = str(self.corpus.folder.resolve())
        self.matrix = Matrix(suite, settings.tier, folder, self.corpus.hash)
        self.matrix.only(settings.arms)
        self.seeds = suite.seeds(settings.seeds or self.matrix.tier.seeds)
        require_pairs(self.matrix)
        self.store, self.costs = store, Costs(self.corpus)
        for name in self.matrix.ordered():  # whatever is wrong with an arm shows now
            self.trials(name)
            chain = self.matrix.runs(name, self.seeds[0])
            self._require_time(chain, settings.max_minutes)

    def _require_time(self, chain: list[Cell], minutes: float | None) -> None:
        for cell, shared in zip(chain, self.shared(chain), strict=True):
            needed = self.seconds(cell, shared) / 60
            if minutes is not None and needed > minutes:
                message = f"{cell.title} takes about {needed:.1f} minutes, more than max_minutes"
                raise InputError(message, "allow more, or choose a smaller tier")

    def teacher(self, arm: str, seed: int) -> Cell | None:
        """The run that teaches an arm's of a seed, if it has a teacher."""
        name = self.matrix.arms[arm].teacher
        return None if name is None else self.chain(name, seed)[-1]

    def rounds(self, arm: str) -> tuple[list[Cell], list[Cell]]:
        """The trials of an arm, and its finals, which are a guess until the trials are done.

        Their teacher is that of its first run.
        """
        cell = self.teacher(arm, self.seeds[0])
        teacher = cell.id if cell else ""
        trials = self.matrix.trials(arm, teacher)
        ranked = self._ranked(trials)
        best = range(len(trials)) if ranked is None else ranked
        return trials, self.matrix.finals(arm, best[: self.matrix.tier.finals], teacher)

    def trials(self, arm: str) -> list[Cell]:
        """Both rounds of them."""
        return [trial for cells in self.rounds(arm) for trial in cells]

    def _ranked(self, trials: list[Cell]) -> list[int] | None:
        """Their numbers, the best first; none before all of them are done."""
        losses = []
        for trial in trials:
            if (result := self.store.finished(trial.id)) is None:
                return None
            losses.append(math.inf if result.get("loss") is None else result["loss"])
        return sorted(range(len(trials)), key=losses.__getitem__)

    def chosen(self, arm: str) -> dict[str, float] | None:
        """What the trials of an arm say is best, in the end its finals; none before that."""
        trials, finals = self.rounds(arm)
        ranked, again = self._ranked(trials), self._ranked(finals)
        if ranked is None or again is None:
            return None
        if not ranked:
            return {}
        return self.matrix.tried(arm)[ranked[again[0] if again else 0]]

    def chain(self, arm: str, seed: int) -> list[Cell]:
        """The runs of an arm and a seed, small budgets first; before its trials, a guess."""
        teacher = self.teacher(arm, seed)
        return self.matrix.runs(
            arm, seed, teacher.id if teacher else "", **(self.chosen(arm) or {})
        )

    def pending(self) -> Iterator[tuple[Cell, list[Cell]]]:
        """Every cell that can be begun, with its chain: references first, seed by seed."""
        for seed, arm in in_order(self.matrix, self.seeds):
            is_tried = self.chosen(arm) is not None
            teacher = self.teacher(arm, seed if is_tried else self.seeds[0])
            if teacher is not None and self.store.finished(teacher.id) is None:
                continue
            if not is_tried:
                trials, finals = self.rounds(arm)
                cells = trials if self._ranked(trials) is None else finals
                yield from ((one, [one]) for one in cells if not self.store.finished(one.id))
                continue
            chain = self.chain(arm, seed)
            if missing := [cell for cell in chain if not self.store.finished(cell.id)]:
                yield missing[0], chain  # the others may go on from it

    def cells(self) -> Iterator[tuple[Cell, int]]:
        """Every cell, with the steps that it takes over from another one."""
        for arm in self.matrix.ordered():
            yield from ((trial, 0) for trial in self.trials(arm))
        for seed, arm in in_order(self.matrix, self.seeds):
            chain = self.chain(arm, seed)
            yield from zip(chain, self.shared(chain), strict=True)

    def shared(self, chain: list[Cell]) -> list[int]:
        """For each cell of a chain, the steps that it shares with the one before."""
        return [0, *(self.common(*pair) for pair in pairwise(chain))]

    def common(self, shorter: Cell, longer: Cell) -> int:
        """Steps that two cells share."""
        step = self.costs.step(shorter.settings)
        return shared_steps(shorter.settings, longer.settings, step.tokens, step.flops)

    def seconds(self, cell: Cell, shared: int = 0) -> float:
        """How long a cell will take."""
        return self.costs.seconds(cell.arm, self.costs.flops(cell.settings, shared))

    def progress(self) -> tuple[int, int, float]:
        """Cells that are done, cells in all, and seconds that are left."""
        left = [
            self.seconds(cell, shared)
            for cell, shared in self.cells()
            if not self.store.finished(cell.id)
        ]
        total = sum(1 for _ in self.cells())
        return total - len(left), total, sum(left)

    def standing(self) -> tuple[tuple[str, int, float | None], ...]:
        """Of every arm: its name, its complete runs at its largest budget, their mean loss."""
        rows = []
        for arm in self.matrix.ordered():
            last = [self.store.finished(self.chain(arm, seed)[-1].id) for seed in self.seeds]
            losses = [one["loss"] for one in last if one and one.get("loss") is not None]
            rows.append((arm, len(losses), sum(losses) / len(losses) if losses else None))
        return tuple(rows)
