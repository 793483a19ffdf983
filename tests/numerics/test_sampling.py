"""Choosing tokens: every processor against a reference, and every text by itself."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from headonly import HeadOnly
from hypothesis import given
from hypothesis import strategies as st

from effcli.engine.data.tokenizers import byte_tokenizer
from effcli.engine.models import sampling
from effcli.engine.models.generate import Writing, first_seen, is_loop, write
from effcli.engine.models.gpt import GPT
from effcli.engine.models.sampling import Echoes, Harmony, Sampler, draw, keep, penalized
from effcli.errors import InputError
from effcli.settings.generate import SamplingSettings
from effcli.settings.model import GPTSettings

BYTES = byte_tokenizer("bytes")
PLAIN = {"temperature": 1.0, "top_p": 1.0}


class Phased(HeadOnly):
    """Knows the last token, in a state of constant size; its tokens have phases."""

    endless = True

    def __init__(self, vocab_size: int = 257, pairs: int = 6) -> None:
        generator = torch.Generator().manual_seed(4)
        super().__init__(torch.randn(vocab_size, 8, generator=generator))
        angles = 6.28 * torch.rand(vocab_size, pairs, generator=generator)
        self.unit = torch.cat((angles.cos(), angles.sin()), dim=1)
        self.embedding = torch.randn(vocab_size, 8, generator=generator)
        self.read: list[tuple[int, int]] = []

    @property
    def phases(self) -> torch.Tensor:
        return self.unit

    def features(self, tokens: torch.Tensor, cache: Any = None) -> torch.Tensor:
        self.read.append(tuple(tokens.shape))
        return self.embedding[tokens]


def _gpt(context: int = 32) -> GPT:
    s = GPTSettings(layers=1, width=32, heads=2, context=context, shift=0, pair_rows=0)
    model = GPT(s, 257)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def _chosen(model: Any, text: Sequence[int], logits: torch.Tensor, **options: Any) -> torch.Tensor:
    """What a sampler makes of logits behind a text, before the temperature."""
    sampler = Sampler(model, SamplingSettings(**{**PLAIN, **options}), [0])
    sampler.read(torch.tensor([text], dtype=torch.long))
    return sampler._processed(logits.unsqueeze(0))[0]


texts = st.lists(st.integers(0, 4), min_size=0, max_size=60)


@given(texts, st.integers(1, 5))
def test_no_ngram_comes_again(text: list[int], n: int) -> None:
    """The reference: a token is banned if it would end an n-gram that the text holds."""
    logits = torch.linspace(-1, 1, 6)
    grams = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
    prefix = text[len(text) - n + 1 :]
    found = _chosen(HeadOnly(torch.eye(6)), text, logits, no_repeat_ngram_size=n)
    for token in range(6):
        is_banned = len(prefix) == n - 1 and (*prefix, token) in grams
        assert (found[token] == -math.inf) == is_banned
    assert found[5] == logits[5]


@given(texts, st.integers(1, 4))
def test_dry_is_the_reference(text: list[int], allowed: int) -> None:
    logits, expected = torch.linspace(-1, 1, 6), torch.linspace(-1, 1, 6)
    for token in range(6):
        longest = 0
        for place in (i for i, other in enumerate(text) if other == token):
            run = 0
            while run < place and text[place - 1 - run] == text[-1 - run]:
                run += 1
            longest = max(longest, run)
        if longest >= allowed:
            expected[token] -= 0.8 * 1.75 ** (longest - allowed)
    options = {"dry_multiplier": 0.8, "dry_allowed_length": allowed}
    found = _chosen(HeadOnly(torch.eye(6)), text, logits, **options)
    assert torch.allclose(found, expected)


def test_runs_are_the_same_however_the_text_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "LONGEST_ECHO", 7)
    text = torch.randint(0, 2, (3, 50), generator=torch.Generator().manual_seed(0))
    text[2] = 1  # one long loop
    whole, slowly = Echoes(3, text.device), Echoes(3, text.device)
    whole.read(text)
    for token in text.split(1, dim=1):
        slowly.read(token)
    assert torch.equal(whole.longest(4), slowly.longest(4))
    assert whole.longest(4)[2].tolist() == [-1, 7, -1, -1]


def test_a_penalty_counts_once_and_never_helps() -> None:
    logits = torch.tensor([2.0, -2.0, 0.0, 3.0, -3.0])
    once, often = [0, 1, 2], [0, 1, 2, 1, 1, 0]
    model = HeadOnly(torch.eye(5))
    found = _chosen(model, once, logits, repetition_penalty=2.0)
    assert found.tolist() == [1.0, -4.0, 0.0, 3.0, -3.0]
    assert torch.equal(found, _chosen(model, often, logits, repetition_penalty=2.0))
    seen = torch.ones(1, 5, dtype=torch.bool)
    assert (penalized(logits[None], seen, 1.7) <= logits).all()


def test_no_penalty_touches_the_end_of_a_document() -> None:
    """Every text begins with the separator, and its logit stays what it was."""
    heard: list[list[int]] = []

    class Hearing(Sampler):
        def read(self, tokens: torch.Tensor) -> None:
            heard.extend(tokens.tolist())
            super().read(tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("effcli.engine.models.generate.Sampler", Hearing)
        settings = SamplingSettings(repetition_penalty=3.0, max_new_tokens=5)
        list(write(_gpt(), BYTES, ["ab"], settings))
    assert heard[0] == [97, 98]


def test_filters_keep_what_the_reference_keeps() -> None:
    """Of Hugging Face's order: each filter looks at what the one before has left."""
    p = torch.tensor([[0.4, 0.25, 0.15, 0.12, 0.08]])

    def kept(**options: Any) -> list[int]:
        found = keep(p, SamplingSettings(**{**PLAIN, **options}))[0]
        return found.nonzero().flatten().tolist()

    assert kept() == [0, 1, 2, 3, 4]
    assert kept(top_p=0.64) == [0, 1]
    assert kept(top_p=0.66) == [0, 1, 2]
    assert kept(top_k=3, top_p=0.80) == [0, 1]  # 0.65 of 0.8 is 0.8125
    assert kept(top_p=0.66, min_p=0.5) == [0, 1]
    # surprisals 0.92, 1.39, 1.90, 2.12, 2.53; entropy 1.45
    assert kept(typical_p=0.2) == [1]
    assert kept(typical_p=0.3) == [1, 2]
    assert kept(typical_p=0.5) == [0, 1, 2]
    assert kept(top_k=2, typical_p=0.1) == [0]  # of 0.62 and 0.38 the first is nearer to 0.67


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9), st.floats(0, 1, width=32))
def test_what_cannot_be_is_never_drawn(weights: list[float], uniform: float) -> None:
    p = torch.tensor([[0.0, *weights, 1.0, 0.0]])
    for u in (uniform or 1.0, 2.0**-52, 1.0):
        token = draw(p, torch.tensor([u]))
        assert p[0, token] > 0


def test_draws_follow_the_probabilities() -> None:
    p = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    sampler = Sampler(HeadOnly(torch.eye(5)), SamplingSettings(**PLAIN), range(256))
    logits = p.log().expand(256, 5)
    drawn = torch.stack([sampler.choose(logits, at) for at in range(300)])
    assert torch.allclose(drawn.flatten().bincount(minlength=5) / drawn.numel(), p, atol=0.005)
    pairs = drawn[:-1] * 5 + drawn[1:]  # neither position nor copy says anything of the next
    together = pairs.flatten().bincount(minlength=25) / pairs.numel()
    assert torch.allclose(together, torch.outer(p, p).flatten(), atol=0.005)
    beside = (drawn[:, :-1] * 5 + drawn[:, 1:]).flatten().bincount(minlength=25) / drawn.numel()
    assert torch.allclose(beside, torch.outer(p, p).flatten(), atol=0.01)


OPTIONS = [
    {},
    {"repetition_penalty": 1.3, "min_p": 0.01, "top_k": 40},
    {"dry_multiplier": 0.8, "no_repeat_ngram_size": 3, "typical_p": 0.9},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_text_is_the_same_in_any_company(options: dict[str, Any]) -> None:
    """Beyond the context, too: prompts of 3, 1 and 70 tokens, a context of 32."""
    settings = SamplingSettings(max_new_tokens=80, num_return_sequences=2, **options)
    prompts = ["abc", "", "x" * 40 + "yz" * 15]
    *_, together = write(_gpt(), BYTES, prompts, settings, one_document=False)
    for number, prompt in enumerate(prompts):
        *_, alone = write(_gpt(), BYTES, [prompt], settings, one_document=False)
        assert alone == together[2 * number : 2 * number + 2]
        assert alone[0].ids != alone[1].ids
    assert all(len(writing.ids) == 80 for writing in together)


def test_a_phased_text_is_the_same_in_any_company() -> None:
    options = {"coherence": 1.0, "anneal": 1.0, "dry_multiplier": 0.8}
    settings = SamplingSettings(max_new_tokens=90, **options)
    prompts = ["abc", "", "y" * 60]
    *_, together = write(Phased(), BYTES, prompts, settings, one_document=False)
    for prompt, writing in zip(prompts, together, strict=True):
        *_, (alone,) = write(Phased(), BYTES, [prompt], settings, one_document=False)
        assert alone == writing
    *_, (plain,) = write(Phased(), BYTES, [""], SamplingSettings(max_new_tokens=90))
    assert plain.ids != together[1].ids


@given(st.integers(1, 40), st.integers(0, 300))
def test_what_is_seen_fits_and_is_at_least_half_a_context(context: int, at: int) -> None:
    model = HeadOnly(torch.eye(2))
    model.context = context
    begin = first_seen(model, at)
    assert 0 <= begin <= at
    assert at - begin <= context
    assert at - begin >= min(at, max(1, context // 2))
    model.endless = True
    assert first_seen(model, at) == 0


def test_the_second_half_goes_on() -> None:
    model = HeadOnly(torch.eye(2))
    model.context = 10
    begins = [first_seen(model, at) for at in range(30)]
    assert [at for at, (a, b) in enumerate(pairwise(begins), 1) if a != b] == [11, 17, 23, 29]
    assert begins[11] == 6


def test_an_endless_model_reads_everything_once() -> None:
    model = Phased()
    list(write(model, BYTES, ["z" * 300], SamplingSettings(max_new_tokens=200)))
    lengths = [time for _, time in model.read]
    assert lengths[:5] == [64, 64, 64, 64, 45]  # the prompt, and the separator before it
    assert set(lengths[5:]) == {1}
    assert len(lengths) <= 5 + 199


def test_the_bonus_is_brute_force_over_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "CANDIDATES", 20)
    model, text = Phased(), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    logits = torch.randn(257, generator=torch.Generator().manual_seed(2))
    unit = torch.view_as_complex(torch.stack(model.unit.chunk(2, 1), -1).contiguous())
    mean = torch.zeros(6, dtype=torch.complex64)
    for token in text:
        mean = 0.9 * mean + 0.1 * unit[token]
    agreement = (unit.conj() * mean).real.mean(1)  # of all tokens
    expected, best = logits.clone(), logits.topk(20).indices
    expected[best] += 2.5 * agreement[best]
    found = _chosen(model, text, logits, coherence=2.5)
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(found, logits, atol=1e-2)

    monkeypatch.setattr(sampling, "CANDIDATES", 999)
    dry = _chosen(model, text, logits, dry_multiplier=0.8, dry_allowed_length=1)
    both = _chosen(model, text, logits, dry_multiplier=0.8, dry_allowed_length=1, coherence=2.5)
    expected = logits - (logits - dry) * (1 + agreement.clamp(min=0)) + 2.5 * agreement
    assert (logits - dry).max() > 0.5  # what follows a 5
    assert torch.allclose(both, expected, atol=1e-5)


def test_frozen_phases_make_it_hotter_and_unsteady_ones_cooler() -> None:
    model = Phased()
    generator = torch.Generator().manual_seed(0)
    rich = torch.randint(0, 257, (1, 200), generator=generator)
    harmony = Harmony(model.phases, 1)
    harmony.read(rich[:, :60])
    assert harmony.surprise() == 0  # too early to tell
    harmony.read(rich[:, 60:])
    assert abs(float(harmony.surprise())) < 0.5
    settings, frozen = SamplingSettings(temperature=0.8, anneal=1.0), torch.full((1, 40), 7)
    for tokens, expected in (
        ((rich, frozen), 0.8 * 1.5),
        ((*[frozen] * 5, rich[:, :40]), 0.8 * 0.7),
    ):
        sampler = Sampler(model, settings, [0])
        sampler.read(torch.cat(tokens, dim=1))
        assert float(sampler._temperature()) == pytest.approx(expected)


def test_what_was_long_ago_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "RECENT", 256)
    tokens = torch.randint(0, 257, (1, 900), generator=torch.Generator().manual_seed(1))
    whole, slowly = Harmony(Phased().phases, 1), Harmony(Phased().phases, 1)
    whole.read(tokens)
    for token in tokens.split(1, dim=1):
        slowly.read(token)
    assert torch.allclose(whole.surprise(), slowly.surprise(), atol=1e-5)
    assert torch.allclose(whole._mean, slowly._mean, atol=1e-7)


@pytest.mark.parametrize("name", ["coherence", "anneal"])
def test_a_model_without_phases_refuses_what_needs_them(name: str) -> None:
    with pytest.raises(InputError, match=f"has no phases: {name} needs a phase model"):
        next(write(_gpt(), BYTES, ["a"], SamplingSettings(**{name: 1.0})))


@pytest.mark.parametrize(
    "options",
    [{"dry_base": 2.0}, {"dry_allowed_length": 3}, {"anneal": 1.0, "temperature": 0.0}],
)
def test_an_option_without_effect_is_an_error(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has no effect"):
        SamplingSettings(**options)


class Scripted(HeadOnly):
    """Writes a text by heart."""

    endless = True

    def __init__(self, text: bytes) -> None:
        super().__init__(torch.eye(257) * 50)
        self.script, self.at = [*text, 256], 0

    def features(self, tokens: torch.Tensor, cache: Any = None) -> torch.Tensor:
        self.at += 1
        token = self.script[min(self.at, len(self.script)) - 1]
        return torch.eye(257)[token].expand(*tokens.shape, 257)


def _write(text: str, **options: Any) -> tuple[Writing, str]:
    """A scripted text, and what a screen would show of it."""
    settings, shown = SamplingSettings(**{"max_new_tokens": 500, **options}), ""
    for (writing,) in write(Scripted(text.encode()), BYTES, [""], settings):
        shown += writing.news(BYTES, settings.stop)
    return writing, shown


def test_every_text_has_a_reason_to_end() -> None:
    rich, loop = "the quick brown fox", "[ " * 300
    assert _write(rich)[0].reason == "end"
    assert _write(rich, max_new_tokens=5)[0].reason == "length"
    assert _write(rich, stop=("brown",))[0].reason == "stop"
    assert _write(loop)[0].reason == "length"
    ended = _write("go:" + loop, loop_guard=True)[0]
    assert ended.reason == "loop"
    assert len(ended.ids) == len("go:") + 64


@given(st.integers(1, 20), st.integers(0, 63))
def test_a_loop_is_a_short_piece_over_and_over(period: int, wrong: int) -> None:
    text = [i % period for i in range(80)]
    assert is_loop(text) == (period <= 16)
    assert is_loop([999, *text]) == (period <= 16)
    assert not is_loop(text[:63])
    text[-1 - wrong] = 999
    assert not is_loop(text)


@given(st.binary(max_size=30), st.sampled_from([None, "length", "end"]))
def test_a_screen_never_shows_a_broken_character(ids: bytes, reason: Any) -> None:
    writing, shown = Writing(), ""
    for number, one in enumerate(ids):
        writing.ids.append(one)
        writing.reason = reason if number == len(ids) - 1 else None
        shown += writing.news(BYTES, ())
    assert shown == ids.decode("utf8", "replace").replace("\ufffd", "") == writing.text(BYTES, ())


@given(st.text(max_size=30), st.text(min_size=1, max_size=4))
def test_a_screen_shows_the_text_up_to_the_stop_and_no_half_characters(
    text: str, stop: str
) -> None:
    if any("\ud800" <= c <= "\udfff" or c == "\ufffd" for c in text + stop):
        return
    writing, shown = _write(text, stop=(stop,), temperature=0)
    before, found, _ = text.partition(stop)
    assert shown == before == writing.text(BYTES, (stop,))
    assert writing.reason == ("stop" if found else "end")
