"""The pools that selections are judged in hold what their tables say."""

import io
import json
import lzma
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import pools  # type: ignore[import-not-found]

SIZE = 600_000  # bytes of a pool
HOLDOUT = 30
SHARES = {
    "r1": {"clean": 1.0},
    "r3-50": {"clean": 0.5},
    "r3-80": {"clean": 0.2},
    "r4": {"unique": 0.2, "copy": 0.8},
    "r5": {"wiki": 0.1},
}
NOISE = {"shuffled", "bytes", "boilerplate", "foreign", "ocr", "chains"}
DOMAINS = {"stories", "logs", "tweets", "news", "code", "reviews", "novels"}


def _prose(name: str, count: int, words: int) -> list[str]:
    """Documents of words that all begin with `name`, so that their origin shows."""
    random = Random(name)
    return [
        " ".join(f"{name}{random.randrange(2000)}" for _ in range(random.randint(words, 2 * words)))
        for _ in range(count)
    ]


def _lines(folder: Path, name: str, texts: list[str]) -> None:
    rows = "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts))
    (folder / name).write_bytes(lzma.compress(rows.encode(), preset=0))


def _archive(folder: Path, name: str, files: dict[str, str]) -> None:
    with tarfile.open(folder / name, "w:xz", preset=0) as tar:
        for path, text in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> "pools.Library":
    folder = tmp_path_factory.mktemp("texts")
    _lines(folder, "wiki_train.jsonl.xz", _prose("wiki", 2400, 40))
    _lines(folder, "reuters.jsonl.xz", _prose("news", 500, 100))
    _lines(folder, "imdb_train.jsonl.xz", _prose("film", 500, 100))
    _lines(folder, "novels_train.jsonl.xz", _prose("novel", 3, 30_000))
    foreign = {f"multi30k/train.{name}": name for name in ("en", "de", "fr")}
    foreign |= {"flores200/dev/eng_Latn.dev": "en", "flores200/dev/swh_Latn.dev": "sw"}
    texts = {path: "\n".join(_prose(name, 40, 8)) for path, name in foreign.items()}
    _archive(folder, "multilingual.tar.xz", texts)  # less than its part of the noise
    story = "\n".join(json.dumps({"text": text}) for text in _prose("story", 20, 50))
    _archive(folder, "tinystories.tar.xz", {"tinystories/a.jsonl": story, "tinystories/b.txt": "b"})
    other = {"x/a.log": _prose("log", 900, 12), "x/train_text.txt": _prose("tweet", 900, 12)}
    _archive(folder, "other_domains.tar.xz", {k: "\n".join(v) for k, v in other.items()})
    return pools.Library(folder, seed=0, holdout=HOLDOUT)


Build = Callable[[str], "list[pools.Document]"]


@pytest.fixture(scope="module")
def build(library: "pools.Library") -> Build:
    kept: dict[str, list[pools.Document]] = {}

    def make(regime: str) -> "list[pools.Document]":
        if regime not in kept:
            kept[regime] = pools.build(library, regime, SIZE, seed=0)
        return kept[regime]

    return make


def _sizes(pool: "list[pools.Document]") -> Counter[str]:
    """Of each label, as many bytes of articles as it has tokens."""
    sizes: Counter[str] = Counter()
    for text, label in pool:
        sizes[label] += len(text.encode()) / pools.density(label)  # type: ignore[assignment]
    return sizes


@pytest.mark.parametrize("regime", SHARES)
def test_every_label_has_its_share_of_the_tokens(build: Build, regime: str) -> None:
    sizes = _sizes(build(regime))
    assert sizes.total() == pytest.approx(SIZE, rel=0.05)
    for label, share in SHARES[regime].items():
        assert sizes[label] / sizes.total() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("regime", ["r3-50", "r3-80"])
def test_noise_is_in_equal_parts_of_six_kinds_but_what_is_scarce(build: Build, regime: str) -> None:
    sizes = _sizes(build(regime))
    del sizes["clean"]
    assert set(sizes) == NOISE
    scarce = sizes.pop("foreign")
    assert scarce < min(sizes.values())
    assert max(sizes.values()) < 1.2 * min(sizes.values())


def test_domains_are_in_equal_parts_but_what_is_scarce(build: Build) -> None:
    sizes = _sizes(build("r5"))
    del sizes["wiki"]
    assert set(sizes) == DOMAINS
    scarce = sizes.pop("stories")
    assert scarce < min(sizes.values())
    assert max(sizes.values()) < 1.35 * min(sizes.values())


@pytest.mark.parametrize("regime", SHARES)
def test_every_pool_holds_the_trusted_documents_among_its_good_ones(
    build: Build, library: "pools.Library", regime: str
) -> None:
    trusted = {piece for text in library.holdout for piece in pools.pieces(text)}
    good = {text for text, label in build(regime) if label in ("clean", "unique", "wiki")}
    assert len(trusted) >= HOLDOUT
    assert trusted <= good


@pytest.mark.parametrize("regime", ["r3-50", "r3-80"])
def test_what_became_noise_is_not_there_in_clean_form(build: Build, regime: str) -> None:
    words: dict[str, list[tuple[str, ...]]] = {"clean": [], "shuffled": []}
    for text, label in build(regime):
        words.setdefault(label, []).append(tuple(sorted(text.split())))
    assert words["shuffled"]
    assert not set(words["shuffled"]).intersection(words["clean"])


@pytest.mark.parametrize("regime", SHARES)
def test_the_same_seed_gives_the_same_pool(
    build: Build, library: "pools.Library", regime: str
) -> None:
    assert pools.build(library, regime, SIZE, seed=0) == build(regime)
    assert pools.build(library, regime, SIZE, seed=1) != build(regime)


def test_the_order_of_the_articles_does_not_matter() -> None:
    texts = _prose("a", 50, 5)
    assert pools.in_order(texts, 3) == pools.in_order(reversed(texts), 3)
    assert pools.in_order(texts, 3) != pools.in_order(texts, 4)


def test_clean_parts_are_nested(build: Build) -> None:
    small, middle, large = (
        {text for text, label in build(regime) if label == "clean"}
        for regime in ("r3-80", "r3-50", "r1")
    )
    assert small < middle < large


def test_the_first_of_its_kind_is_no_copy_and_comes_as_it_was(
    build: Build, library: "pools.Library"
) -> None:
    pool = build("r4")
    originals = set(library.articles)
    unique = [text for text, label in pool if label == "unique"]
    assert originals.issuperset(unique)
    assert len(unique) == len(set(unique))
    met: set[str] = set()
    exact = 0
    for text, label in pool:
        if label == "unique":
            met.add(text)
        elif text in originals:
            assert text in met
            exact += 1
    copies = sum(label == "copy" for _, label in pool)
    assert exact / copies == pytest.approx(0.5 + 0.5 * 0.97**60, abs=0.1)  # some keep every word


def test_a_pool_for_which_there_is_not_enough_text_is_refused(library: "pools.Library") -> None:
    with pytest.raises(SystemExit, match="r1: there is not enough text for 100 MB"):
        pools.build(library, "r1", 100e6, seed=0)


ARTICLE = _prose("word", 1, 2000)[0]


@pytest.mark.parametrize(
    "make", [pools.shuffled_words, pools.random_bytes, pools.misread, pools.boilerplate]
)
def test_noise_is_as_long_as_its_article_and_not_the_article(
    make: Callable[[Random, str], str],
) -> None:
    noise = make(Random(0), ARTICLE)
    assert noise != ARTICLE
    assert len(ARTICLE) <= len(noise) < len(ARTICLE) + 100


def test_shuffling_keeps_every_word_and_the_layout() -> None:
    article = "one  two\nthree\n\nfour five six seven"
    noise = pools.shuffled_words(Random(0), article)
    assert sorted(noise.split()) == sorted(article.split())
    assert [c for c in noise if c.isspace()] == [c for c in article if c.isspace()]


def test_a_bad_scan_mistakes_the_stated_share_of_characters() -> None:
    scan = pools.misread(Random(0), ARTICLE)
    pairs = [(a, b) for a, b in zip(ARTICLE, scan, strict=True) if not a.isspace()]
    assert sum(a != b for a, b in pairs) / len(pairs) == pytest.approx(pools.MISREAD, abs=0.01)


def test_an_edited_copy_has_the_stated_share_of_other_words() -> None:
    article, copy = ARTICLE.split(), pools.edited(Random(0), ARTICLE).split()
    changed = sum(a != b for a, b in zip(article, copy, strict=True)) / len(article)
    assert changed == pytest.approx(pools.EDITED_WORDS, abs=0.015)


def test_every_pair_of_words_in_a_chain_was_read() -> None:
    texts = _prose("word", 20, 50)
    noise = pools.Chain(texts)(Random(0), ARTICLE).split(" ")
    words = " ".join(texts).split(" ")
    assert {*pairwise(noise)} <= {*pairwise([*words, words[0]])}
    longest = SequenceMatcher(None, noise, words, autojunk=False).find_longest_match().size
    assert longest < len(noise) / 4  # not just the text itself


def test_long_documents_are_cut_and_lose_nothing_but_space(build: Build) -> None:
    novel = " ".join(map(str, range(20_000)))
    parts = list(pools.pieces(novel + " end" * 9000))
    assert max(map(len, parts)) <= pools.LONGEST
    assert "".join("".join(parts).split()) == "".join((novel + " end" * 9000).split())
    assert all(len(text) <= pools.LONGEST for text, _ in build("r5"))


def test_the_command_writes_the_pool_and_the_holdout_and_shows_a_table(
    library: "pools.Library",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--data", str(library._folder), "--out", str(tmp_path / "pools")]
    arguments += ["--regime", "r3-80", "--megabytes", "0.6", "--holdout", str(HOLDOUT)]
    monkeypatch.setattr(sys, "argv", ["pools.py", *arguments])
    pools.main()
    assert set(capsys.readouterr().out.split()) >= NOISE
    pool, holdout = (
        [json.loads(line) for line in (tmp_path / "pools" / name).read_bytes().splitlines()]
        for name in ("r3-80.jsonl", "holdout.jsonl")
    )
    assert {row["label"] for row in pool} == {"clean", *NOISE}
    assert [row["text"] for row in holdout] == library.holdout
