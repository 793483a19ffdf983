"""Several optimizers, each for its tensors, moved as one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from effcli.engine.optim.descent import SGD
from effcli.engine.optim.rows import RowAdaGrad
from effcli.engine.protocols import LanguageModel
from effcli.errors import InputError
from effcli.registry import resolve_place
from effcli.settings.optim import AdamSettings, MuonSettings, OptimizerSettings, SGDSettings

NEWTON_SCHULZ_STEPS = 5
GUARD = "guard"  # in a state; moments have a slash in their names


@dataclass(frozen=True)
class Group:
    """Tensors that are moved by the same rule at the same peak rate."""

    rule: Literal["adamw", "muon", "sgd", "rows"]
    lr: float
    weight_decay: float
    tensors: list[tuple[str, nn.Parameter]]


def by_role(model: LanguageModel, groups: Mapping[str, Group]) -> list[Group]:
    """The groups that have tensors, each put into the one of its role."""
    for name, parameter in model.named_parameters():
        groups[model.role(name, parameter)].tensors.append((name, parameter))
    return [group for group in groups.values() if group.tensors]


@dataclass(frozen=True)
class Move:
    """A tensor that its rule is about to move; calling it does so."""

    group: Group
    parameter: nn.Parameter
    part: torch.optim.Optimizer

    def __call__(self) -> None:
        """Move this tensor alone: rules keep tensors apart, so the bits are the same."""
        everyone, self.rule["params"] = self.rule["params"], [self.parameter]
        try:
            self.part.step()
        finally:
            self.rule["params"] = everyone

    @property
    def rule(self) -> dict[str, Any]:
        """Rate, decay and moments' decays of this step."""
        rule: dict[str, Any] = self.part.param_groups[0]
        return rule

    @property
    def moments(self) -> Mapping[str, Any]:
        """What the rule remembers of this tensor."""
        moments: Mapping[str, Any] = self.part.state.get(self.parameter, {})
        return moments


class Guard(Protocol):
    """Makes the moves of a step, and may shorten them."""

    def step(self, moves: Sequence[Move]) -> None:
        """Call every move once."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly: numbers and strings."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        ...


class Optimizer:
    """The optimizers of a run. Its state is named by tensor, so it survives any regrouping."""

    decays = True
    """Whether weights decay now."""
    guard: Guard | None = None

    def __init__(self, model: LanguageModel, settings: OptimizerSettings) -> None:
        self.groups: list[Group] = resolve_place(settings.place)(model, settings)
        self._clip = settings.clip
        self._parameters = [p for group in self.groups for _, p in group.tensors]
        routed = [id(p) for p in self._parameters]
        assert sorted(routed) == sorted(map(id, model.parameters())), "a tensor is not routed once"
        self._parts = [_part(group, settings) for group in self.groups]
        self.flops = math.fsum(map(newton_schulz_flops, self._of("muon")))

    def _of(self, rule: str) -> list[Tensor]:
        return [p for group in self.groups if group.rule == rule for _, p in group.tensors]

    def gradients(self) -> list[Tensor]:
        """The gradient of every tensor that has one; a table's has only the rows that were read."""
        for parameter in self._of("rows"):
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
        return [p.grad for p in self._parameters if p.grad is not None]

    def clip(self) -> Tensor:
        """Scale the whole gradient down to the allowed norm; returns the norm it had."""
        parts = [_values(gradient) for gradient in self.gradients()]
        norm: Tensor = nn.utils.get_total_norm(parts)
        if self._clip:
            torch._foreach_mul_(parts, torch.clamp(self._clip / (norm + 1e-6), max=1.0))
        return norm

    def step(self, factor: float) -> None:
        """Move every tensor, at `factor` times its peak rate."""
        pairs = list(zip(self.groups, self._parts, strict=True))
        for group, part in pairs:
            part.param_groups[0]["lr"] = group.lr * factor
            part.param_groups[0]["weight_decay"] = group.weight_decay * self.decays
        if self.guard is not None:
            moves = [Move(group, p, part) for group, part in pairs for _, p in group.tensors]
            self.guard.step(moves)
            return
        for part in self._parts:
            part.step()

    def zero_grad(self) -> None:
        """Forget the gradient."""
        for parameter in self._parameters:
            parameter.grad = None

    def describe(self) -> str:
        """Which tensors go where, in one line."""
        names = {"muon": "Muon", "adamw": "AdamW", "sgd": "SGD", "rows": "AdaGrad by rows"}
        counts = {name: len(self._of(rule)) for rule, name in names.items()}
        return ", ".join(f"{n} tensors to {name}" for name, n in counts.items() if n)

    def routing(self) -> list[dict[str, Any]]:
        """Every group with its rule, its rates and the names of its tensors."""
        return [
            {
                "rule": group.rule,
                "lr": group.lr,
                "weight_decay": group.weight_decay,
                "tensors": [name for name, _ in group.tensors],
            }
            for group in self.groups
        ]

    def state_dict(self) -> dict[str, Any]:
        """Moments of every tensor, as `<tensor>/<moment>`, and what the guard knows."""
        moments = {
            f"{name}/{key}": value
            for group, part in zip(self.groups, self._parts, strict=True)
            for name, parameter in group.tensors
            for key, value in part.state.get(parameter, {}).items()
        }
        return moments if self.guard is None else moments | {GUARD: self.guard.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; one that names unknown tensors does not fit."""
        by_tensor: dict[str, dict[str, Any]] = {}
        if self.guard is not None and GUARD in state:
            self.guard.load_state_dict(state[GUARD])
        for path, value in state.items():
            if path == GUARD:
                continue
            name, _, key = path.rpartition("/")
            by_tensor.setdefault(name, {})[key] = value
        for group, part in zip(self.groups, self._parts, strict=True):
            for name, parameter in group.tensors:
                if name in by_tensor:
                    moments = by_tensor.pop(name)
                    part.state[parameter] = {k: v.to(parameter.device) for k, v in moments.items()}
        if by_tensor:
            raise InputError(f"the optimizer's state does not fit the model: {min(by_tensor)}")


def _values(gradient: Tensor) -> Tensor:
    return gradient.values() if gradient.is_sparse else gradient


def _part(group: Group, settings: OptimizerSettings) -> torch.optim.Optimizer:
    parameters = [parameter for _, parameter in group.tensors]
    if group.rule == "muon":
        assert isinstance(settings, MuonSettings)
        return torch.optim.Muon(
            parameters,
            lr=group.lr,
            weight_decay=group.weight_decay,
            momentum=settings.momentum,
            ns_steps=NEWTON_SCHULZ_STEPS,
        )
    if group.rule == "rows":
        return RowAdaGrad(parameters, group.lr)
    if group.rule == "sgd":
        assert isinstance(settings, SGDSettings)
        return SGD(parameters, lr=group.lr, momentum=settings.momentum)
    assert isinstance(settings, AdamSettings)
    return torch.optim.AdamW(
        parameters,
        lr=group.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=group.weight_decay,
        fused=parameters[0].device.type in ("cpu", "cuda"),
    )


def newton_schulz_flops(matrix: Tensor) -> float:
    """Three products for each iteration of the orthogonalization."""
    short, long = sorted(matrix.shape)
    return float(NEWTON_SCHULZ_STEPS * (4 * short**2 * long + 2 * short**3))
