"""Phases at the start: the same every time, finite, and alike for tokens that are alike."""

import pydoc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from effcli.engine.phase import initial
from effcli.engine.phase.initial import agreement, embedding, initial_phases, spectral_coordinates

CLASSES, EACH = 12, 25
UNSEEN = 7
VOCAB = CLASSES * EACH + UNSEEN


def _classes(tokens: int = 60_000) -> NDArray[np.uint16]:
    """A text in which the class of a token decides which classes may follow."""
    generator = np.random.default_rng(0)
    follows = np.array([generator.permutation(CLASSES)[:3] for _ in range(CLASSES)])
    steps, kinds = generator.integers(3, size=tokens), np.zeros(tokens, dtype=int)
    for at in range(1, tokens):
        kinds[at] = follows[kinds[at - 1], steps[at]]
    # Members of a class are numbered apart, so that no number tells anything.
    return (generator.integers(EACH, size=tokens) * CLASSES + kinds).astype(np.uint16)


@pytest.fixture(scope="module")
def classes() -> NDArray[np.uint16]:
    return _classes()


@pytest.fixture(scope="module")
def source() -> NDArray[np.uint8]:
    """A text of bytes that is on every machine."""
    return np.frombuffer(Path(pydoc.__file__).read_bytes(), dtype=np.uint8)


@pytest.mark.parametrize("how", ["semantic", "frequency", "golden", "random"])
def test_phases_are_finite_and_the_same_every_time(
    classes: NDArray[np.uint16], how: initial.How
) -> None:
    once, again = (initial_phases(classes, VOCAB, 12, how, seed=3) for _ in range(2))
    assert once.tobytes() == again.tobytes()
    assert once.shape == (VOCAB, 12)
    assert once.dtype == np.float32
    assert np.isfinite(once).all()
    assert ((once >= 0) & (once <= 2 * np.pi + 1e-6)).all()
    unseen = embedding(once)[-UNSEEN:]
    assert len(np.unique(unseen.round(4), axis=0)) == UNSEEN  # and no two alike


def test_only_random_phases_depend_on_the_seed(classes: NDArray[np.uint16]) -> None:
    for how in ("semantic", "random"):
        one, other = (initial_phases(classes, VOCAB, 12, how, seed) for seed in (0, 1))
        assert np.array_equal(one, other) == (how == "semantic")


def test_similar_tokens_get_similar_phases(
    classes: NDArray[np.uint16], source: NDArray[np.uint8]
) -> None:
    for text, vocab in ((classes, VOCAB), (source, 256)):
        found = {
            how: agreement(initial_phases(text, vocab, 64, how), text)
            for how in ("semantic", "golden", "random")
        }
        assert found["semantic"] >= 0.2
    phases = embedding(initial_phases(classes, VOCAB, 64, "semantic"))[:-UNSEEN]
    kind = np.arange(len(phases)) % CLASSES
    nearest = phases @ phases.T - 1e9 * np.eye(len(phases))
    assert (kind[nearest.argmax(1)] == kind).mean() > 0.9


def test_numbers_alone_tell_nothing(classes: NDArray[np.uint16]) -> None:
    for how in ("golden", "random"):
        assert abs(agreement(initial_phases(classes, VOCAB, 64, how), classes)) <= 0.05


def test_frequent_tokens_have_phases_of_their_own() -> None:
    text = np.repeat(np.arange(6), [50, 40, 30, 20, 10, 0])
    angles = initial_phases(text, 6, 6, "frequency")
    assert np.allclose(np.diff(angles[:5, -1]) % (2 * np.pi), np.pi / 5, atol=1e-5)


def test_the_iteration_finds_what_the_decomposition_finds(
    classes: NDArray[np.uint16], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = spectral_coordinates(classes, VOCAB)
    monkeypatch.setattr(initial, "_DENSE", 0)
    np.testing.assert_allclose(spectral_coordinates(classes, VOCAB), dense, atol=1e-6)
    assert not dense[-UNSEEN:].any()
    assert (dense.max(0) == np.abs(dense).max(0)).all()
    assert (dense[:-UNSEEN].min(0) < 0).all()  # none says how central a token is
    np.testing.assert_allclose(dense.T @ dense, np.eye(dense.shape[1]), atol=1e-9)


def test_profiles_are_positive_information_about_every_offset() -> None:
    text, vocab = np.random.default_rng(0).integers(5, size=300), 5
    counts = np.bincount(text, minlength=vocab)
    expected = counts**0.75 / (counts**0.75).sum()
    wanted = np.zeros((vocab, 6, vocab))
    for at in range(len(text)):
        for row, offset in enumerate((-3, -2, -1, 1, 2, 3)):
            if 0 <= at + offset < len(text):
                wanted[text[at], row, text[at + offset]] += 1
    wanted = wanted.transpose(1, 0, 2) / counts[:, None] / expected
    wanted = np.log(np.maximum(1, wanted)).transpose(1, 0, 2).reshape(vocab, -1)
    similar = wanted @ wanted.T
    lengths = np.sqrt(np.diag(similar))
    rows, _ = initial._profiles(text, vocab)
    np.testing.assert_allclose((rows @ rows.T).toarray(), similar / np.outer(lengths, lengths))


def test_long_text_is_read_in_parts_from_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initial, "TOKENS", 100)
    monkeypatch.setattr(initial, "_PART", 10)
    counts = np.bincount(initial._spread(np.arange(1000)), minlength=1000)
    assert counts.sum() == 100
    assert counts[:10].all()
    assert counts[-10:].all()


@pytest.mark.parametrize("text", [[], [3], [3, 3], [0, 1, 2, 3] * 5])
def test_next_to_no_text_is_no_failure(text: list[int]) -> None:
    tokens = np.array(text, dtype=np.uint16)
    assert np.isfinite(initial_phases(tokens, 5, 8, "semantic")).all()
    assert agreement(initial_phases(tokens, 5, 8, "frequency"), tokens) <= 1


def test_phasors_have_a_mean_square_of_one() -> None:
    rows = embedding(initial_phases(np.arange(9), 9, 10, "golden"))
    np.testing.assert_allclose((rows**2).mean(1), 1, rtol=1e-5)
