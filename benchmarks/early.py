"""How much faster an arm is at the beginning of its run, while the rates of both are at their peak.

python benchmarks/early.py docs/results/aql-noise-80-cpu.json full auto

For every seed: the tokens that the reference needs to the loss that the arm has after a part of
its budget, over the arm's. Geometric mean, and the 95 % interval of Student's t.
"""

import json
import sys
from pathlib import Path

import numpy as np
from scipy import stats

PARTS = (0.1, 0.2, 0.5)


def curves(document: dict, arm: str) -> dict[int, np.ndarray]:
    """Of every seed of an arm: tokens and held-out losses of its longest run."""
    cells = [cell for cell in document["cells"] if cell["arm"] == arm and cell["curve"]]
    return {cell["seed"]: np.array(cell["curve"])[1:, [0, -1]] for cell in cells}


def ratio(one: np.ndarray, reference: np.ndarray, tokens: float) -> tuple[float, float, float]:
    """Tokens that the reference needs over the arm's; the arm's loss there, and the reference's."""
    at, loss = one[np.argmin(abs(one[:, 0] - tokens))]
    needed = np.exp(np.interp(-loss, -reference[:, 1], np.log(reference[:, 0]), right=np.nan))
    return needed / at, loss, float(np.interp(at, *reference.T))


def main(path: str, reference: str, arm: str) -> None:
    """Print one line for each part of the budget."""
    document = json.loads(Path(path).read_bytes())
    budget = document["protocol"]["budget"]["tokens"]
    mine, theirs = curves(document, arm), curves(document, reference)
    for part in PARTS:
        seeds = sorted(mine.keys() & theirs.keys())
        rows = [ratio(mine[seed], theirs[seed], part * budget) for seed in seeds]
        logs = np.log([row[0] for row in rows])
        half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
        low, middle, high = np.exp(logs.mean() + half * np.array([-1, 0, 1]))
        losses = np.mean([row[1:] for row in rows], axis=0)
        print(
            f"{part:.0%} of the budget: {middle:.2f} [{low:.2f}, {high:.2f}] times faster, "
            f"n={len(rows)}; loss {losses[0]:.3f} beside {losses[1]:.3f}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
