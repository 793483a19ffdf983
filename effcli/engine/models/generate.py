"""Text from a model, one token at a time, with the keys and values of the past kept."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.models.sampling import Sampler
from effcli.engine.protocols import LanguageModel
from effcli.engine.records import Stop, never
from effcli.errors import Stopped
from effcli.settings.generate import SamplingSettings

Reason = Literal["length", "end", "stop", "loop"]
"""Why a text ended: all tokens asked for, end of the document, a stop text, a loop."""
LOOP_TOKENS, LONGEST_PERIOD = 64, 16  # so a loop has been gone through four times at least


@dataclass
class Writing:
    """One text that is being written."""

    ids: list[int] = field(default_factory=list)
    reason: Reason | None = None
    """Why it ended; none while it has not."""
    _shown: int = 0

    def text(self, tokenizer: Tokenizer, stops: tuple[str, ...]) -> str:
        """What was written, up to the first stop text, without bytes that are no characters."""
        text = tokenizer.decode(self.ids).replace("\ufffd", "")
        cuts = [at for stop in stops if (at := text.find(stop)) >= 0]
        return text[: min(cuts)] if cuts else text

    def news(self, tokenizer: Tokenizer, stops: tuple[str, ...]) -> str:
        """What can be shown that was not shown yet: no half characters, no half stop texts."""
        text = self.text(tokenizer, stops)
        end = len(text)
        if self.reason is None:
            end -= max((len(stop) - 1 for stop in stops), default=0)
        fresh = text[self._shown : max(end, self._shown)]
        self._shown = max(end, self._shown)
        return fresh


@torch.inference_mode()
def write(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    settings: SamplingSettings,
    stop: Stop = never,
    *,
    one_document: bool = True,
) -> Iterator[list[Writing]]:
    """Continue prompts, all at once; yields all texts after every token.

    A new document is begun before each prompt. With its end a text ends, if `one_document`
    is asked for; else the next document follows. The rows are aligned where they begin:
    while a longer prompt is still being read, a shorter one is being continued already. A
    row's text depends on its own prompt, its copy number and the seed, but for rounding.
    """
    was_training, mark = model.training, tokenizer.begin(settings.language)
    model.eval()
    copies, device = range(settings.num_return_sequences), model.head.device
    given = [[mark, *map(int, tokenizer.encode(prompt))] for prompt in prompts]
    texts = [list(ids) for ids in given for _ in copies]
    writings = [Writing() for _ in texts]
    sampler = Sampler(model, settings, [copy for _ in given for copy in copies])
    at, begin = min(map(len, texts)), -1
    fresh = torch.tensor([ids[:at] for ids in texts], device=device)
    sampler.read(fresh[:, 1:])
    ends = tokenizer.ends if one_document else ()
    try:
        while True:
            if (signal_number := stop()) is not None:
                raise Stopped(signal_number, "on request, while writing")
            if begin != (begun := first_seen(model, at)):
                cache, begin = model.new_cache(len(texts)), begun
                fresh = torch.tensor([ids[begin:at] for ids in texts], device=device)
            chosen = sampler.choose(model.logits(_last_features(model, fresh, cache)), at)
            if reading := [(row, ids[at]) for row, ids in enumerate(texts) if at < len(ids)]:
                rows, tokens = zip(*reading, strict=True)
                chosen[list(rows)] = torch.tensor(tokens, device=device)
            fresh = chosen.unsqueeze(1)
            sampler.read(fresh)
            for ids, writing, token in zip(texts, writings, chosen.tolist(), strict=True):
                if at == len(ids):
                    ids.append(token)
                    _extend(writing, token, ends, tokenizer, settings)
            at += 1
            yield writings
            if all(writing.reason is not None for writing in writings):
                return
    finally:
        model.train(was_training)


def first_seen(model: LanguageModel, at: int) -> int:
    """The first token that is seen where position `at` is predicted.

    When the context is full, the model goes on with the second half of what it sees. When
    that is, is a matter of the position alone, so that it is the same for a text in any company.
    """
    if model.endless or at <= model.context:
        return 0
    stride = model.context + 1 - max(1, model.context // 2)
    return -(-(at - model.context) // stride) * stride


def _last_features(
    model: LanguageModel, tokens: Int[Tensor, "rows time"], cache: Any
) -> Float[Tensor, "rows width"]:
    """The features of the last position; a prompt of any length is read in parts."""
    for part in torch.split(tokens, model.context, dim=1):
        features = model.features(part, cache)
    return features[:, -1]


def _extend(
    writing: Writing, token: int, ends: Collection[int], tokenizer: Tokenizer, s: SamplingSettings
) -> None:
    if writing.reason is not None:
        return
    if token in ends:
        writing.reason = "end"
        return
    writing.ids.append(token)
    if s.stop and _has_stop(writing.ids, tokenizer, s.stop):
        writing.reason = "stop"
    elif s.loop_guard and is_loop(writing.ids):
        writing.reason = "loop"
    elif len(writing.ids) == s.max_new_tokens:
        writing.reason = "length"


def _has_stop(ids: list[int], tokenizer: Tokenizer, stops: tuple[str, ...]) -> bool:
    longest = max(len(stop.encode(errors="replace")) for stop in stops)  # a token has a byte
    tail = tokenizer.decode(ids[-longest - 4 :])
    return any(stop in tail for stop in stops)


def is_loop(ids: list[int]) -> bool:
    """Whether the last tokens are one short piece over and over."""
    tail = ids[-LOOP_TOKENS:]
    is_long = len(tail) == LOOP_TOKENS
    return is_long and any(tail[n:] == tail[:-n] for n in range(1, LONGEST_PERIOD + 1))
