"""AdamW for everything: matrices decay, gains and biases do not."""

from torch.nn import Parameter

from effcli.engine.optim.optimizer import Group
from effcli.engine.protocols import LanguageModel
from effcli.settings.optim import AdamWSettings


def route(model: LanguageModel, settings: AdamWSettings) -> list[Group]:
    """Two groups that differ in their decay."""
    decaying: list[tuple[str, Parameter]] = []
    plain: list[tuple[str, Parameter]] = []
    for name, parameter in model.named_parameters():
        (decaying if parameter.ndim >= 2 else plain).append((name, parameter))
    groups = [
        Group("adamw", settings.lr, settings.weight_decay, decaying),
        Group("adamw", settings.lr, 0.0, plain),
    ]
    return [group for group in groups if group.tensors]
