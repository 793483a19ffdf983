"""How much more often trusted text is like a passage than the pool is: a ratio of densities.

A classifier that tells trusted passages from the pool's has the ratio in its odds (Sugiyama
et al. 2012). It sees a few scores only, each of another kind: the loss under counts of trusted
text, how much more it is under counts of the pool, how rare the contexts are, and how
far the passage compresses. So noise of any kind has a small ratio, as long as trusted text
is not like it. All ratios are out of fold: nobody is judged by what learned from it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
FOLDS = 3
MOST_EXAMPLES = 30_000  # of the pool; more are not told apart better
LARGEST = 50.0
GATED_FROM = 0.15  # contamination; clean pools were found to have up to 0.1


@dataclass(frozen=True)
class Gate:
    """Classifiers, one of each fold, and what they say about the pool they were made from."""

    classifiers: tuple[Any, ...]
    prior: float
    """Passages of the pool for each trusted one, that a classifier was shown."""
    contamination: float
    """Estimated share of the pool's tokens that trusted text is not like, 0..1."""

    @property
    def exponent(self) -> float:
        """How sharply to choose by the ratios: not at all where they say nothing but noise."""
        return 0.0 if self.contamination < GATED_FROM else 2.0

    def ratios(self, scores: Floats) -> NDArray[np.float32]:
        """Of passages that no classifier was shown; NaN where a score is none."""
        found = [_ratios(one, self.prior, scores) for one in self.classifiers]
        mean: NDArray[np.float32] = np.mean(found, axis=0).astype(np.float32)
        return mean


def gate_of(
    pool: Floats, trusted: Floats, lengths: NDArray[np.int64], seed: int
) -> tuple[Gate, NDArray[np.float32]]:
    """Learn to tell a pool from trusted text; returns the ratios of the pool's passages, too.

    Scores are of shape (passages, kinds), lengths are those of the pool's passages.
    """
    random = np.random.default_rng(seed)
    mine = random.permutation(len(pool)) % FOLDS
    theirs = random.permutation(len(trusted)) % FOLDS
    sound = np.isfinite(pool).all(1)
    ratios, of_trusted = np.full(len(pool), np.nan), np.empty(len(trusted))
    shown = min(MOST_EXAMPLES, int(sound.sum() * (1 - 1 / FOLDS)))
    prior = shown / (len(trusted) * (1 - 1 / FOLDS))
    classifiers = []
    for fold in range(FOLDS):
        examples = random.permutation(np.flatnonzero(sound & (mine != fold)))[:shown]
        classifier = _fitted(pool[examples], trusted[theirs != fold])
        ratios[mine == fold] = _ratios(classifier, prior, pool[mine == fold])
        of_trusted[theirs == fold] = _ratios(classifier, prior, trusted[theirs == fold])
        classifiers.append(classifier)
    # Where the good part g of a pool is like trusted text, and nothing else is, the mean
    # ratio of trusted text is 1/g.
    mean = np.average(ratios[sound], weights=lengths[sound])
    contamination = float(np.clip(1 - mean / of_trusted.mean(), 0, 1))
    return Gate(tuple(classifiers), prior, contamination), ratios.astype(np.float32)


def _fitted(pool: Floats, trusted: Floats) -> Any:
    """Boosted trees (Friedman 2001), which need no scales."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    trees = HistGradientBoostingClassifier(
        max_iter=100,
        learning_rate=0.05,
        max_leaf_nodes=8,
        min_samples_leaf=20,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=0,
    )
    kinds = np.concatenate([np.zeros(len(pool)), np.ones(len(trusted))])
    with threadpool_limits(1):  # sums of several threads would differ in their last bits
        return trees.fit(np.concatenate([pool, trusted]), kinds)


def _ratios(classifier: Any, prior: float, scores: Floats) -> NDArray[np.float64]:
    from threadpoolctl import threadpool_limits

    known = np.isfinite(scores).all(1)
    found = np.full(len(scores), np.nan)
    if known.any():
        with threadpool_limits(1):
            chance = classifier.predict_proba(scores[known])[:, 1].clip(1e-6, 1 - 1e-6)
        found[known] = np.minimum(chance / (1 - chance) * prior, LARGEST)
    return found
