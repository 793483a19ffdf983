"""What a phase model computes on its way, for whoever measures it or trains on it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from effcli.engine.models.interference import Told
from effcli.engine.models.mixers import Interference
from effcli.engine.models.phase import Phase
from effcli.engine.models.turning import Phases
from effcli.engine.phase.coherence import phasors
from effcli.engine.phase.concepts import Concepts, information
from effcli.engine.phase.energies import (
    entanglement_energy,
    frame_potential,
    hinged,
    local_energy,
)

PROBED = 64  # pairs of the residual stream whose phases are looked at


@dataclass
class Heard:
    """Parts of one forward pass."""

    stream: list[Tensor] = field(default_factory=list)
    """The residual stream after half of the layers, (batch, time, width)."""
    angles: list[Tensor] = field(default_factory=list)
    """Of each layer that turns, (batch, heads, time, pairs)."""
    told: list[Told] = field(default_factory=list)
    """What each memory is told."""
    probable: list[Tensor] = field(default_factory=list)
    """Of each code at each position, before only a few are kept."""

    @property
    def keys(self) -> list[Tensor]:
        """Of each memory, (batch, heads, time, channels)."""
        return [told.k for told in self.told]

    def probe(self) -> Tensor:
        """The first pairs of the stream, [re | im]."""
        re, im = self.stream[-1].float().chunk(2, dim=-1)
        return torch.cat((re[..., :PROBED], im[..., :PROBED]), dim=-1)


@contextmanager
def listening(model: Phase) -> Iterator[Heard]:
    """Hear the forward passes of a model that is not compiled."""
    heard, blocks = Heard(), model.trunk.blocks

    def stream(_: nn.Module, __: object, x: Tensor) -> None:
        heard.stream[:] = [x]

    def turned(_: Phases, __: object, angles: Tensor | None) -> None:
        if angles is not None:
            heard.angles.append(angles)

    def named(_: Concepts, __: object, both: tuple[Tensor, Tensor]) -> None:
        heard.probable.append(both[1])

    with ExitStack() as stack:
        middle = blocks[(len(blocks) - 1) // 2]
        hooks = [middle.register_forward_hook(stream)]
        for module in model.trunk.modules():
            if isinstance(module, Interference):
                module.heard = heard.told
                stack.callback(setattr, module, "heard", None)
            elif isinstance(module, Phases):
                hooks.append(module.register_forward_hook(turned))
            elif isinstance(module, Concepts):
                hooks.append(module.register_forward_hook(named))
        for hook in hooks:
            stack.callback(hook.remove)
        yield heard


def energies(heard: Heard) -> dict[str, Tensor]:
    """The mean of each over all sequences, heads and layers, in 0..1."""
    probe = heard.probe()
    found = {
        "local": local_energy(phasors(probe)).mean(),
        "entanglement": hinged(entanglement_energy(probe)).mean(),
    }
    if heard.keys:
        found["interference"] = torch.stack([frame_potential(k).mean() for k in heard.keys]).mean()
    if heard.probable:
        found["concepts"] = 1 - torch.stack([information(p) for p in heard.probable]).mean()
    return found
