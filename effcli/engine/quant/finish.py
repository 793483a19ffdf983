"""The file of a student, and what is measured of it, not computed."""

from typing import Any

import torch

from effcli.engine.protocols import LanguageModel
from effcli.engine.quant import packed
from effcli.engine.quant.bitlinear import bit_layers
from effcli.engine.quant.codes import relative_error, rounded
from effcli.engine.quant.document import Sizes
from effcli.engine.quant.verify import verify
from effcli.engine.records import Student
from effcli.engine.session import Session
from effcli.errors import CheckError

FILE = "student.eff"
WINDOWS = 64  # at most, evenly spread, that the file is compared with the trained model on


def finished(session: Session, facts: dict[str, Any]) -> Student:
    """Write the student of a run, read it again, and compare; at the expense of `eval`."""
    parts, path = session.parts, session.run.folder / FILE
    with parts.meter.timing("eval"):
        sizes = packed.write(path, parts.model, session.corpus.tokenizer, facts)
        tokens = session.held_out.tokens
        windows = torch.from_numpy(tokens[:: -(-len(tokens) // WINDOWS)])
        found = verify(path, parts.model, windows)
    if not found.holds:
        message = f"{path} is not the trained model: {found.wrong_codes} codes differ, logits by"
        raise CheckError(f"{message} {found.logit_gap:.2g}")
    made = {
        "file": FILE,
        **described(sizes),
        "loss": found.loss,
        "roundtrip_gap": found.roundtrip_gap,
        "logit_gap": found.logit_gap,
        "agreement": found.agreement,
        "weight_error": weight_error(parts.model),
    }
    return Student({**facts, **made})


def described(sizes: Sizes) -> dict[str, Any]:
    """What the bytes of a file are for, and how many times more floats would take."""
    parts = ("linear", "embedding", "tables", "tokenizer", "rest")
    return {
        "file_bytes": sizes.total,
        "bytes": {name: getattr(sizes, name) for name in parts},
        "linear_bits_per_weight": sizes.linear_bits_per_weight,
        "ratio_linear": sizes.ratio_linear(),
        "ratio_total": sizes.ratio_total(),
        "ratio_linear_bf16": sizes.ratio_linear(16),
        "ratio_total_bf16": sizes.ratio_total(16),
    }


def weight_error(model: LanguageModel) -> float | None:
    """Relative mean squared error of all weights of few bits together; none without any."""
    layers = bit_layers(model).values()
    if not layers:
        return None
    weights = [one.weight.detach() for one in layers]
    others = [rounded(w, one.bits, one.group) for w, one in zip(weights, layers, strict=True)]
    whole, other = (torch.cat([w.flatten() for w in some])[None] for some in (weights, others))
    return relative_error(whole, other)
