"""Loss by how common the token is: a model may be good on average and have lost the rare ones."""

import numpy as np
from numpy.typing import NDArray

from effcli.engine.data.corpus import Split
from effcli.engine.measure.floors import Ids, chunks

TENTHS = 10


def tail_losses(
    train: Split, targets: Ids, losses: NDArray[np.float32], vocab_size: int
) -> list[float]:
    """Mean loss of each tenth of the positions, in nats per token, the rarest targets first.

    How rare a token is, is counted in the training text. `targets` and `losses` have one
    shape; where targets are equally rare, the earlier position is in the earlier tenth.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for chunk in chunks(train, train.tokens):
        counts += np.bincount(chunk, minlength=vocab_size)
    order = np.argsort(counts[targets].ravel(), kind="stable")
    tenths = np.array_split(losses.ravel()[order], TENTHS)
    return [float(tenth.mean(dtype=np.float64)) for tenth in tenths]
