"""Copies that were planted in a text are found, and nothing else is."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from effcli.engine.selection import duplicates
from effcli.engine.selection.duplicates import WIDTH, Duplicates, chunks, copies, shingle

Row = NDArray[np.int64]
VOCAB = 4096


def _row(seed: int, length: int = 800) -> Row:
    return np.random.default_rng(seed).integers(0, VOCAB, length)


def _scattered(row: Row, share: float, seed: int) -> Row:
    """Some tokens replaced, here and there."""
    rng, row = np.random.default_rng(seed), row.copy()
    places = rng.choice(len(row), round(share * len(row)), replace=False)
    row[places] = rng.integers(VOCAB, 2 * VOCAB, len(places))
    return row


def _rewritten(row: Row, share: float, seed: int) -> Row:
    """As many tokens replaced in one stretch."""
    rng, row = np.random.default_rng(seed), row.copy()
    count = round(share * len(row))
    start = rng.integers(0, len(row) - count)
    row[start : start + count] = rng.integers(VOCAB, 2 * VOCAB, count)
    return row


def _jaccard(one: Row, other: Row) -> float:
    """Of the sets of 5-grams, counted."""
    a, b = ({tuple(r[i : i + 5]) for i in range(len(r) - 4)} for r in (one, other))
    return len(a & b) / len(a | b)


def _layout(documents: Sequence[Row]) -> tuple[Row, Row, Row]:
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    return np.concatenate(documents), np.cumsum(lengths) - lengths, lengths


def _copies(documents: Sequence[Row], **options: float) -> Duplicates:
    return copies(*_layout(documents), **options)  # type: ignore[arg-type]


def test_exact_copies_are_numbered_in_the_order_of_the_text() -> None:
    a, b, c = (_row(seed) for seed in range(3))
    found = _copies([a, b, a, c, a, b])
    assert found.group.tolist() == [0, 1, 0, 2, 0, 1]
    assert found.copy.tolist() == [0, 0, 1, 0, 2, 1]


def test_documents_with_one_sentence_rewritten_are_copies() -> None:
    originals = [_row(seed) for seed in range(100)]
    edited = [_rewritten(row, 0.03, seed) for seed, row in enumerate(originals)]
    found = _copies([*originals, *edited])
    assert found.group.tolist() == [*range(100), *range(100)]
    assert found.copy.tolist() == [0] * 100 + [1] * 100


def test_scattered_edits_lower_the_similarity_below_the_default_and_are_found_when_told_so() -> (
    None
):
    """Of 3 % replaced tokens, each spoils five 5-grams: 0.97^5 / (2 - 0.97^5) = 0.75 is left."""
    originals = [_row(seed) for seed in range(100)]
    edited = [_scattered(row, 0.03, seed) for seed, row in enumerate(originals)]
    similarity = np.mean([_jaccard(*pair) for pair in zip(originals, edited, strict=True)])
    assert similarity == pytest.approx(0.97**5 / (2 - 0.97**5), abs=0.02)
    found = _copies([*originals, *edited], similar=0.65)
    share = np.mean(found.group[:100] == found.group[100:])
    assert share > 0.97
    assert not found.copy[:100].any()
    assert _copies([*originals, *edited]).copy.mean() < 0.25


@pytest.mark.parametrize(("share", "is_copy"), [(0.005, True), (0.06, False)])
def test_the_threshold_is_a_jaccard_similarity(share: float, is_copy: bool) -> None:
    originals = [_row(seed, 1000) for seed in range(50)]
    edited = [_scattered(row, share, seed) for seed, row in enumerate(originals)]
    pairs = list(zip(originals, edited, strict=True))
    assert all((_jaccard(*pair) >= duplicates.SIMILAR) == is_copy for pair in pairs)
    found = _copies([*originals, *edited])
    assert np.all((found.group[:50] == found.group[50:]) == is_copy)


def test_unrelated_documents_of_few_words_are_no_copies() -> None:
    """Even where every token is shared, runs of five are not."""
    rng = np.random.default_rng(0)
    found = _copies([rng.integers(0, 30, 500) for _ in range(500)])
    assert not found.copy.any()
    assert found.group.tolist() == list(range(500))


def test_a_family_made_from_one_template_is_one_group_whatever_lies_between() -> None:
    template = _row(0, 300)
    family = []
    for seed in range(200):
        member = template.copy()
        member[[40, 160]] = _row(1000 + seed, 2) + VOCAB  # a name and a number
        family.append(member)
    others = [_row(2000 + seed, 300) for seed in range(200)]
    found = _copies([document for pair in zip(family, others, strict=True) for document in pair])
    assert not found.group[::2].any()
    assert found.copy[::2].tolist() == list(range(200))
    assert not found.copy[1::2].any()


def test_edited_copies_meet_at_their_original_wherever_it_stands() -> None:
    """They are like it, but hardly like each other."""
    rng, documents, labels = np.random.default_rng(0), [], []
    for family in range(20):
        original = _row(family, 600)
        edited = [_scattered(original, 0.03, 100 * family + seed) for seed in range(30)]
        documents += [*edited, original, original, original]
        labels += [family] * 33
    order = rng.permutation(len(documents))
    found = _copies([documents[place] for place in order], similar=0.6)
    assert _jaccard(documents[0], documents[1]) < 0.6 < _jaccard(documents[0], documents[30])
    for family in range(20):
        sizes = np.bincount(found.group[np.array(labels)[order] == family])
        assert sizes.max() >= 32


def test_two_families_that_share_much_stay_apart() -> None:
    """Half of the text in common is no copy, though many bands agree."""
    common, ends = _row(0, 400), [_row(1, 400), _row(2, 400)]
    documents = []
    for seed in range(60):
        document = np.concatenate((common, ends[seed % 2]))
        document[[100, 600]] = _row(10 + seed, 2) + VOCAB
        documents.append(document)
    assert _copies(documents).group.tolist() == [0, 1] * 30


def test_documents_shorter_than_a_shingle_are_copies_only_if_equal() -> None:
    short = [np.array(row, dtype=np.int64) for row in ([1, 2], [1, 2, 3], [1, 2], [], [2, 1], [])]
    found = _copies(short)
    assert found.group.tolist() == [0, 1, 0, 2, 3, 2]
    assert found.copy.tolist() == [0, 0, 1, 0, 0, 1]


def test_no_shingle_reaches_into_the_next_document() -> None:
    """The same texts with other neighbors have the same signatures, also beside short ones."""
    text, parts = _row(0, 12), [_row(seed, seed % 5) for seed in range(1, 10)]
    alone = duplicates._signatures(text, np.array([0, 12]), WIDTH)
    for part in parts:
        row, starts, lengths = _layout([part, text, part, text])
        edges = np.append(starts, starts[-1] + lengths[-1])
        assert np.array_equal(duplicates._signatures(row, edges, WIDTH)[[1, 3]], alone[[0, 0]])


def test_the_estimate_has_no_bias_and_the_error_of_128_throws() -> None:
    errors = []
    for seed in range(200):
        one = _row(seed, 400)
        other = _scattered(one, 0.04, seed)
        row, starts, _ = _layout([one, other])
        a, b = duplicates._signatures(row, np.append(starts, len(row)), WIDTH)
        errors.append(np.mean(a == b) - _jaccard(one, other))
    assert abs(np.mean(errors)) < 4 * 0.042 / np.sqrt(200)
    assert np.std(errors) < 1.2 * 0.042  # sqrt(0.69 * 0.31 / 128)


@settings(max_examples=30, deadline=None)
@given(
    picks=st.lists(st.integers(0, 7), max_size=25), chunk=st.integers(1, 4000), gap=st.booleans()
)
def test_chunks_and_gaps_change_nothing(picks: list[int], chunk: int, gap: bool) -> None:
    library = [_row(seed, [0, 3, 5, 40, 200, 200, 600, 600][seed]) for seed in range(8)]
    pieces = [piece for pick in picks for piece in (library[pick], _row(99, 7 * gap))]
    tokens = np.concatenate([np.empty(0, dtype=np.int64), *pieces])
    sizes = np.array([len(piece) for piece in pieces], dtype=np.int64)
    starts = (np.cumsum(sizes) - sizes)[::2]
    found = copies(tokens, starts, sizes[::2], chunk=chunk)
    order = list(dict.fromkeys(picks))
    assert found.group.tolist() == [order.index(pick) for pick in picks]
    assert found.copy.tolist() == [picks[:place].count(pick) for place, pick in enumerate(picks)]


class _Shelf:
    """A text that counts how much of it is read at one time."""

    def __init__(self, row: Row) -> None:
        self.row, self.tokens, self.most = row, len(row), 0

    def read(self, starts: Row | list[int], count: int) -> Row:
        self.most = max(self.most, count)
        return np.stack([self.row[start : start + count] for start in starts])

    def document_starts(self) -> Row:
        return np.array([0])


def test_a_text_is_read_as_an_array_is_and_never_more_than_a_chunk_of_it() -> None:
    documents = [_row(seed % 60, 50 + seed % 60) for seed in range(100)]
    row, starts, lengths = _layout(documents)
    shelf = _Shelf(row)
    found, expected = copies(shelf, starts, lengths, chunk=500), copies(row, starts, lengths)
    assert np.array_equal(found.group, expected.group)
    assert np.array_equal(found.copy, expected.copy)
    assert shelf.most <= 500


@given(sizes=st.lists(st.integers(0, 50), max_size=30), size=st.integers(1, 100))
def test_chunks_give_every_stretch_once_and_whole(sizes: list[int], size: int) -> None:
    lengths = np.array(sizes, dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    row = np.arange(lengths.sum())
    seen = []
    for part, tokens, edges in chunks(row, starts[::2], lengths[::2], size):
        assert len(tokens) == edges[-1]
        assert len(edges) == 1 + part.stop - part.start
        seen += [tokens[a:b].tolist() for a, b in pairwise(edges)]
    expected = zip(starts[::2], lengths[::2], strict=True)
    assert seen == [list(range(start, start + length)) for start, length in expected]


def test_an_empty_text_has_no_copies() -> None:
    nothing = np.empty(0, dtype=np.int64)
    found = copies(nothing, nothing, nothing)
    assert found.group.shape == found.copy.shape == (0,)


def test_shingles_of_bytes_are_as_long_as_those_of_words() -> None:
    assert shingle(1000, 3400) == 5
    assert shingle(1000, 1000) == 18
    assert shingle(1000, 9000) == 5
    random = np.random.default_rng(5)
    words = [bytes(random.integers(97, 105, 4).astype(np.uint8)) + b" " for _ in range(8)]
    texts = [b"".join(words[n] for n in random.integers(0, 8, 120)) for _ in range(20)]
    row = np.concatenate([np.frombuffer(text, np.uint8) for text in texts]).astype(np.int64)
    lengths = np.array([len(text) for text in texts])
    starts = np.cumsum(lengths) - lengths
    assert copies(row, starts, lengths, similar=0.6).copy.max() > 5  # by bytes all look alike
    assert copies(row, starts, lengths, similar=0.6, width=18).copy.max() == 0
