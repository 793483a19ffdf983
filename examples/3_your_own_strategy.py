"""Choose text by a rule of your own.

    python examples/3_your_own_strategy.py [CORPUS]

A selector gives every candidate a score; candidates are drawn with chances that grow with it.
A package enters its selectors as entry points (`selector.middle = "my_package:MIDDLE"` in the
group `effcli.parts`); a script enters them itself.
"""

import sys

import numpy as np
from scipy.stats import rankdata

from effcli.catalog import SELECTORS
from effcli.engine.selection.selectors import Known, Selector
from effcli.methods import aql
from effcli.settings.aql import AqlSettings
from effcli.settings.layers import resolve


def middle(known: Known) -> np.ndarray:
    """Rather what is neither the easiest nor the hardest, by its loss under counts."""
    ranks = rankdata(known.candidates["loss"]) / len(known.candidates)
    return -8.0 * np.abs(ranks - 0.5)


MIDDLE = Selector(middle)


def main(corpus: str | None = None, *assignments: str) -> None:
    """Train on the half that is chosen by the rule, and on a random half."""
    SELECTORS.add("middle", f"{__name__}:MIDDLE")
    for name in ("random", "middle"):
        flags = {"ratio": 0.5, "tokens": "300k", "selector": name, "eval_every": 0}
        if corpus is not None:
            flags["data"] = corpus
        report = aql.run(resolve(AqlSettings, flags, assignments).settings)
        assert report.held_out is not None
        print(f"{name}: {report.held_out.loss:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
