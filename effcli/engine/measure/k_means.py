"""Clusters of points that depend on nothing but points and a seed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def k_means(points: NDArray[Any], count: int, seed: int, **how: Any) -> NDArray[np.int64]:
    """The number of each point's cluster, of at most `count` (Lloyd 1982).

    Of `points` (points, axes) no two clusters are the same place. `how` goes to scikit-learn.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    distinct = len(np.unique(points, axis=0))
    with threadpool_limits(1):  # more threads would add in another order
        means = KMeans(min(count, distinct), random_state=seed % 2**32, **how)
        return np.asarray(means.fit_predict(points), dtype=np.int64)
