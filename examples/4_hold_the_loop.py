"""Hold the training loop in your own hands: look, stop and change between two steps.

    python examples/4_hold_the_loop.py [CORPUS]

The loop is a generator. Whoever calls it decides what happens between two steps; the
command line does nothing else.
"""

import sys

from effcli.engine.loop import train
from effcli.engine.measure.evaluate import held_out_loss
from effcli.engine.records import Step, never
from effcli.engine.session import Session
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve


def main(corpus: str | None = None, *assignments: str) -> float:
    """Train the first half of a budget, look, and train on only if it was worth it."""
    flags = {"tokens": "200k", "eval_every": 0, "save_every": 0}
    if corpus is not None:
        flags["data"] = corpus
    settings = resolve(BaselineSettings, flags, assignments).settings
    with Session("baseline", settings) as session:
        parts = session.parts

        def look() -> float:
            return held_out_loss(parts.model, session.held_out, parts.device, parts.micro, never)

        before = look()
        for record in train(parts, until=0.5):
            if isinstance(record, Step) and record.index % 10 == 0:
                print(f"step {record.index}: {record.loss:.3f}")
        halfway = look()
        spent = parts.meter.spent_flops()
        print(f"held out: {before:.3f}, then {halfway:.3f} after {spent:.2e} FLOPs")
        if halfway < before:
            for _ in train(parts):
                pass
        print(f"at the end: {look():.3f}")
        return look()


if __name__ == "__main__":
    main(*sys.argv[1:])
