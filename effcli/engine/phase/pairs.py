"""Texts that say the same in several languages, for a model to bring together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.models.phase import Phase
from effcli.engine.phase.coherence import phasors
from effcli.engine.protocols import sent
from effcli.errors import InputError
from effcli.registry import suggestion

LEAST, LONGEST = 20, 64  # rows of a file, and tokens of a text that are read, with its mark
ASIDE, MOST_ASIDE = 10, 500  # every tenth row is never trained on; so many are compared
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Rows of texts that mean the same, in two languages or more."""

    languages: tuple[str, ...]
    rows: list[list[Ids]]
    """Of each row, the text in each language, which begins with its mark."""
    aside: list[list[Ids]]
    """Rows that are never trained on."""

    @classmethod
    def read(cls, path: Path, tokenizer: Tokenizer) -> "Pairs":
        """From a file with tabs; its first line names the languages.

        Raises InputError with the number of the line that is wrong.
        """
        try:
            text = path.read_text("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise InputError(f"align: {path} is not UTF-8: {error.reason}") from None
        except OSError as error:
            raise InputError(f"align: {path} cannot be read: {error.strerror}") from None
        lines = text.removesuffix("\n").split("\n")  # other separators are a text's own
        names = _names(path, lines, tokenizer.marks)
        rows = []
        for number, line in enumerate(lines[1:], start=2):
            texts = [text.strip() for text in line.split("\t")]
            if len(texts) != len(names) or not all(texts):
                message = f"align: line {number} of {path} has not {len(names)} texts"
                raise InputError(message, "one for each language of the first line, by tabs")
            begun = zip(names, map(tokenizer.encode, texts), strict=True)
            rows.append([np.append(tokenizer.begin(n), ids[: LONGEST - 1]) for n, ids in begun])
        if len(rows) < LEAST:
            raise InputError(f"align: {path} has {len(rows)} pairs; {LEAST} are the least")
        aside = rows[ASIDE - 1 :: ASIDE]
        del rows[ASIDE - 1 :: ASIDE]
        return cls(names, rows, aside[:MOST_ASIDE])


def _names(path: Path, lines: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in lines[0].split("\t")) if lines[0] else ()
    for name in names:
        if name not in known:
            message = f"align: {name!r} in the first line of {path} is no language of this run"
            raise InputError(message, suggestion(name, list(known)))
    if len(set(names)) != len(names) or len(names) < 2:
        raise InputError(f"align: the first line of {path} names no two languages")
    return names


def about(model: Phase, texts: Sequence[Ids]) -> tuple[Tensor, Tensor | None]:
    """What texts are about: mean phasors (texts, width), and mean shares of the codes, if any.

    After a third of the layers, in no language; all tokens but the mark.
    """
    tokens, counts = _padded(texts, model.head.device)
    x = model.about(tokens)
    weights = (counts / counts.sum(1, keepdim=True)).unsqueeze(-1)
    shares = None
    if model.concepts:
        (layer,) = model.concepts
        shares = (layer.assign(x, tokens if layer.has_prior else None) * weights).sum(1)
    return (phasors(x) * weights).sum(1), shares


def _padded(
    texts: Sequence[Ids], device: torch.device
) -> tuple[Int[Tensor, "texts time"], Float[Tensor, "texts time"]]:
    """All of one length, and which positions count."""
    tokens = np.zeros((len(texts), max(map(len, texts))), dtype=np.int64)
    counts = np.zeros(tokens.shape, dtype=np.float32)
    for row, ids in enumerate(texts):
        tokens[row, : len(ids)] = ids
        counts[row, min(1, len(ids) - 1) : len(ids)] = 1
    return sent(torch.from_numpy(tokens), device), sent(torch.from_numpy(counts), device)
