"""Which architecture of llama.cpp computes what a model computes, and its tensors by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from effcli.engine.export.blocks import Part, taken, values
from effcli.engine.models.gpt import GPT
from effcli.engine.quant.bitlinear import NORMED, linear_layers
from effcli.errors import InputError
from effcli.settings.model import GPTSettings

Tensors = dict[str, list[Part]]
"""What is one below the other in each tensor."""
PLAIN = {
    "embedding_norm": False,
    "soft_cap": 0.0,
    "shift": 0,
    "pair_rows": 0,
    "value_tables": False,
}
"""What no architecture has beside these."""
ROTARY = {"positions": "rope", "norm": "rms", "qk_norm": False, "subnorm": "off"}
LAYERS = {
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_output",
    "mlp.up": "ffn_up",
    "mlp.gate": "ffn_gate",
    "mlp.down": "ffn_down",
}
SUBNORMS = {"attention.output": "attn_sub_norm", "mlp.down": "ffn_sub_norm"}


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp calls an architecture."""

    name: str
    shape: Mapping[str, Any]
    """Settings that a model must have; those that are not named may be anything."""
    turns_neighbors: bool = False
    """Rotary pairs are channels (2c, 2c + 1) of a head, where they are (c, c + half) here."""
    is_fused: bool = False
    """Queries, keys and values are one matrix, and every layer has a bias."""


ARCHITECTURES = (
    Architecture(
        "gpt2",
        {"positions": "learned", "norm": "layer", "qk_norm": False, "subnorm": "off"}
        | {"activation": "gelu"},
        is_fused=True,
    ),
    Architecture("llama", ROTARY | {"activation": "swiglu"}, turns_neighbors=True),
    Architecture("arcee", ROTARY | {"activation": "relu2", "bias": False}, turns_neighbors=True),
    Architecture("qwen3", ROTARY | {"activation": "swiglu", "bias": False, "qk_norm": True}),
    Architecture(
        "bitnet",
        ROTARY | {"activation": "swiglu", "bias": False, "tied": True, "subnorm": "on"},
    ),
)


def architecture_of(model: GPT) -> Architecture:
    """The architecture that a model is one of; none is refused, with every part in its way."""
    own = _shape(model)
    wanted = {one.name: PLAIN | dict(one.shape) for one in ARCHITECTURES}
    missing = {
        name: {key: value for key, value in shape.items() if own[key] != value}
        for name, shape in wanted.items()
    }
    nearest = min(ARCHITECTURES, key=lambda one: len(missing[one.name]))
    if not (others := missing[nearest.name]):
        return nearest
    parts = ", ".join(f"model.{name}={_text(own[name])}" for name in others)
    sets = " ".join(f"--set model.{name}={_text(value)}" for name, value in others.items())
    raise InputError(
        f"llama.cpp has no architecture with {parts}",
        f"train with --recipe textbook, or as {nearest.name} with {sets}",
    )


def named(parts: Mapping[str, Part], s: GPTSettings, one: Architecture) -> Tensors:
    """The parts of a model, given by their own names, as tensors of an architecture."""
    tensors = {"token_embd.weight": [parts["trunk.embedding.weight"]]}
    if s.positions == "learned":
        tensors["position_embd.weight"] = [parts["trunk.positions.weight"]]
    if not s.tied:
        tensors["output.weight"] = [parts["unembedding.weight"]]
    tensors |= _norm(parts, "trunk.norm", "output_norm", s)
    for number in range(s.layers):
        prefix = f"trunk.blocks.{number}."
        own = {n.removeprefix(prefix): p for n, p in parts.items() if n.startswith(prefix)}
        block = _norms(own, s) | _layers(own, s, one)
        tensors |= {f"blk.{number}.{name}": found for name, found in block.items()}
    return tensors


def _norms(own: Mapping[str, Part], s: GPTSettings) -> Tensors:
    """The norms of a block; those without a gain have ones."""
    found = _norm(own, "norm1", "attn_norm", s) | _norm(own, "norm2", "ffn_norm", s)
    if s.qk_norm:
        ones = np.ones(s.width // s.heads, np.float32)
        found |= {f"{name}.weight": [ones] for name in ("attn_q_norm", "attn_k_norm")}
    gains = {place: f"{name}.gain" for name, place in SUBNORMS.items()}
    return found | {f"{n}.weight": [own[gain]] for n, gain in gains.items() if gain in own}


def _norm(parts: Mapping[str, Part], name: str, place: str, s: GPTSettings) -> Tensors:
    if s.norm == "rms":
        return {f"{place}.weight": [np.ones(s.width, np.float32)]}
    return {f"{place}.{kind}": [parts[f"{name}.{kind}"]] for kind in ("weight", "bias")}


def _layers(own: Mapping[str, Part], s: GPTSettings, one: Architecture) -> Tensors:
    """The linear layers of a block."""
    found: Tensors = {}
    for name, place in LAYERS.items():
        for kind in ("weight", "bias"):
            part = own.get(f"{name}.{kind}")
            if part is None and one.is_fused and kind == "bias" and f"{name}.weight" in own:
                part = np.zeros(len(values(own[f"{name}.weight"])), np.float32)
            if part is not None:
                turned = one.turns_neighbors and place in ("attn_q", "attn_k")
                part = taken(part, _neighbors(s)) if turned else part
                fused = one.is_fused and place in ("attn_q", "attn_k", "attn_v")
                found.setdefault(f"{'attn_qkv' if fused else place}.{kind}", []).append(part)
    return found


def _neighbors(s: GPTSettings) -> list[int]:
    """Rows of queries and keys such that the channels of each rotary pair are neighbors."""
    rows = np.arange(s.width).reshape(s.heads, 2, -1)
    return [int(row) for row in rows.swapaxes(1, 2).ravel()]


def _shape(model: GPT) -> dict[str, Any]:
    """The settings of a model, and which of its layers really have a norm of their own."""
    normed = [n for n in linear_layers(model) if n.endswith(NORMED)]
    gains = {getattr(model.get_submodule(name), "gain", None) is not None for name in normed}
    subnorm = "on" if gains == {True} else "off" if gains == {False} else "some"
    return {**model.settings.model_dump(), "subnorm": subnorm}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"
