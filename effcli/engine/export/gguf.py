"""GGUF, the files of llama.cpp, by way of the package `gguf`.

A file holds the weights that a packed file of the same model holds, bit for bit: embeddings and
head of 8 bits, codes of few bits, float16, and float32 for norms and biases. It is read again by
the package before it gets its name, and every tensor is compared. Nothing here runs llama.cpp.
"""

from pathlib import Path
from typing import Any

import numpy as np

from effcli import __version__
from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.export.architectures import Tensors, architecture_of, named
from effcli.engine.export.blocks import Part, Stored, library, restored, stored, values
from effcli.engine.export.vocabulary import Vocabulary, vocabulary_of
from effcli.engine.models.gpt import GPT
from effcli.engine.protocols import LanguageModel
from effcli.engine.quant.codes import encode
from effcli.engine.quant.packed import FLOATS, entries
from effcli.engine.runs.files import drafted
from effcli.errors import CheckError, InputError
from effcli.settings.model import GPTSettings

STATUS = "format-verified, not executed"
ROTARY_BASE, RMS_EPSILON, LAYER_EPSILON = 10_000.0, 1e-6, 1e-5  # those of the models
TANH_GELU = "computes GELU by its tanh form, not exactly"
ROUNDING = "rounds the inputs of products in its own way: to int8 in blocks, or to float16"


def write(path: Path, model: LanguageModel, tokenizer: Tokenizer, name: str) -> dict[str, Any]:
    """Write a model, whole or not at all, and say what the file holds.

    A model that is of no architecture of llama.cpp is refused. What llama.cpp does otherwise
    in a small way is in `differences`, and in the file. Sizes are bytes.
    """
    assert isinstance(model, GPT)
    gguf, settings = library(), model.settings
    one, vocabulary = architecture_of(model), vocabulary_of(tokenizer)
    tensors = named(_parts(model), settings, one)
    held = {place: stored(parts) for place, parts in tensors.items()}
    differences = [
        *([TANH_GELU] if settings.activation == "gelu" else []),
        ROUNDING,
        *vocabulary.differences,
    ]
    with drafted(path) as draft:
        writer = gguf.GGUFWriter(draft, one.name)
        writer.add_name(name)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_string("eff.version", __version__)
        writer.add_array("eff.differences", differences)
        _describe(writer, settings)
        _add_tokens(writer, vocabulary, tokenizer.separator)
        for place, tensor in held.items():
            kind = gguf.GGMLQuantizationType[tensor.kind]
            writer.add_tensor(place, tensor.data, raw_dtype=kind)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        _require_same(draft, tensors, vocabulary)
    facts = {"architecture": one.name, "status": STATUS, "differences": differences}
    return {**facts, "file_bytes": path.stat().st_size, **_described(held)}


def _parts(model: LanguageModel) -> dict[str, Part]:
    """Every tensor as a packed file has it, by its own name."""
    parts: dict[str, Part] = {}
    for name, tensor, entry in entries(model):
        whole = tensor.detach().cpu().float()
        whole = whole.half().float() if entry.codec == "f16" else whole
        if not whole.isfinite().all():
            raise InputError(f"{name} holds what is not finite")
        is_float = entry.codec in FLOATS
        parts[name] = whole.numpy() if is_float else encode(whole, entry.bits, entry.group)
    return parts


def _describe(writer: Any, s: GPTSettings) -> None:
    """The shape."""
    writer.add_context_length(s.context)
    writer.add_embedding_length(s.width)
    writer.add_block_count(s.layers)
    writer.add_feed_forward_length(s.hidden)
    writer.add_head_count(s.heads)
    writer.add_head_count_kv(s.heads)
    if s.norm == "layer":
        writer.add_layer_norm_eps(LAYER_EPSILON)
    else:
        writer.add_layer_norm_rms_eps(RMS_EPSILON)
    if s.positions == "rope":
        writer.add_rope_dimension_count(s.width // s.heads)
        writer.add_rope_freq_base(ROTARY_BASE)


def _add_tokens(writer: Any, vocabulary: Vocabulary, separator: int) -> None:
    """The tokenizer; each text begins with a separator, as it does when `eff` writes."""
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.cut)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(separator)
    writer.add_eos_token_id(separator)
    writer.add_add_bos_token(True)


def _require_same(path: Path, tensors: Tensors, vocabulary: Vocabulary) -> None:
    """Read a file again: every tensor must have the values that it was made of."""
    reader = library().GGUFReader(path)
    found = {one.name: Stored(one.data, one.tensor_type.name) for one in reader.tensors}
    for name in sorted(found.keys() | tensors.keys()):
        whole = np.concatenate([values(part) for part in tensors.get(name, [])] or [np.zeros(0)])
        if name not in found or not np.array_equal(restored(found[name]), whole):
            raise CheckError(f"{name} is not what was written")
    for name, expected in (("tokens", vocabulary.tokens), ("merges", vocabulary.merges)):
        field = reader.get_field(f"tokenizer.ggml.{name}")
        if field is None or field.contents() != expected:
            raise CheckError(f"the {name} are not what was written")


def _described(held: dict[str, Stored]) -> dict[str, Any]:
    """Types of the tensors, the bytes of each, and what a weight of the blocks' matrices takes."""
    kinds = dict.fromkeys(tensor.kind for tensor in held.values())
    of = {kind: [t.data.nbytes for t in held.values() if t.kind == kind] for kind in kinds}
    types = {kind: {"tensors": len(sizes), "bytes": sum(sizes)} for kind, sizes in of.items()}
    matrices = [t for n, t in held.items() if n.startswith("blk.") and t.data.ndim == 2]
    size, count = (sum(sizes) for sizes in zip(*map(_bytes_and_weights, matrices), strict=True))
    return {"types": types, "linear_bits_per_weight": 8 * size / count}


def _bytes_and_weights(tensor: Stored) -> tuple[int, int]:
    return tensor.data.nbytes, restored(tensor).size
