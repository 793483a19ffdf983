"""What is said of texts is right, and a collapsed one is told from human text."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Settings
from hypothesis import given
from hypothesis import strategies as st

from effcli.engine.data.corpus import Corpus
from effcli.engine.data.stdlib import StandardLibrary
from effcli.engine.measure.text import (
    LEAST_GZIP,
    MARGINS,
    TextQuality,
    compared,
    distinct,
    gzip_ratio,
    is_collapsed,
    loop_fraction,
    repetition,
    self_bleu,
    spreads,
    top_share,
    zipf_slope,
)
from effcli.methods import baseline
from effcli.settings.train import EvaluationSettings

LENGTH = 512
ids = st.lists(st.integers(0, 5), max_size=50)


def _quality(data: bytes) -> TextQuality:
    return TextQuality.of(list(data), data)


@pytest.fixture(scope="module")
def windows() -> list[bytes]:
    """200 windows, evenly over sources and documentation of Python."""
    rows = (row.text for row in StandardLibrary().rows("val"))
    text = b"\n".join(t if isinstance(t, bytes) else str(t).encode() for t in rows)
    starts = np.arange(200) * (len(text) - LENGTH) // 200
    return [text[start : start + LENGTH] for start in starts]


def test_human_text_passes_and_the_famous_failure_does_not(windows: list[bytes]) -> None:
    each = [_quality(window) for window in windows]
    corpus, generator = spreads(each[::2]), np.random.default_rng(0)
    others = each[1::2]  # than those that the corpus is measured by
    for _ in range(200):
        several = [others[i] for i in generator.choice(100, 32, replace=False)]
        assert not is_collapsed(TextQuality.mean(several), corpus)
    # A rule of percentiles cannot pass every single window of tables and lists.
    assert np.mean([is_collapsed(one, corpus) for one in each]) <= 0.05

    failure = _quality(b"[ " * 256)
    assert is_collapsed(failure, corpus)
    assert (failure.rep_4, failure.loop_fraction, failure.top_1) == (1 - 2 / 509, 1.0, 0.5)
    assert failure.gzip_ratio < 0.04
    mixed = [failure] * 16 + others[:16]
    assert is_collapsed(TextQuality.mean(mixed), corpus)
    for broken in (b"a" * 512, b"the " * 128, b"University of Illinois, " * 22):
        assert is_collapsed(_quality(broken[:LENGTH]), corpus)


def test_each_bound_is_one() -> None:
    base = TextQuality(0.1, 0.1, 0.1, 0.1, 0.9, 0.5, -1.0)
    corpus = spreads([base])
    assert not is_collapsed(base, corpus)
    values = {name: getattr(base, name) for name in TextQuality.__dataclass_fields__}
    limits = {name: 0.1 + margin for name, margin in MARGINS.items()}
    for name, limit in limits.items():
        assert not is_collapsed(TextQuality(**{**values, name: limit - 1e-9}), corpus)
        assert is_collapsed(TextQuality(**{**values, name: limit + 1e-9}), corpus)
    assert not is_collapsed(TextQuality(**{**values, "gzip_ratio": LEAST_GZIP * 0.5}), corpus)
    assert is_collapsed(TextQuality(**{**values, "gzip_ratio": LEAST_GZIP * 0.499}), corpus)


@given(ids, st.integers(1, 17))
def test_shares_are_shares(text: list[int], n: int) -> None:
    for share in (repetition(text, n), distinct(text, n), loop_fraction(text), top_share(text)):
        assert 0 <= share <= 1
    assert repetition(text, n) == pytest.approx(1 - distinct(text, n))
    assert 0 < gzip_ratio(bytes(text)) <= 1
    assert zipf_slope(text) <= 1e-12
    assert repetition(text, n + 1) <= repetition(text, n) + 1e-12


@given(st.lists(ids, max_size=5))
def test_self_bleu_is_a_share(texts: list[list[int]]) -> None:
    assert 0 <= self_bleu(texts) <= 1 + 1e-12


@given(ids)
def test_the_longest_loop_is_found_by_brute_force(text: list[int]) -> None:
    longest = 0
    for start in range(len(text)):
        for stop in range(start + 2, len(text) + 1):
            part = text[start:stop]
            if any(part[p:] == part[:-p] for p in range(1, len(part) // 2 + 1)):
                longest = max(longest, len(part))
    assert loop_fraction(text) == (longest / len(text) if text else 0)


def test_figures_are_those_by_hand() -> None:
    text = [1, 2, 3, 1, 2, 4]
    assert distinct(text, 2) == 4 / 5
    assert repetition(text, 1) == pytest.approx(2 / 6)
    assert repetition(text, 7) == 0
    assert top_share([7, 8, 7]) == 2 / 3
    counts = [60, 30, 20, 15, 12]  # 60 / rank
    assert zipf_slope([i for i, n in enumerate(counts) for _ in range(n)]) == pytest.approx(-1)


def test_self_bleu_is_that_by_hand() -> None:
    same, other = [1, 2, 3, 4, 5], [6, 7, 8, 9, 10]
    assert self_bleu([same, same]) == pytest.approx(1)
    assert self_bleu([same, other]) == 0
    assert self_bleu([same]) == 0
    # of [1 1 2 3 4 5]: 5/6, 4/5, 3/4, 2/3 of the n-grams are in `same`; of `same` all are in it,
    # and it is shorter by one
    longer = [1, 1, 2, 3, 4, 5]
    expected = ((5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25 + math.exp(1 - 6 / 5)) / 2
    assert self_bleu([longer, same]) == pytest.approx(expected)
    clipped = self_bleu([[1, 1, 1], [1, 2, 3], [1, 1, 3]], order=1)
    assert clipped == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_texts_are_measured_by_the_same_code_as_windows() -> None:
    texts = [(list(b"abcdabcdeffe" * 3), b"abcdabcdeffe" * 3), (list(b"xyz" * 12), b"xyz" * 12)]
    found = compared(texts, texts)
    for name in TextQuality.__dataclass_fields__:
        assert found[name] == pytest.approx(found["corpus"][name]["mean"])
    assert found["self_bleu"] == found["corpus"]["self_bleu"]


def test_a_run_measures_its_texts_only_when_asked(
    tiny: Settings, corpus: Corpus, place: Path, eff: Callable[..., tuple[int, str, str]]
) -> None:
    looks = ["evaluation.texts=3", "evaluation.text_tokens=70"]  # beyond the context of 32
    plain = baseline.run(tiny(out=place / "plain"))
    report = baseline.run(tiny(*looks, out=place / "asked"))
    assert "text" not in plain.as_json()
    assert report.flops["train"] == plain.flops["train"]
    assert report.flops["eval"] > plain.flops["eval"]
    assert report.held_out == plain.held_out
    text = json.loads((place / "asked" / "report.json").read_text())["text"]
    assert (text["texts"], text["tokens"], text["corpus"]["windows"]) == (
        3,
        70,
        min(256, corpus.val.windows(70)),
    )
    assert text["corpus"]["rep_4"]["p5"] <= text["corpus"]["rep_4"]["p95"]
    assert isinstance(text["collapsed"], bool)
    assert "<h2>Texts</h2>" in (place / "asked" / "report.html").read_text()
    assert "<h2>Texts</h2>" not in (place / "plain" / "report.html").read_text()
    assert "collapsed; beside the corpus' own: rep-4" in eff("report", place / "asked")[1]


def test_a_length_without_texts_is_an_error() -> None:
    with pytest.raises(ValueError, match="no effect"):
        EvaluationSettings(text_tokens=99)
    bare = EvaluationSettings(texts=4, text_tokens=99).bare()
    assert bare == EvaluationSettings(samples=0, floors=False)
