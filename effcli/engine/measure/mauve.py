"""How alike two sets of texts are: MAUVE (Pillutla et al. 2021, arXiv 2102.01454).

Texts are points, by features of a model. Points of both sets are put into clusters together, and
what is compared are the two histograms p and q over these. With r = w p + (1 - w) q, the curve of
(e^{-c KL(q|r)}, e^{-c KL(p|r)}) over all w says how much of either is unlike the other.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from effcli.engine.measure.k_means import k_means
from effcli.engine.models.layers import rms_norm
from effcli.engine.protocols import LanguageModel

LEAST = 20  # texts of each set: two clusters
SCALING = 5.0  # c, as published
WEIGHTS = np.linspace(1e-6, 1 - 1e-6, 25)  # w, as published
EXPLAINED = 0.9  # of the variance, that is left to the clusters
SMOOTHING = 0.5  # of a text in each cluster (Krichevsky & Trofimov 1981)
TRIALS, ROUNDS = 5, 500  # of k-means
AT_ONCE = 64  # texts

Points = Float[NDArray[np.float64], "texts features"]


@torch.no_grad()
def text_features(model: LanguageModel, texts: Int[Tensor, "texts time"]) -> Points:
    """What the model makes of each text: its last hidden states, a mean over positions.

    That at the last position alone mostly knows the last token: in 400 texts of 128 tokens it
    found shuffled text as good as any.
    """
    was_training = model.training
    model.eval()
    parts = torch.split(texts.to(model.head.device), AT_ONCE)
    found = torch.cat([rms_norm(model.features(part).float().mean(1)) for part in parts])
    model.train(was_training)
    return found.double().cpu().numpy()


def mauve(first: Points, second: Points, seed: int = 0) -> float:
    """In 0..1; 1 where nothing tells the two sets apart. The order of sets and texts is the same.

    It depends on how many texts there are and whose features these are: a figure to compare with
    others that were found alike.
    """
    both = np.concatenate((first, second))
    order = np.lexsort(both.T)  # which no longer knows what is of which set
    clusters = np.empty(len(both), dtype=np.int64)
    count = max(2, min(len(first), len(second)) // 10)
    how = {"n_init": TRIALS, "max_iter": ROUNDS}
    clusters[order] = k_means(_reduced(both[order]), count, seed, **how)
    count = int(clusters.max()) + 1
    return area(*(_shares(part, count) for part in np.split(clusters, [len(first)])))


def area(p: Float[NDArray[np.float64], " bins"], q: Float[NDArray[np.float64], " bins"]) -> float:
    """Under the curve of two histograms without empty bins."""
    mixed = [weight * p + (1 - weight) * q for weight in WEIGHTS]
    curve = [(np.exp(-SCALING * _kl(q, r)), np.exp(-SCALING * _kl(p, r))) for r in mixed]
    x, y = np.array([(1.0, 0.0), *curve, (0.0, 1.0)]).T
    return float(np.sum(np.diff(y) * (x[1:] + x[:-1]) / 2))


def _kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    return float(np.sum(p * np.log(p / q)))


def _reduced(points: Points) -> Points:
    """The main components, as many as explain most of the variance."""
    centered = points - points.mean(0)
    _, sizes, axes = np.linalg.svd(centered, full_matrices=False)
    explained = np.cumsum(sizes**2)
    kept = int(np.searchsorted(explained, EXPLAINED * explained[-1])) + 1
    return np.asarray(centered @ axes[:kept].T)


def _shares(clusters: NDArray[np.int64], count: int) -> Float[NDArray[np.float64], " bins"]:
    """Of each cluster, as if there were a little more of all of them."""
    smoothed = np.bincount(clusters, minlength=count) + SMOOTHING
    return np.asarray(smoothed / smoothed.sum())
