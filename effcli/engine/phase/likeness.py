"""How like held-out text a model's own texts are, by its own features."""

import time
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from effcli.engine.data.corpus import Split
from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.measure.mauve import AT_ONCE, LEAST, mauve, text_features
from effcli.engine.models.generate import write
from effcli.engine.protocols import LanguageModel
from effcli.engine.records import Reading, Watch
from effcli.errors import InputError
from effcli.settings.generate import SamplingSettings

LONGEST = 256  # tokens of a text


def text_length(model: LanguageModel) -> int:
    """Tokens of each text: what the model sees at once, and not too many to write."""
    return min(LONGEST, model.context)


def require_texts(held_out: Split, tokenizer: Tokenizer, count: int, length: int) -> None:
    """Refuse to compare with more texts than there are, or in other languages."""
    if tokenizer.marks:
        hint = "--mauve is for runs without --languages"
        raise InputError("mauve: the model would write in its first language alone", hint)
    if (there := held_out.windows(length)) >= count:
        return
    hint = f"--mauve {there} is the most" if there >= LEAST else "prepare more text"
    has = f"the held-out text has {there} texts of {length} tokens"
    raise InputError(f"mauve: {has}, and {count} are asked for", hint)


def likeness(
    model: LanguageModel, tokenizer: Tokenizer, held_out: Split, count: int, watch: Watch
) -> dict[str, Any]:
    """MAUVE of so many texts of the model and of held-out text, and of two halves of the latter.

    Halves are every second text of twice as many. Without so many the ceiling is not known. The
    model's texts begin where documents do, held-out ones anywhere: that much they differ.
    """
    length, has_ceiling = text_length(model), True
    windows = torch.from_numpy(held_out.read(held_out.spread(length, 2 * count), length))
    if len(windows) < 2 * count:
        has_ceiling = False
        windows = torch.from_numpy(held_out.read(held_out.spread(length, count), length))
    theirs = text_features(model, windows)
    first = theirs[::2] if has_ceiling else theirs
    own = text_features(model, written(model, tokenizer, count, length, watch))
    return {
        "texts": count,
        "tokens": length,
        "held_out": held_out.windows(length),
        "score": mauve(own, first),
        "ceiling": mauve(theirs[1::2], first) if has_ceiling else None,
    }


def written(
    model: LanguageModel, tokenizer: Tokenizer, count: int, length: int, watch: Watch
) -> Int[Tensor, "texts time"]:
    """Texts of the model, without any sampler's help, that go on behind the ends of documents."""
    texts: list[list[int]] = []
    started, size = time.monotonic(), 0
    for number, begin in enumerate(range(0, count, AT_ONCE)):
        sampling = SamplingSettings(
            max_new_tokens=length,
            temperature=1.0,
            top_p=1.0,
            num_return_sequences=min(AT_ONCE, count - begin),
            seed=number,
        )
        for writings in write(model, tokenizer, [""], sampling, one_document=False):
            size += int(tokenizer.token_bytes[[one.ids[-1] for one in writings]].sum())
            tokens = begin * length + sum(len(one.ids) for one in writings)
            share, seconds = tokens / (count * length), time.monotonic() - started
            watch(Reading("writing", share, tokens, size, seconds))
        texts += [one.ids for one in writings]
    return torch.tensor(texts)
