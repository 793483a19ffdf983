"""Languages share what they say: marks tell them apart, angles turn them, pairs align them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from effcli.engine.data.corpus import Corpus
from effcli.engine.data.marked import Marked, language_of
from effcli.engine.data.opening import read_as
from effcli.engine.data.prepare import prepare
from effcli.engine.data.tokenizers import Tokenizer, byte_tokenizer
from effcli.engine.models.layers import Cache
from effcli.engine.models.phase import Phase
from effcli.engine.objectives.next_token import NextToken
from effcli.engine.phase.aligning import Aligning, divergence, told_apart
from effcli.engine.phase.coherence import rotate
from effcli.engine.phase.languages import LanguagePhases
from effcli.engine.phase.pairs import Pairs, about
from effcli.engine.phase.speaking import retrieval
from effcli.engine.protocols import Batch
from effcli.errors import InputError
from effcli.settings.phase import PhaseSettings
from effcli.settings.prepare import PrepareSettings

NAMES = ("en", "de")
VOCAB = 257 + 4
SMALL = {"layers": 4, "width": 32, "heads": 2, "context": 32, "pair_rows": 0}


def _model(**how: Any) -> Phase:
    model = Phase(PhaseSettings(**{**SMALL, "languages": 2, **how}), VOCAB)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.eval()


def _text(rows: int = 3, time: int = 20) -> Tensor:
    tokens = torch.randint(0, 257, (rows, time), generator=torch.Generator().manual_seed(1))
    tokens[0, 0], tokens[0, 7], tokens[1, 3] = 257, 258, 260  # the last goes on
    return tokens


@pytest.fixture
def bilingual(place: Path) -> Corpus:
    rows = [
        {"text": f"{kind}{n} " * (n % 9 + 1), "kind": kind} for n in range(300) for kind in NAMES
    ]
    (place / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    how: dict[str, Any] = {"sources": ("a.jsonl",), "label_column": "kind", "tokenizer": "bytes"}
    prepare(PrepareSettings(**how, out=Path("made")))
    return Corpus.open(Path("made"))


def test_the_last_mark_says_the_language() -> None:
    languages = LanguagePhases(2, 16, VOCAB)
    heard = languages.heard(_text())
    assert heard[0].tolist() == [1] * 7 + [2] * 13
    assert heard[1].tolist() == [0] * 3 + [2] * 17
    assert not heard[2].any()
    cache = Cache()
    parts = [languages.heard(part, cache) for part in _text().split((5, 1, 2, 12), dim=1)]
    assert torch.equal(torch.cat(parts, dim=1), heard)
    told = language_of(_text().numpy(), byte_tokenizer("").marked(NAMES))
    assert np.array_equal(told, heard.numpy() - 1)


def test_angles_are_a_unitary_map_and_none_at_first() -> None:
    languages = LanguagePhases(2, 16, VOCAB)
    assert not languages(_text()).any()
    languages.angles_embedding.data.normal_()
    x, angles = torch.randn(3, 20, 32), languages(_text())
    turned = rotate(x, angles)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotate(turned, -angles), x)
    assert torch.equal(turned[2], x[2])  # in no language


def test_languages_that_are_not_turned_change_nothing() -> None:
    model, alone = _model(concepts=8), Phase(PhaseSettings(**SMALL, concepts=8), VOCAB).eval()
    weights = model.state_dict()
    angles = weights.pop("trunk.languages.angles_embedding")
    alone.load_state_dict(weights)
    assert not torch.equal(model(_text()), alone(_text()))
    with torch.no_grad():
        assert model.spoken is not None
        model.spoken.angles_embedding.zero_()
    assert angles.shape == (2, 16)
    torch.testing.assert_close(model(_text()), alone(_text()), rtol=0, atol=1e-5)


def test_what_a_third_of_the_layers_find_is_in_no_language() -> None:
    model, tokens = _model(), _text()
    heard: list[Tensor] = []
    model.trunk.blocks[1].register_forward_hook(lambda *told: heard.append(told[2]))
    found = model.about(tokens)
    angles = model.trunk.languages(tokens)  # type: ignore[operator]
    torch.testing.assert_close(found, rotate(heard[0], -angles))
    model.trunk.forward(tokens)
    torch.testing.assert_close(heard[0], heard[1])


def test_documents_begin_with_the_mark_of_their_language(bilingual: Corpus) -> None:
    found = Marked(bilingual, NAMES)
    tokenizer, split = found.tokenizer, found.train
    assert tokenizer.vocab_size == VOCAB
    plain = bilingual.train.read([0], split.tokens)[0]
    read = split.read([0], split.tokens)[0]
    starts = split.document_starts()
    assert np.array_equal(np.flatnonzero(plain != read), starts)
    assert (read < 259).all()
    for start in starts:
        text = tokenizer.decode(read[start + 1 : start + 3].tolist())
        assert read[start] == tokenizer.begin(text)
    assert not bilingual.tokenizer.marks
    assert found.hash != bilingual.hash
    assert found.hash != Marked(bilingual, NAMES[::-1]).hash


def test_windows_that_begin_within_a_document_know_its_language(bilingual: Corpus) -> None:
    found = Marked(bilingual, NAMES)
    whole = found.val.read([0], found.val.tokens)
    languages = language_of(whole, found.tokenizer)[0]
    places = np.arange(0, found.val.tokens - 40, 7)
    windows = found.val.read(places, 33)
    assert (windows[:, 0] >= 257).all()
    rows = languages[places[:, None] + np.arange(33)]
    assert np.array_equal(language_of(windows, found.tokenizer), rows)
    rest = whole[0][places[:, None] + np.arange(1, 33)]
    assert np.array_equal(windows[:, 1:], rest)
    begins = np.isin(places, found.val.document_starts())
    assert begins.any()
    assert np.array_equal(windows[:, 0] >= 259, ~begins)  # who goes on says so


@pytest.mark.parametrize(
    ("names", "message"),
    [(("en", "dx"), "no text in 'dx'"), (("en",), "has de, too")],
)
def test_languages_are_those_of_the_documents(
    bilingual: Corpus, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Marked(bilingual, names)


def test_text_without_labels_has_no_languages(place: Path) -> None:
    (place / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"text {n} " * 9}) + "\n" for n in range(99))
    )
    prepare(PrepareSettings(sources=("a.jsonl",), tokenizer="bytes", out=Path("made")))
    with pytest.raises(InputError, match="have no labels"):
        Marked(Corpus.open(Path("made")), NAMES)


def test_a_tokenizer_keeps_its_marks(place: Path) -> None:
    plain = byte_tokenizer("")
    tokenizer = plain.marked(NAMES)
    tokenizer.save(place / "t.json")
    found = Tokenizer.load(place / "t.json")
    assert (found.marks, found.hash, found.vocab_size) == (NAMES, tokenizer.hash, VOCAB)
    assert len({plain.hash, tokenizer.hash, plain.marked(NAMES[::-1]).hash}) == 3
    assert [found.begin(name) for name in (None, *NAMES)] == [257, 257, 258]
    assert plain.begin() == plain.separator == 256
    assert found.ends == {256, 257, 258, 259, 260}
    assert found.decode([257, 104, 105]) == "hi"
    assert found.token_bytes[257:].tolist() == [0] * 4
    for name, of in (("xx", found), ("en", plain)):
        with pytest.raises(InputError, match="language"):
            of.begin(name)
    content = json.loads((place / "t.json").read_text())
    for wrong in (["en", 3], ["en"], "en"):
        with pytest.raises(InputError):
            Tokenizer.of({**content, "marks": wrong}, "t.json")


def _pairs(place: Path, rows: int = 40, *, same: bool = False) -> Pairs:
    lines = ["en\tde"]
    for n in range(rows):
        text = "".join(chr(ord("a") + int(digit)) for digit in f"{n * 7919 % 100_000:05}")
        lines.append(f"{text}\t{text if same else text.upper()}")
    (place / "pairs.tsv").write_text("\n".join(lines) + "\n")
    return Pairs.read(place / "pairs.tsv", byte_tokenizer("").marked(NAMES))


def test_a_tenth_of_the_pairs_is_kept_aside(place: Path) -> None:
    pairs = _pairs(place)
    assert (len(pairs.rows), len(pairs.aside)) == (36, 4)
    assert [int(text[0]) for text in pairs.rows[0]] == [257, 258]
    texts = [bytes(row[0][1:].tolist()) for row in (*pairs.rows, *pairs.aside)]
    assert len(set(texts)) == 40
    assert texts[-1] == (place / "pairs.tsv").read_bytes().split()[-2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "names no two"),
        ("en\n", "names no two"),
        ("en\ten\n", "names no two"),
        ("en\tfr\n", "'fr' in the first line"),
        ("en\tde\n" + "a\tb\n" * 25 + "a\n", "line 27"),
        ("en\tde\n" + "a\t \n", "line 2"),
        ("en\tde\n" + "a\tb\n" * 19, "19 pairs"),
        (b"en\tde\n\xff\xfe", "not UTF-8"),
    ],
)
def test_pairs_that_are_none_are_one_line(place: Path, content: str | bytes, message: str) -> None:
    path = place / "bad.tsv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=message):
        Pairs.read(path, byte_tokenizer("").marked(NAMES))


def test_lines_end_where_lines_end(place: Path) -> None:
    """Not at other separators, which a text may hold; a mark of the byte order is none of it."""
    row = "a\u2028b\x0bc\x85d\tz\r\n"
    (place / "odd.tsv").write_bytes(("\ufeffen\tde\r\n" + 30 * row).encode())
    pairs = Pairs.read(place / "odd.tsv", byte_tokenizer("").marked(NAMES))
    assert len(pairs.rows) + len(pairs.aside) == 30
    assert bytes(pairs.rows[0][0][1:].tolist()).decode() == "a\u2028b\x0bc\x85d"


def test_what_texts_are_about_is_a_matter_of_each_text_alone(place: Path) -> None:
    model, pairs = _model(concepts=8), _pairs(place)
    texts = [row[0] for row in pairs.rows[:5]] + [pairs.rows[7][1]]
    together, shares = about(model, texts)
    assert shares is not None
    torch.testing.assert_close(shares.sum(1), torch.ones(6))
    for number, text in enumerate(texts):
        alone, own = about(model, [text])
        assert own is not None
        torch.testing.assert_close(alone[0], together[number], rtol=0, atol=1e-5)
        torch.testing.assert_close(own[0], shares[number], rtol=0, atol=1e-5)


def test_aligning_is_the_same_in_parts_and_costs_what_it_computes(place: Path) -> None:
    model = _model(concepts=8)
    objective = Aligning(NextToken(), _pairs(place), 0.5, 7)
    tokens = _text(12)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(12) * 5)
    whole = objective(model, batch).mean
    parts = [batch.part(at, at + 4) for at in (0, 4, 8)]
    together = torch.stack([objective(model, part).mean for part in parts]).mean()
    torch.testing.assert_close(whole, together)
    gradients = []
    for cut in ([batch], parts):
        model.zero_grad()
        for part in cut:
            (objective(model, part).mean * len(part) / len(batch)).backward()
        gradients.append([one.grad.to_dense().clone() for one in model.parameters()])
    for name, one, other in zip(dict(model.named_parameters()), *gradients, strict=True):
        assert (one - other).norm() <= 1e-4 * one.norm() + 1e-30, name
    assert whole > NextToken()(model, batch).mean
    (bill,) = objective.flops(model, batch).values()
    (plain,) = NextToken().flops(model, batch).values()
    assert plain < bill < 2 * plain
    drawn = objective(model, Batch(batch.inputs, batch.targets, batch.ids + 1)).mean
    assert drawn != whole  # other sequences bring other pairs
    away = [part.to(torch.device("meta")) for part in parts]  # from where nothing can be read
    for here, there in zip(parts, away, strict=True):
        for texts, same in zip(objective._texts(here), objective._texts(there), strict=True):
            assert [text.tolist() for text in texts] == [text.tolist() for text in same]


def test_texts_are_told_apart_by_their_own() -> None:
    first = torch.randn(4, 16, dtype=torch.float64)
    assert told_apart(first, first) < told_apart(first, first.flip(0))
    same = torch.ones(4, 16, dtype=torch.float64)
    torch.testing.assert_close(told_apart(same, same), torch.tensor(2.0).double().log())
    p, q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    torch.testing.assert_close(divergence(p, q)[0], torch.tensor(2.0).log())
    assert divergence(p, p).abs() < 1e-7


def test_training_on_pairs_brings_texts_together_that_were_set_aside(place: Path) -> None:
    pairs = _pairs(place, 200)
    model = Phase(PhaseSettings(**SMALL, languages=2, value_tables=False), VOCAB)
    before = retrieval(model, pairs)
    objective = Aligning(NextToken(), pairs, 1.0, 0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    tokens = _text(16)
    for step in range(60):
        ids = torch.arange(16) + 16 * step
        objective(model, Batch(tokens[:, :-1], tokens[:, 1:], ids)).mean.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = retrieval(model, pairs)
    assert set(after) == {"en-de", "de-en"}
    assert min(after.values()) >= 0.5 > max(before.values())


def test_equal_texts_that_are_not_turned_are_found(place: Path) -> None:
    pairs = _pairs(place, same=True)
    model = _model()
    assert model.spoken is not None
    with torch.no_grad():
        model.spoken.angles_embedding.zero_()
        model.trunk.embedding.weight[258] = model.trunk.embedding.weight[257]
        for table in model.trunk.tables.value_tables:
            table.weight[258] = table.weight[257]
    assert retrieval(model, pairs) == {"en-de": 1.0, "de-en": 1.0}


def test_corpora_of_one_language_each_are_marked_by_their_names(place: Path) -> None:
    for name, word in (("en", "one"), ("de", "eins")):
        rows = "".join(json.dumps({"text": f"{word} {n} " * 5}) + "\n" for n in range(90))
        (place / f"{name}.jsonl").write_text(rows)
        how: dict[str, Any] = {"sources": (f"{name}.jsonl",), "tokenizer": "bytes"}
        prepare(PrepareSettings(**how, out=place / name))
    found = read_as(f"{place / 'en'}:0.5,{place / 'de'}:0.5", 1.0, NAMES)
    windows = found.train.read(found.train.spread(32, 20), 33)
    languages = language_of(windows, found.tokenizer)
    for row, own in zip(windows, languages, strict=True):
        text = found.tokenizer.decode(row.tolist())
        assert ("eins" in text) == (own[-1] == 1)
    assert {0, 1} == set(languages[:, -1].tolist())
