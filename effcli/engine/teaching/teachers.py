"""Trained runs as teachers: what they say is asked for, and nothing of them is changed."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from effcli.engine.data.corpus import Corpus
from effcli.engine.data.mixed import opened
from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.device import Device
from effcli.engine.measure.evaluate import HeldOut
from effcli.engine.objectives.cross_entropy import rows_at_once
from effcli.engine.protocols import LanguageModel
from effcli.engine.records import Stop
from effcli.engine.runs.rundir import CONFIG, RunDir, status
from effcli.engine.runs.trained import open_trained, settle
from effcli.errors import InputError, Stopped
from effcli.settings.layers import read_toml

WIDE_GAP = 10  # times the student's weights: a teacher can be too good (Busbridge et al. 2025)


class Teachers:
    """One or several models that speak with one voice: the mean of their probabilities.

    They are in evaluation mode, need no gradient and record none. Their order is that of
    their hashes, so that it does not matter in which one they were named.
    """

    def __init__(self, models: Sequence[LanguageModel], hashes: Sequence[str]) -> None:
        order = sorted(range(len(models)), key=lambda number: hashes[number])
        self.models = [models[number] for number in order]
        self.hashes = tuple(hashes[number] for number in order)
        for model in self.models:
            model.eval().requires_grad_(requires_grad=False)
            settle(model)

    @classmethod
    def open(
        cls,
        folders: Sequence[Path],
        tokenizer: Tokenizer,
        device: Device,
        warn: Callable[[str], None] = lambda _: None,
    ) -> "Teachers":
        """The newest whole checkpoints of some runs.

        Raises InputError for a run that cannot be opened, whose weights are not finite, whose
        tokens are not those of `tokenizer`, or that is named twice. One that has not come to its
        end may teach, and `warn` hears of it.
        """
        models: dict[str, LanguageModel] = {}
        for folder in folders:
            model, own = open_trained(folder, device, warn)
            require_tokens(folder, own, tokenizer)
            name = teacher_hash(model, read_toml(folder / CONFIG)["model"], own)
            if name in models:
                message = f"the teacher in {folder} is another one's double: its voice counts once"
                raise InputError(message, "name every teacher once")
            models[name] = model
            if (state := status(folder)) != "complete":
                warn(f"the teacher in {folder} is {state}: what it has saved last teaches")
        return cls(list(models.values()), list(models))

    @property
    def vocab_size(self) -> int:
        """Ids that they can predict: the same number for all."""
        return self.models[0].vocab_size

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the last features of each."""
        return tuple(model.head.shape[1] for model in self.models)

    def require_context(self, context: int) -> None:
        """Refuse a student that sees more positions than a teacher."""
        if context > (most := min(model.context for model in self.models)):
            message = f"the student's context of {context} is longer than the teacher's of {most}"
            raise InputError(message, f"set model.context={most}")

    def advice(self, student: LanguageModel) -> str | None:
        """What to say before training where the largest teacher is very much larger."""
        ratio = max(m.parameter_count() for m in self.models) / student.parameter_count()
        if ratio <= WIDE_GAP:
            return None
        return (
            f"the teacher has {ratio:.0f} times the student's weights; beyond {WIDE_GAP} times, "
            "a smaller teacher often teaches better"
        )

    @torch.no_grad()
    def features(self, tokens: Int[Tensor, "batch time"]) -> list[Tensor]:
        """The last features of each, of shape (batch, time, width)."""
        return [model.features(tokens) for model in self.models]

    @torch.no_grad()
    def log_probabilities(self, features: Sequence[Tensor]) -> Float[Tensor, "rows vocab"]:
        """Of the next token, from some rows of the features of each; float32."""
        pairs = zip(self.models, features, strict=True)
        every = [_logits(model, x).log_softmax(-1) for model, x in pairs]
        return reduce(torch.logaddexp, every).sub_(math.log(len(every)))

    def by_rows(self, features: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
        """Log-probabilities at all positions, as many rows at one time as suit the processor."""
        rows = [x.flatten(0, 1) for x in features]
        many = rows_at_once(rows[0], self.vocab_size)
        for start in range(0, len(rows[0]), many):
            part = slice(start, start + many)
            yield part, self.log_probabilities([x[part] for x in rows])

    def forward_flops(self, batch: int, time: int, *, head: bool = True) -> float:
        """FLOPs of asking all of them once, with or without what their heads make of it."""
        whole = sum(model.forward_flops(batch, time) for model in self.models)
        heads = sum(2.0 * batch * time * model.head.numel() for model in self.models)
        return whole if head else whole - heads

    def held_out_loss(self, held_out: HeldOut, device: Device, batch: int, stop: Stop) -> float:
        """Mean loss over all windows, in nats per token; `batch` windows at one time."""
        total, windows = 0.0, torch.from_numpy(held_out.tokens)
        for start in range(0, len(windows), batch):
            if (signal_number := stop()) is not None:
                raise Stopped(signal_number, "on request, while the teacher was looked at")
            part = windows[start : start + batch].to(device.torch)
            targets = part[:, 1:].flatten().unsqueeze(1)
            for rows, log_p in self.by_rows(self.features(part[:, :-1])):
                total -= log_p.gather(1, targets[rows]).double().sum().item()
        return total / held_out.predicted


def require_tokens(folder: Path, own: Tokenizer, tokenizer: Tokenizer) -> None:
    """Refuse a teacher of other tokens: the maps count, not how many ids there are."""
    if own.hash != tokenizer.hash:
        message = (
            f"the teacher in {folder} has other tokens ({own.name}, {own.vocab_size}) "
            f"than the text ({tokenizer.name}, {tokenizer.vocab_size})"
        )
        hint = "prepare the text with --tokenizer like:CORPUS, the teacher's corpus"
        raise InputError(message, hint)


def read_elsewhere(folder: Path, corpus: Corpus) -> str | None:
    """What to say of a teacher that was trained on another corpus: it may know held-out text."""
    read = RunDir(folder).env()["corpus"]
    if read["hash"] == corpus.hash:
        return None
    share = float(read_toml(folder / CONFIG).get("text_share", 1.0))
    if read["hash"] == opened(corpus.data).first(share).hash:  # another part of it
        return None
    return (
        f"the teacher in {folder} was trained on another corpus, {read['name']}: if that holds "
        f"held-out text of {corpus.name}, all losses here look better than they are"
    )


def require_worth(loss: float, unigram: float) -> None:
    """Refuse a teacher that knows less than how frequent each token is."""
    if not loss < unigram:
        message = (
            f"the teacher's held-out loss of {loss:.3f} is no better than that of counting "
            f"single tokens, {unigram:.3f}: it has nothing to teach about this text"
        )
        raise InputError(message, "name a teacher that was trained on text like this")


def teacher_hash(model: LanguageModel, settings: dict[str, Any], tokenizer: Tokenizer) -> str:
    """Names a teacher: its weights, what they are the weights of, and its map of tokens."""
    kind = json.dumps([settings, tokenizer.hash], sort_keys=True)
    digest = hashlib.sha256(kind.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _logits(model: LanguageModel, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows vocab"]:
    """Logits but for a constant: a soft cap is a sigmoid, which is what CPUs compute fast."""
    logits = model.products(x)
    if cap := model.soft_cap:
        logits = logits.mul_(2 / cap).sigmoid_().mul_(2 * cap)
    return logits
