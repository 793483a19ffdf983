"""AdamW for everything: matrices decay, gains, biases and sparse tables do not."""

from effcli.engine.optim.optimizer import Group, by_role
from effcli.engine.protocols import LanguageModel
from effcli.settings.optim import AdamWSettings


def route(model: LanguageModel, settings: AdamWSettings) -> list[Group]:
    """One group for each role that a tensor can have; whatever their rates, they decay alike."""
    lr, decay = settings.lr, settings.weight_decay
    groups = {
        "matrix": Group("adamw", lr, decay, []),
        "embedding": Group(
            "adamw", lr * settings.embedding_rate, decay / settings.embedding_rate, []
        ),
        "head": Group("adamw", lr * settings.head_rate, decay / settings.head_rate, []),
        "scalar": Group("adamw", lr * settings.scalar_rate, 0.0, []),
        "table": Group("rows", lr * settings.table_rate, 0.0, []),
    }
    return by_role(model, groups)
