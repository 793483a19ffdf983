"""Models that grow wider and deeper, and compute what they did (Chen et al. 2016, Net2Net).

With widths d < D and s = √(D/d), whatever writes into the residual stream is multiplied by s, and
whatever reads a norm of it divided by s. New channels of the stream are 0, so the mean square of
all D is what it was of the d, and norms are the same, their eps included. LayerNorm subtracts the
mean: there new channels hold the mean of the old ones, and are 0 behind it. New channels are read
at random, new heads and units of the MLP compute at random and write nothing, new blocks write
nothing. All of them are trained from the first or second step on.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from effcli.engine.data.order import mix64
from effcli.engine.models.gpt import GPT
from effcli.engine.optim.optimizer import GUARD
from effcli.errors import InputError
from effcli.registry import resolve_place
from effcli.settings.model import GPTSettings
from effcli.settings.phase import PhaseSettings

SIZES = {"width", "heads", "layers"}
_READ = {"query", "key", "value", "gate", "up", "narrow", "decay", "strength", "unembedding"}
_TABLES = {"embedding", "positions", "pair_table"}  # which write rows into the stream
_WRITE = {"output", "down"}
_NORMS = {"norm", "norm1", "norm2"}
_POWERS = {"exp_avg_sq": -2}  # of a tensor's factor, for what is not a mean of gradients


@dataclass(frozen=True)
class _Place:
    """Where a tensor goes in a larger one; but for `axis`, into its corner."""

    factor: float = 1.0
    axis: int | None = None
    index: Tensor | None = None
    is_alone: bool = False
    """Whether all else in the larger one is 0."""
    is_written: bool = False
    """Whether `axis` is the stream, which it writes."""

    def put(self, small: Tensor, large: Tensor, power: int = 1) -> None:
        """Put a tensor there, times a power of its factor."""
        small = (small * self.factor**power).to(large)
        part = large[tuple(slice(n if i != self.axis else None) for i, n in enumerate(small.shape))]
        if self.axis is None or self.index is None:
            part.copy_(small)
        else:
            part.index_copy_(self.axis, self.index.to(large.device), small)


class Growth:
    """How the tensors of one model, and their moments, become those of a larger one.

    Raises InputError where the sizes do not nest, or where what is asked for cannot be exact.
    """

    def __init__(self, small: GPTSettings, large: GPTSettings, vocab_size: int) -> None:
        _require(small, large)
        self.large = large
        self._width, self._old, self._new = small.width, small, large
        self._scale = math.sqrt(large.width / small.width)
        self._stream = _halves(small.width, large.width)
        self._units = _halves(small.hidden, large.hidden)
        self._is_complex = isinstance(large, PhaseSettings) and large.algebra == "complex"
        is_new = torch.ones(large.width, dtype=torch.bool)
        is_new[self._stream] = False
        self._beyond = is_new.nonzero().flatten()
        with torch.device("meta"):
            models = [resolve_place(s.place)(s, vocab_size, 0) for s in (small, large)]
        kinds = ([(type(b), type(b.attention)) for b in m.trunk.blocks] for m in models)
        self._blocks = _spread(*kinds)
        self._shapes = {name: p.shape for name, p in models[1].named_parameters()}

    def grow(self, model: GPT, seed: int) -> GPT:
        """The larger model, on the CPU, which computes the same logits."""
        with torch.random.fork_rng([]):
            torch.manual_seed(mix64(seed) % 2**63)
            large = type(model)(self.large, model.vocab_size, seed)
            self.fill(model, large)
        return large

    @torch.no_grad()
    def fill(self, model: GPT, large: GPT) -> None:
        """Give a new model the weights that make it compute what the small one does."""
        tensors = large.state_dict()
        old = {f"blocks.{number}." for number in self._blocks}
        for name, tensor in tensors.items():
            block = re.search(r"blocks\.\d+\.", name)
            if block and block[0] not in old and _owner(name) in _WRITE:
                tensor.zero_()
        for name, small in model.state_dict().items():
            place, tensor = self._place(name), tensors[self._renamed(name)]
            if place.is_alone:
                tensor.zero_()
            place.put(small, tensor)
            if place.is_written and self._new.norm == "layer":
                self._put_mean(place, small, tensor)
            if name.endswith("concepts.output.weight"):  # codes are 0 there: nothing is written
                tensor[:, small.shape[1] :].normal_(0.0, 1 / math.sqrt(tensor.shape[1]))

    def moments(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state of an optimizer of the larger model: the old moments, and 0 for what is new.

        Where weights are multiplied, their gradients are divided.
        """
        grown: dict[str, Any] = {}
        for path, value in state.items():
            name, _, key = path.rpartition("/")
            if path == GUARD or value.ndim == 0:
                grown[path if path == GUARD else f"{self._renamed(name)}/{key}"] = value
                continue
            place, name = self._place(name), self._renamed(name)
            if key == "squares":  # a mean over the channels of each row
                ratio = self._width / self._new.width
                grown[f"{name}/{key}"] = value * (ratio / place.factor**2)
                continue
            larger = value.new_zeros(self._shapes[name])
            place.put(value, larger, _POWERS.get(key, -1))
            grown[f"{name}/{key}"] = larger
        return grown

    def _put_mean(self, place: _Place, small: Tensor, tensor: Tensor) -> None:
        assert place.axis is not None
        mean = small.mean(place.axis, keepdim=True)
        shape = [len(self._beyond) if i == place.axis else n for i, n in enumerate(small.shape)]
        _Place(place.factor, place.axis, self._beyond).put(mean.expand(shape), tensor)

    def _place(self, name: str) -> _Place:
        owner, is_weight, scale = _owner(name), name.endswith("weight"), self._scale
        gains = self._new.norm == "layer"  # which make up for the width in the place of readers
        if owner in _TABLES:
            return _Place(scale, 1, self._stream, is_alone=True, is_written=True)
        if owner in _WRITE and self._is_complex and "concepts" not in name:
            # Rows are complex channels, new ones behind the old; columns are [re | im].
            index = self._stream if owner == "output" else self._units
            return _Place(scale, 1, index, is_alone=True)
        if owner in _WRITE:
            return _Place(scale, 0, self._stream, is_alone=True, is_written=True)
        if owner in _NORMS:
            twice = 1 / scale if self._new.tied and owner == "norm" else 1.0
            return _Place(twice / scale if is_weight else twice, 0, self._stream)
        if owner in _READ and is_weight:
            alone = "concepts" in name
            return _Place(1.0 if gains else 1 / scale, 1, self._stream, is_alone=alone)
        if owner in ("shift1", "shift2"):
            return _Place(1.0, 0, self._stream)
        if owner == "short":  # queries, then keys
            both = torch.arange(self._width)
            return _Place(1.0, 0, torch.cat((both, self._new.width + both)))
        return _Place(is_alone=name.endswith("codes_embedding"))

    def _renamed(self, name: str) -> str:
        return re.sub(
            r"(blocks|value_tables)\.(\d+)",
            lambda found: f"{found[1]}.{self._blocks[int(found[2])]}",
            name,
        )


def grown(model: GPT, settings: GPTSettings, seed: int) -> GPT:
    """A model of these settings, on the CPU, that computes the same logits.

    Raises InputError as `Growth` does.
    """
    return Growth(model.settings, settings, model.vocab_size).grow(model, seed)


def _halves(small: int, large: int) -> Tensor:
    """Where channels go if each half of them grows, so that [re | im] stay pairs."""
    half, rest = small // 2, small - small // 2
    return torch.cat((torch.arange(half), large // 2 + torch.arange(rest)))


def _owner(name: str) -> str:
    """The module that has a tensor, by its own name; that of the list where it is in a list."""
    *_, before, last, _ = ["", "", *name.split(".")]
    return before if last == "weights" else last


def _require(small: GPTSettings, large: GPTSettings) -> None:
    if type(small) is not type(large) or type(small) not in (GPTSettings, PhaseSettings):
        raise InputError(f"a model called {small.name} cannot grow into one called {large.name}")
    if small.model_dump(exclude=SIZES) != large.model_dump(exclude=SIZES):
        raise InputError("a model that grows changes its width, heads and layers alone")
    if small.width * large.heads != large.width * small.heads:
        ways = f"{small.width} by {small.heads} and {large.width} by {large.heads}"
        raise InputError(f"heads keep their channels when a model grows, not {ways}")
    for name in ("width", "hidden", "layers"):
        if getattr(small, name) > getattr(large, name):
            raise InputError(f"a model does not shrink when it grows: {name}")
    if small.width == large.width:
        return
    if large.tied and large.norm == "rms":
        hint = "use model.tied=false, model.norm=layer, or grow in depth alone"
        raise InputError("tied tables cannot be widened behind a norm without gains", hint)
    if large.embedding_norm and large.norm == "layer":
        hint = "use model.embedding_norm=false or model.norm=rms"
        raise InputError("a normed embedding cannot be widened before a LayerNorm", hint)
    if isinstance(large, PhaseSettings) and large.algebra == "complex" and large.norm == "layer":
        hint = "use model.norm=rms, or grow in depth alone"
        raise InputError("complex maps write no mean: none are widened behind a LayerNorm", hint)


Kinds = Sequence[tuple[type, type]]


def _spread(small: Kinds, large: Kinds) -> list[int]:
    """Which block each one becomes: in order, one of its kind, spread as evenly as can be."""
    ways: dict[int, tuple[float, list[int]]] = {-1: (0.0, [])}  # by the last block that is taken
    for number, kind in enumerate(small):
        even = (number + 0.5) * len(large) / len(small) - 0.5
        longer: dict[int, tuple[float, list[int]]] = {}
        for place, other in enumerate(large):
            before = [way for last, way in ways.items() if last < place]
            if other == kind and before:
                cost, taken = min(before)
                longer[place] = (cost + (place - even) ** 2, [*taken, place])
        ways = longer
    if not ways:
        depths = f"{len(small)} layers into {len(large)}"
        hint = "choose another depth, model.hybrid or model.concepts"
        raise InputError(f"layers of several kinds do not keep their order, {depths}", hint)
    return min(ways.values())[1]
