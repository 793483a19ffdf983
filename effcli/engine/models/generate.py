"""Text from a model, one token at a time, with the keys and values of the past kept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.protocols import LanguageModel
from effcli.engine.records import Stop, never
from effcli.errors import Stopped
from effcli.settings.generate import SamplingSettings


def choose(
    logits: Float[Tensor, "batch vocab"],
    seen: Int[Tensor, "batch vocab"],
    s: SamplingSettings,
    generator: torch.Generator,
) -> Int[Tensor, " batch"]:
    """Draw a token for each row. `seen` counts how often each token occurred before."""
    if s.repetition_penalty != 1.0:
        punished = torch.where(
            logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty
        )
        logits = torch.where(seen > 0, punished, logits)
    if s.temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits / s.temperature).softmax(-1)
    ranked, order = probabilities.sort(stable=True, dim=-1, descending=True)
    kept = torch.ones_like(ranked, dtype=torch.bool)
    if s.top_k:
        kept[:, s.top_k :] = False
    if s.top_p < 1:  # the token that crosses the line is kept, so there is always one
        kept &= ranked.cumsum(-1) - ranked < s.top_p
    if s.min_p:
        kept &= ranked >= s.min_p * ranked[:, :1]
    picked = torch.multinomial((ranked * kept).cpu(), 1, generator=generator).to(order.device)
    return order.gather(1, picked).squeeze(1)


@dataclass
class Writing:
    """One text that is being written."""

    ids: list[int] = field(default_factory=list)
    is_done: bool = False
    _shown: int = 0

    def text(self, tokenizer: Tokenizer, stops: tuple[str, ...]) -> str:
        """What was written, up to the first stop text."""
        text = tokenizer.decode(self.ids)
        cuts = [at for stop in stops if (at := text.find(stop)) >= 0]
        return text[: min(cuts)] if cuts else text

    def news(self, tokenizer: Tokenizer, stops: tuple[str, ...]) -> str:
        """What can be shown that was not shown yet: no half characters, no half stop texts."""
        text = self.text(tokenizer, stops)
        end = len(text)
        if not self.is_done:
            end -= 1 if text.endswith("\ufffd") else 0
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
) -> Iterator[list[Writing]]:
    """Continue prompts, all at once; yields all texts after every token.

    A new document is begun before each prompt. The rows are aligned where they begin: while
    a longer prompt is still being read, a shorter one is being continued already. When the
    context is full, the model goes on with the second half of what it sees.
    """
    was_training = model.training
    model.eval()
    device, copies = model.head.device, settings.num_return_sequences
    generator = torch.Generator().manual_seed(settings.seed)
    given = [[tokenizer.separator, *map(int, tokenizer.encode(prompt))] for prompt in prompts]
    given = [ids for ids in given for _ in range(copies)]
    at = min(map(len, given))
    history = torch.tensor([ids[:at] for ids in given], device=device)
    seen = torch.zeros(len(given), model.vocab_size, dtype=torch.long, device=device)
    seen.scatter_add_(1, history, torch.ones_like(history))
    writings = [Writing() for _ in given]
    cache, fresh = model.new_cache(len(given)), history[:, -(model.context - 1) :]
    try:
        while True:
            if (signal_number := stop()) is not None:
                raise Stopped(signal_number, "on request, while writing")
            if cache.length + fresh.shape[1] > model.context:
                cache, fresh = model.new_cache(len(given)), history[:, -(model.context // 2) :]
            logits = model.logits(model.features(fresh, cache)[:, -1])
            fresh = choose(logits, seen, settings, generator).unsqueeze(1)
            reading = [(row, ids[at]) for row, ids in enumerate(given) if at < len(ids)]
            for row, token in reading:
                fresh[row] = token
            history = torch.cat([history, fresh], dim=1)[:, -model.context :]
            if settings.repetition_penalty != 1.0:
                seen.scatter_add_(1, fresh, torch.ones_like(fresh))
            for row, token in enumerate(fresh[:, 0].tolist()):
                if at >= len(given[row]):
                    _extend(writings[row], token, tokenizer, settings)
            at += 1
            yield writings
            if all(writing.is_done for writing in writings):
                return
    finally:
        model.train(was_training)


def _extend(writing: Writing, token: int, tokenizer: Tokenizer, s: SamplingSettings) -> None:
    if writing.is_done:
        return
    if token == tokenizer.separator:  # the document has ended
        writing.is_done = True
        return
    writing.ids.append(token)
    if s.stop:
        longest = max(len(stop.encode(errors="replace")) for stop in s.stop)  # a token has a byte
        tail = tokenizer.decode(writing.ids[-longest - 4 :])
        writing.is_done = any(stop in tail for stop in s.stop)
    writing.is_done |= len(writing.ids) == s.max_new_tokens
