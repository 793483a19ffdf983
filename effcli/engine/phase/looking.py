"""What the phases of a trained model do, measured on held-out text."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from effcli.engine.models.mixers import Interference, PhaseAttention
from effcli.engine.models.phase import Phase
from effcli.engine.phase.coherence import (
    SCALES,
    mean_coherence,
    phasors,
    resultant,
    scale_coherences,
    semantic_coherence,
    stability,
)
from effcli.engine.phase.concepts import strongest, usage_perplexity
from effcli.engine.phase.energies import (
    entanglement_energy,
    frame_potential,
    half_similarity,
    local_energy,
    welch_bound,
)
from effcli.engine.phase.listening import Heard, listening
from effcli.engine.records import PhasesFound

WINDOWS = 32  # at most, evenly spread
SPAN, DECAY = 16, 15 / 16  # tokens of a mean phasor, and what a moving one keeps of the one before


@torch.no_grad()
def look(model: Phase, tokens: Int[Tensor, "batch time"]) -> dict[str, Any]:
    """Coherence, energies and rotations, each a mean over sequences, heads and layers.

    The model runs as it is written, compiled or not.
    """
    return facts(model, hear(model, tokens))


@torch.no_grad()
def hear(model: Phase, tokens: Int[Tensor, "batch time"]) -> Heard:
    """One forward pass of the model as it is when it is used."""
    was_training = model.training
    model.eval()
    with listening(model) as heard:
        model.trunk.forward(tokens)
    model.train(was_training)
    return heard


def facts(model: Phase, heard: Heard) -> dict[str, Any]:
    """Coherence, energies and rotations of what was heard."""
    probe = heard.probe()
    u, time = phasors(probe), probe.shape[1]
    scales = scale_coherences(u).mean(0).tolist()
    found: dict[str, Any] = {
        "coherence": dict(zip(map(str, SCALES), scales, strict=False)),
        "mean_coherence": mean_coherence(u).mean().item(),
        "stability": stability(u, DECAY).mean().item(),
        "resultant": resultant(u, min(SPAN, time)).mean().item(),
        "semantic_coherence": None,
        "local_energy": local_energy(u).mean().item(),
        "entanglement": entanglement_energy(probe).mean().item(),
        "half_similarity": half_similarity(probe).item(),
        "frame_potential": None,
        "welch_bound": None,
        "rotation_std": None,
        "half_lives": [],
        "imaginary_share": imaginary_share(probe),
        "state_floats": state_floats(model),
        "concepts_used": None,
    }
    if heard.keys:
        potentials = [frame_potential(k).mean() for k in heard.keys]
        found["frame_potential"] = torch.stack(potentials).mean().item()
        found["welch_bound"] = welch_bound(time, heard.keys[0].shape[-1])
    if heard.angles:
        steps = torch.cat([a.diff(dim=2).flatten() for a in heard.angles])
        found["rotation_std"] = steps.std().item()
    for layer in (one for one in model.trunk.modules() if isinstance(one, Interference)):
        rate = torch.nn.functional.softplus(layer.decay.bias.float())
        found["half_lives"] += (torch.tensor(2.0).log() / rate).tolist()
    if model.concepts:
        weights = strongest(heard.probable[0], model.concepts[0].top)
        found["semantic_coherence"] = semantic_coherence(u, weights).mean().item()
        found["concepts_used"] = float(usage_perplexity(weights.mean((0, 1))))
    return found


def imaginary_share(x: Tensor) -> float:
    """Share of the imaginary halves in the squares of all pairs."""
    re, im = (half.square().sum() for half in x.chunk(2, dim=-1))
    return float(im / (re + im).clamp(min=1e-30))


@torch.no_grad()
def state_floats(model: Phase) -> int:
    """Numbers that are kept of one text that is written, however long it is."""
    was_training = model.training
    model.eval()
    windows = [one.window for one in model.trunk.modules() if isinstance(one, PhaseAttention)]
    cache, length = model.new_cache(1), max(windows, default=1)
    tokens = torch.zeros(1, length, dtype=torch.long, device=model.head.device)
    model.trunk.forward(tokens, cache)
    model.train(was_training)
    return cache.floats


def measured(model: Phase, windows: Tensor) -> PhasesFound:
    """The record of a run."""
    some = windows[:: -(-len(windows) // WINDOWS)]
    return PhasesFound(look(model, some.to(model.head.device)))
