"""A language model whose layers remember by interference of phasors."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from effcli.engine.models.gpt import GPT, Block, Trunk
from effcli.engine.models.layers import Cache, generators
from effcli.engine.models.mixers import Interference, PhaseAttention, PhaseMixer, Phases
from effcli.engine.phase.coherence import phasors
from effcli.engine.phase.concepts import Concepts
from effcli.engine.phase.widths import Widths
from effcli.settings.model import GPTSettings
from effcli.settings.phase import RANK, PhaseSettings

START_TURNS, START_TRACKER = 0.16, 0.3  # how far the text turns phases at first


class ConceptBlock(Block):
    """A block that then says what each position is about."""

    def __init__(self, s: PhaseSettings, attention: nn.Module) -> None:
        super().__init__(s, attention)
        self.concepts = Concepts(s.width, s.concepts)

    def forward(
        self, x: Tensor, told: Any, cache: Cache | None, layer: int, extra: Tensor | None
    ) -> Tensor:
        """The residual stream after this block and its concepts."""
        out: Tensor = self.concepts(super().forward(x, told, cache, layer, extra))[0]
        return out


class PhaseTrunk(Trunk):
    """From token ids to the last features."""

    def __init__(self, s: GPTSettings, vocab_size: int) -> None:
        super().__init__(s, vocab_size)
        assert isinstance(s, PhaseSettings)
        if s.phase_dim == "auto":
            self.widths = Widths(s.pairs, vocab_size)

    def told(self, tokens: Tensor, start: int, cache: Cache | None) -> Tensor | None:
        """Which channels of keys and queries count; none where all do."""
        return self.widths(tokens, start, cache) if hasattr(self, "widths") else None

    def block(self, s: GPTSettings, layer: int) -> Block:
        """A block; the one at a third of the depth has the concepts, if there are any."""
        assert isinstance(s, PhaseSettings)
        is_third = layer == (s.layers - 1) // 3
        return (ConceptBlock if s.concepts and is_third else Block)(s, self.mixer(s, layer))

    def mixer(self, s: GPTSettings, layer: int) -> nn.Module:
        """A memory, or at every `hybrid`-th layer attention."""
        assert isinstance(s, PhaseSettings)
        is_attention = s.hybrid and layer % s.hybrid == s.hybrid - 1
        return PhaseAttention(s) if is_attention else Interference(s, layer)


class Phase(GPT):
    """The modern GPT with memories in the place of attention, and as many weights."""

    trunk_type = PhaseTrunk
    endless = True

    def new_cache(self, batch: int) -> Cache:
        """An empty memory."""
        del batch  # which the first tokens tell
        return Cache()

    def forward_flops(self, batch: int, time: int, *, dense: bool = False) -> float:
        """Products only: 2·m·n·k each; within a chunk or window only those of the past."""
        s = self.settings
        per_token = s.layers * self._mlp_flops() + 2 * s.width * len(self.head)
        mixers = [one for one in self.trunk.modules() if isinstance(one, PhaseMixer)]
        mixing = sum(one.flops(time, dense=dense) for one in mixers)
        about = sum(one.forward_flops(batch, time) for one in self.concepts)
        return float(batch * (time * per_token + mixing) + about)

    def role(self, name: str, parameter: Tensor) -> str:
        """The small maps that steer memories and phases are Adam's."""
        steers = (".decay.", ".strength.", ".narrow.", ".widen.")
        return "scalar" if any(part in name for part in steers) else super().role(name, parameter)

    @torch.no_grad()
    def keep(self, pairs: int) -> None:
        """Cut keys and queries to the first pairs of each head: less work, and less to remember.

        Computes what the whole model does at that width. Not to be trained any more.
        """
        for one in self.trunk.modules():
            if isinstance(one, PhaseMixer):
                one.keep(pairs)

    @property
    def widths(self) -> Widths | None:
        """What decides how many pairs count, where that is not always all of them."""
        found = getattr(self.trunk, "widths", None)
        return found if isinstance(found, Widths) else None

    @property
    def pairs(self) -> int:
        """Phases of the keys of each head, all of them."""
        assert isinstance(self.settings, PhaseSettings)
        return self.settings.pairs

    @property
    def concepts(self) -> list[Concepts]:
        """The layer of concepts, if there is one."""
        return [one for one in self.trunk.modules() if isinstance(one, Concepts)]

    @property
    def phases(self) -> Tensor:
        """Phasors of length 1 of every token."""
        return phasors(self.trunk.embedding.weight[: self.vocab_size])

    @torch.no_grad()
    def _initialize(self, seed: int) -> None:
        """Phases hardly turn at first, and memories are of all lengths."""
        super()._initialize(seed)
        drawn = {name: generator for name, _, generator in generators(self, seed)}
        for name, module in self.trunk.named_modules():
            if isinstance(module, Phases) and module.way == "data":
                rows = torch.full((module.heads, 1, 1), START_TURNS)
                assert isinstance(self.settings, PhaseSettings)
                if self.settings.tracker:
                    rows[0] = START_TRACKER
                weight = module.widen.weight.view(module.heads, -1, RANK)
                weight.normal_(0.0, 1.0, generator=drawn[f"trunk.{name}.widen.weight"]).mul_(rows)
            elif isinstance(module, Interference):
                module.decay.weight.zero_()
                module.strength.weight.zero_()
                wanted = (math.log(2) / module.half_lives).expm1().log()
                module.decay.bias.copy_(wanted.flatten())
            elif isinstance(module, Concepts):
                module.initialize(seed)
