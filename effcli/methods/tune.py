"""Find a learning rate and a weight decay by short runs, and say what that cost."""

import math
from pathlib import Path
from typing import Any

from effcli.engine.advice import resuming
from effcli.engine.records import Notice, Stop, Watch
from effcli.engine.runs.pieces import Tuning
from effcli.engine.runs.report import Report, report_of
from effcli.engine.session import Session
from effcli.engine.trials import HORIZON, SEED_OFFSET, candidates, usual_ranges, with_share
from effcli.errors import DivergedError, Stopped
from effcli.settings.baseline import BaselineSettings


def tune(
    folder: Path, settings: BaselineSettings, watch: Watch, stop: Stop
) -> tuple[BaselineSettings, Tuning]:
    """The settings with the best rate and decay of `settings.tune` trials.

    The first trial is the settings as they are; the others cover the square of log-rates
    and decays evenly (Sobol 1967). Finished trials are not run again.
    """
    losses: list[float] = []
    tokens, flops, seconds = 0, 0.0, 0.0
    tried = [
        settings.optim.model_copy(
            update={name.removeprefix("optim."): value for name, value in values.items()}
        )
        for values in candidates(usual_ranges(settings), settings.tune, settings.seed)
    ]
    for number, optim in enumerate(tried, start=1):
        watch(Notice(f"trial {number} of {len(tried)}: {_describe(optim)}"))
        report = _trial(folder / f"trial-{number:03d}", settings, optim, watch, stop)
        losses.append(math.inf if report.held_out is None else report.held_out.loss)
        tokens += report.tokens
        flops += sum(report.flops.values())
        seconds += report.seconds["total"]
    best = tried[losses.index(min(losses))]
    chosen = {"lr": best.lr, "weight_decay": best.weight_decay}
    watch(Notice(f"chosen: {_describe(best)}"))
    finite = [loss if math.isfinite(loss) else None for loss in losses]
    return settings.model_copy(update={"optim": best}), Tuning(
        trials=len(losses),
        tokens=tokens,
        flops=flops,
        seconds=seconds,
        chosen=chosen,
        losses=finite,
    )


def _describe(optim: Any) -> str:
    return f"rate {optim.lr:.3g}, decay {optim.weight_decay:.3g}"


def _trial(
    folder: Path, settings: BaselineSettings, optim: Any, watch: Watch, stop: Stop
) -> Report:
    """A run at a part of the budget; one that diverged has its costs and no loss."""
    looks = settings.evaluation.bare()
    changes = {"out": folder, "resume": True, "optim": optim, "tune": 0, "evaluation": looks}
    changes |= {"seed": settings.seed + SEED_OFFSET, "eval_every": 0, "track": ()}
    shorter = with_share(settings, HORIZON, **changes)
    try:
        with Session("baseline", shorter, watch, stop) as session:
            return session.train()
    except DivergedError:
        return report_of(folder)
    except Stopped as error:
        hint = f"continue with: {resuming('baseline', folder.parent.parent)}"
        raise Stopped(error.signal_number, error.message, hint) from None
