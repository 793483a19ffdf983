"""Find a learning rate and a weight decay by short runs, and say what that cost."""

import math
from pathlib import Path
from typing import Any

from effcli.engine.advice import resuming
from effcli.engine.records import Notice, Stop, Watch
from effcli.engine.runs.report import Report, Tuning, report_of
from effcli.engine.session import Session
from effcli.errors import DivergedError, Stopped
from effcli.settings.baseline import BaselineSettings
from effcli.settings.train import BUDGETS

HORIZON = 0.25  # of the run's budget; enough to rank rates, cheap enough to try several
WIDEST = 3.0  # rates are tried between a third and three times the given one
MOST_DECAY = 0.2
SEED_OFFSET = 2**32  # trials read other data than the run that is judged


def tune(
    folder: Path, settings: BaselineSettings, watch: Watch, stop: Stop
) -> tuple[BaselineSettings, Tuning]:
    """The settings with the best rate and decay of `settings.tune` trials.

    The first trial is the settings as they are; the others cover the square of log-rates
    and decays evenly (Sobol 1967). Finished trials are not run again.
    """
    losses: list[float] = []
    tokens, flops, seconds = 0, 0.0, 0.0
    candidates = [settings.optim, *_spread(settings)]
    for number, optim in enumerate(candidates, start=1):
        watch(Notice(f"trial {number} of {len(candidates)}: {_describe(optim)}"))
        report = _trial(folder / f"trial-{number:03d}", settings, optim, watch, stop)
        losses.append(math.inf if report.held_out is None else report.held_out.loss)
        tokens += report.tokens
        flops += sum(report.flops.values())
        seconds += report.seconds["total"]
    best = candidates[losses.index(min(losses))]
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


def _spread(settings: BaselineSettings) -> list[Any]:
    from scipy.stats import qmc

    points = qmc.Sobol(2, seed=settings.seed % 2**32).random(2 ** settings.tune.bit_length())
    return [
        settings.optim.model_copy(
            update={
                "lr": settings.optim.lr * WIDEST ** (2 * float(rate) - 1),
                "weight_decay": MOST_DECAY * float(decay),
            }
        )
        for rate, decay in points[: settings.tune - 1]
    ]


def _trial(
    folder: Path, settings: BaselineSettings, optim: Any, watch: Watch, stop: Stop
) -> Report:
    """A run at a part of the budget; one that diverged has its costs and no loss."""
    limits = {name: value for name in BUDGETS if (value := getattr(settings, name)) is not None}
    shorter = {
        name: value * HORIZON if name in ("flops", "minutes") else math.ceil(value * HORIZON)
        for name, value in limits.items()
    }
    looks = settings.evaluation.model_copy(update={"floors": False, "samples": 0})
    changes = {"out": folder, "resume": True, "optim": optim, "tune": 0, "evaluation": looks}
    changes |= {"seed": settings.seed + SEED_OFFSET, "eval_every": 0, "track": (), **shorter}
    try:
        with Session("baseline", settings.model_copy(update=changes), watch, stop) as session:
            return session.train()
    except DivergedError:
        return report_of(folder)
    except Stopped as error:
        hint = f"continue with: {resuming('baseline', folder.parent.parent)}"
        raise Stopped(error.signal_number, error.message, hint) from None
