"""AdamW for everything: matrices decay, gains, biases and sparse tables do not."""

from torch.nn import Parameter

from effcli.engine.optim.optimizer import Group
from effcli.engine.protocols import LanguageModel
from effcli.settings.optim import AdamWSettings


def route(model: LanguageModel, settings: AdamWSettings) -> list[Group]:
    """Two groups that differ in their decay, and the tables of which a step reads few rows."""
    decaying: list[tuple[str, Parameter]] = []
    plain: list[tuple[str, Parameter]] = []
    tables: list[tuple[str, Parameter]] = []
    for name, parameter in model.named_parameters():
        is_table = model.role(name, parameter) == "table"
        kind = tables if is_table else decaying if parameter.ndim >= 2 else plain
        kind.append((name, parameter))
    groups = [
        Group("adamw", settings.lr, settings.weight_decay, decaying),
        Group("adamw", settings.lr, 0.0, plain),
        Group("rows", settings.lr * settings.table_rate, 0.0, tables),
    ]
    return [group for group in groups if group.tensors]
