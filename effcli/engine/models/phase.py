"""A language model whose layers remember by interference of phasors."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from effcli.engine.models.algebra import ComplexMLP
from effcli.engine.models.fused import CHUNK, refusal
from effcli.engine.models.gpt import GPT, MLP, Block, Trunk
from effcli.engine.models.layers import Cache, generators
from effcli.engine.models.mixers import Interference, PhaseAttention, PhaseMixer
from effcli.engine.models.positions import Positions, since_begin
from effcli.engine.models.turning import Phases
from effcli.engine.phase.coherence import phasors, rotate
from effcli.engine.phase.concepts import Concepts
from effcli.engine.phase.languages import LanguagePhases
from effcli.engine.phase.widths import Widths
from effcli.settings.model import GPTSettings
from effcli.settings.phase import RANK, PhaseSettings

START_TURNS = 0.16  # how far the text turns phases at first
START_TRACKER = 1.0  # all around the circle, so that some pairs are near to what is asked


class ConceptBlock(Block):
    """A block that then says what each position is about, in what all languages share."""

    def __init__(
        self, s: PhaseSettings, attention: nn.Module, mlp: nn.Module, vocab_size: int
    ) -> None:
        super().__init__(s, attention, mlp)
        self.concepts = Concepts(s.width, s.concepts, vocab_size=vocab_size if s.prior else 0)

    def forward(
        self, x: Tensor, told: Any, cache: Cache | None, layer: int, extra: Tensor | None
    ) -> Tensor:
        """The residual stream after this block and its concepts."""
        x = shared(super().forward(x, told, cache, layer, extra), told)
        tokens = told.tokens if self.concepts.has_prior else None
        x = self.concepts(x, tokens, steers=not told.is_padded)[0]
        return x if told.angles is None else rotate(x, told.angles)


def shared(x: Float[Tensor, "batch time width"], told: Positions) -> Tensor:
    """What a stream says in no language."""
    return x if told.angles is None else rotate(x, -told.angles)


class PhaseTrunk(Trunk):
    """From token ids to the last features."""

    def __init__(self, s: GPTSettings, vocab_size: int) -> None:
        super().__init__(s, vocab_size)
        assert isinstance(s, PhaseSettings)
        if s.phase_dim == "auto":
            self.widths = Widths(s.pairs, vocab_size)
        if s.languages:
            self.languages = LanguagePhases(s.languages, s.width // 2, vocab_size)
        # The separator is the last id but for the marks, two of each language.
        self.begin = vocab_size - 1 - 2 * s.languages if s.resets else None

    def told(self, tokens: Tensor, start: int, cache: Cache | None) -> Positions:
        """What is known of these positions."""
        channels = self.widths(tokens, start, cache) if hasattr(self, "widths") else None
        angles = self.languages(tokens, cache) if hasattr(self, "languages") else None
        since = None if self.begin is None else since_begin(tokens >= self.begin, cache)
        return Positions(tokens, channels, angles, since)

    def embedded(self, tokens: Tensor, start: int, told: Any) -> Tensor:
        """What each token is, in its language."""
        x = super().embedded(tokens, start, told)
        return x if told.angles is None else rotate(x, told.angles)

    def about(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time width"]:
        """What a third of the layers find, in no language."""
        told = self.told(tokens, 0, None)._replace(is_padded=True)
        x, extras = self.begun(tokens, 0, told, None)
        for layer in range(third(len(self.blocks)) + 1):
            x = self.blocks[layer](x, told, None, layer, extras[layer] if extras else None)
        return shared(x, told)

    def block(self, s: GPTSettings, layer: int) -> Block:
        """A block; the one at a third of the depth has the concepts, if there are any."""
        assert isinstance(s, PhaseSettings)
        mixer, mlp = self.mixer(s, layer), ComplexMLP(s) if s.algebra == "complex" else MLP(s)
        if not s.concepts or layer != third(s.layers):
            return Block(s, mixer, mlp)
        return ConceptBlock(s, mixer, mlp, self.vocab_size)

    def mixer(self, s: GPTSettings, layer: int) -> nn.Module:
        """A memory, or at every `hybrid`-th layer attention."""
        assert isinstance(s, PhaseSettings)
        is_attention = s.hybrid and layer % s.hybrid == s.hybrid - 1
        return PhaseAttention(s) if is_attention else Interference(s, layer)


def third(layers: int) -> int:
    """The number of the layer at a third of the depth."""
    return (layers - 1) // 3


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

    def step_flops(self) -> float:
        """Products of one more token of a long text, head included."""
        s = self.settings
        mixers = [one for one in self.trunk.modules() if isinstance(one, PhaseMixer)]
        mixing = sum(one.map_flops() + one.step_flops() for one in mixers)
        about = sum(one.forward_flops(1, 1) for one in self.concepts)
        return mixing + about + s.layers * self._mlp_flops() + 2.0 * s.width * len(self.head)

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
    def spoken(self) -> LanguagePhases | None:
        """How far each language turns what all share, where there are several."""
        found = getattr(self.trunk, "languages", None)
        return found if isinstance(found, LanguagePhases) else None

    def about(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time width"]:
        """What a third of the layers find, in no language."""
        assert isinstance(self.trunk, PhaseTrunk)
        return self.trunk.about(tokens)

    @property
    def unfused(self) -> str | None:
        """Why memories are not read by the kernels that are installed; none where all is well."""
        own = [one for one in self.trunk.modules() if isinstance(one, Interference)]
        plain = [one for one in own if one.states == 1 and not one.is_delta]
        shapes = {(one.keys // one.heads, one.channels) for one in plain if one.chunk == CHUNK}
        device, dtype = self.head.device, self.dtype
        return next(filter(None, (refusal(device, dtype, *shape) for shape in shapes)), None)

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
                if module.is_delta:
                    module.strength.weight.zero_()
                wanted = (math.log(2) / module.half_lives).expm1().log()
                module.decay.bias.copy_(wanted.flatten())
            elif isinstance(module, ComplexMLP):
                module.initialize()
            elif isinstance(module, Concepts):
                module.initialize(seed)
            elif isinstance(module, LanguagePhases):
                module.angles_embedding.zero_()
