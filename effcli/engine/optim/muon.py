"""Muon for the blocks' matrices (Jordan et al. 2024), Adam with rates of its own for the rest."""

from effcli.engine.optim.optimizer import Group, by_role
from effcli.engine.protocols import LanguageModel
from effcli.settings.optim import MuonSettings


def route(model: LanguageModel, settings: MuonSettings) -> list[Group]:
    """One group for each role that a tensor can have."""
    lr = settings.lr
    groups = {
        "matrix": Group("muon", lr, settings.weight_decay, []),
        "table": Group("rows", lr * settings.table_rate, 0.0, []),
        "embedding": Group("adamw", lr * settings.embedding_rate, 0.0, []),
        "head": Group("adamw", lr * settings.head_rate, 0.0, []),
        "scalar": Group("adamw", lr * settings.scalar_rate, 0.0, []),
    }
    return by_role(model, groups)
