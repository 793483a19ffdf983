"""Stochastic gradient descent with momentum, for comparison: nothing is scaled by its history."""

from effcli.engine.optim.optimizer import Group, by_role
from effcli.engine.protocols import LanguageModel
from effcli.settings.optim import SGDSettings


def route(model: LanguageModel, settings: SGDSettings) -> list[Group]:
    """One group for each role that a tensor can have."""
    lr = settings.lr
    groups = {
        "matrix": Group("sgd", lr, settings.weight_decay, []),
        "embedding": Group("sgd", lr * settings.embedding_rate, 0.0, []),
        "head": Group("sgd", lr * settings.head_rate, 0.0, []),
        "scalar": Group("sgd", lr * settings.scalar_rate, 0.0, []),
        "table": Group("rows", lr * settings.table_rate, 0.0, []),
    }
    return by_role(model, groups)
