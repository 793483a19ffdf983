"""Pools of text to select from, one for each regime that a selection is judged in.

    python benchmarks/pools.py --data FOLDER --out FOLDER --regime r3-80 --megabytes 26

A pool is a file of JSON lines with the fields `text` and `label`, in random order:

- `r1`: clean articles, nothing else;
- `r3-50`, `r3-80`: 50 % or 80 % of the tokens are noise of several kinds;
- `r4`: 80 % of the bytes are copies of few articles, half of the copies slightly edited;
- `r5`: 10 % of the bytes are articles, the rest is of other domains.

The articles are those of `wiki_train.jsonl.xz`. The first of them are also in `holdout.jsonl`, the
text that is trusted: it is the same for every regime, and in the good part of every pool, so
that whoever reads a whole pool reads it, too. No article serves twice in a pool: what
became noise is not there in clean form. The smaller clean parts are the beginnings of the larger.
The same seed gives the same bytes; only the code in `r5` depends on the Python that runs this.
"""

import argparse
import hashlib
import json
import math
import re
import string
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from effcli.engine.data.local import Local
from effcli.engine.data.source import cut
from effcli.engine.data.stdlib import StandardLibrary

MEGABYTE = 1_000_000
LONGEST = 20_000  # characters; a longer document becomes several
BLOCK = 4_000  # characters of a document that is made of lines
CHAIN_SHARE = 0.15  # of the pool's size: the text that the chain of words learns from
COPIED, TIMES, EDITED_COPIES, EDITED_WORDS = 0.8, (50, 100), 0.5, 0.03
MISREAD = 0.15
TARGET = 0.1

# Of each kind in r3, separators included, with `bpe:4096` trained on r1 alone (40 MB of articles).
# Noise has fewer bytes per token: equal bytes of it would be far more than equal tokens.
BYTES_PER_TOKEN = {"clean": 3.32, "shuffled": 3.26, "chains": 3.31, "ocr": 2.28}
BYTES_PER_TOKEN |= {"boilerplate": 2.25, "foreign": 1.62, "bytes": 1.11}

GLYPHS = string.ascii_letters + string.digits + ".,;:'|!~^*"
LOOKALIKES = {"a": "oe", "c": "eo(", "e": "co", "h": "bn", "i": "l1!", "l": "1I|", "m": "nw"}
LOOKALIKES |= {"n": "hru", "o": "0ce", "r": "vn", "s": "5$z", "t": "f+l", "u": "vn", "v": "yu"}
BOILERPLATE = (  # each # becomes a digit
    (
        "Jan ## ##:##:## host## sshd[####]: Failed password for root from 10.#.##.1## port 5####\n",
        "Jan ## ##:##:## host## sshd[####]: Connection closed by 10.#.##.1## port 5####\n",
        "Jan ## ##:##:## host## CRON[####]: (root) CMD (run-parts --report /etc/cron.hourly)\n",
        "Jan ## ##:##:## host## kernel: [####.######] usb 1-#: new high-speed device number #\n",
    ),
    (
        "Home | Products | Support | About us | Contact | Log in | Register | Cart (#)\n",
        "« Previous | Page ## of ### | Next » | Show ## per page | Sort by: price, date, name\n",
        "Share this page: E-mail | Print | RSS | ### comments | #,### views | Report a problem\n",
        "Related items: Item ####, Item ####, Item ####, Item #### (see all ### items)\n",
    ),
    (
        "We use cookies to improve your experience. By continuing you accept our policy of 20##.\n",
        "We and our ### partners store and access information on a device. Manage ## settings.\n",
        "Strictly necessary cookies (##): always active. Analytics cookies (##): on | off.\n",
        "Copyright 20## Example Limited. All rights reserved. Company number ########.\n",
    ),
)


class Document(NamedTuple):
    """A line of a pool."""

    text: str
    label: str


def weight(texts: Iterable[str]) -> int:
    """Bytes of text."""
    return sum(len(text.encode()) for text in texts)


def density(label: str) -> float:
    """Bytes of a kind that make as many tokens as a byte of articles; 1 where none were counted."""
    return BYTES_PER_TOKEN.get(label, BYTES_PER_TOKEN["clean"]) / BYTES_PER_TOKEN["clean"]


def pieces(text: str) -> Iterator[str]:
    """A document, cut at blank space where it is too long."""
    return (piece for part in cut(text, LONGEST) if (piece := part.strip()))


def blocks(lines: Iterable[str], length: int = BLOCK) -> Iterator[str]:
    """Lines put together to documents of about `length` characters."""
    kept: list[str] = []
    missing = length
    for line in lines:
        kept.append(line)
        missing -= len(line) + 1
        if missing <= 0:
            yield "\n".join(kept)
            kept, missing = [], length
    if any(kept):
        yield "\n".join(kept)


def in_order(texts: Iterable[str], seed: int) -> list[str]:
    """Every text once, by a hash: a random order that does not depend on the one given."""
    keyed = {hashlib.sha256(f"{seed}:{text}".encode()).digest(): text for text in texts}
    return [keyed[key] for key in sorted(keyed)]


def take(texts: Iterator[str], size: float) -> list[str]:
    """Texts from the front until they hold `size` bytes, or all that are left."""
    taken: list[str] = []
    while size > 0 and (text := next(texts, None)) is not None:
        taken.append(text)
        size -= len(text.encode())
    return taken


def labeled(texts: Iterable[str], label: str) -> list[Document]:
    """Documents of one kind."""
    return [Document(piece, label) for text in texts for piece in pieces(text)]


def equal_parts(kinds: dict[str, Iterator[str]], size: float) -> list[Document]:
    """As many tokens of every kind; what a kind lacks is made up for by those after it.

    Together they have as many as `size` bytes of articles.
    """
    pool: list[Document] = []
    for left, (label, texts) in zip(range(len(kinds), 0, -1), kinds.items(), strict=True):
        part = take(texts, density(label) * size / left)
        size -= weight(part) / density(label)
        pool += labeled(part, label)
    return pool


class Library:
    """The texts of the data folder."""

    def __init__(self, folder: Path, seed: int, holdout: int) -> None:
        self._folder, self._seed = folder, seed
        articles = in_order(self._texts("wiki_train.jsonl.xz"), seed)
        self.holdout, self.articles = articles[:holdout], articles

    def _texts(self, name: str) -> Iterator[str]:
        rows = Local(str(self._folder / name)).rows("train")
        return (row.text for row in rows if isinstance(row.text, str))

    def _members(self, archive: str, pattern: str) -> Iterator[str]:
        """The files of an archive whose name matches, as text."""
        with tarfile.open(self._folder / archive) as tar:
            for member in tar:
                if re.search(pattern, member.name) and (file := tar.extractfile(member)):
                    yield file.read().decode("utf8", "replace")

    def _stories(self) -> Iterator[str]:
        for file in self._members("tinystories.tar.xz", r"\.jsonl$"):
            yield from (json.loads(line)["text"] for line in file.split("\n") if line)

    def _blocks(self, pattern: str) -> Iterator[str]:
        for file in self._members("other_domains.tar.xz", pattern):
            yield from blocks(file.split("\n"))

    def _code(self) -> Iterator[str]:
        for text, _ in StandardLibrary().rows("train"):
            if isinstance(text, bytes):
                yield text.decode("utf8", "replace")

    def foreign(self) -> list[list[str]]:
        """The lines of each file in another language than English."""
        pattern = r"multi30k/.*\.(cs|de|fr)$|flores200/dev/(?!eng)|_(french|german)\.txt$"
        return [file.split("\n") for file in self._members("multilingual.tar.xz", pattern)]

    def domains(self) -> dict[str, Iterator[str]]:
        """Documents of other domains, each in random order; the scarce domains first."""
        found = {
            "stories": self._stories(),
            "logs": self._blocks(r"\.log$"),
            "tweets": self._blocks(r"_text\.txt$"),
            "news": self._texts("reuters.jsonl.xz"),
            "code": self._code(),
            "reviews": self._texts("imdb_train.jsonl.xz"),
            "novels": self._texts("novels_train.jsonl.xz"),
        }
        return {
            label: iter(in_order((p for text in texts for p in pieces(text)), self._seed))
            for label, texts in found.items()
        }


def shuffled_words(random: Random, article: str) -> str:
    """The article's words in another order; its blank space stays."""
    parts = re.split(r"(\s+)", article)
    words = parts[::2]
    random.shuffle(words)
    parts[::2] = words
    return "".join(parts)


def random_bytes(random: Random, article: str) -> str:
    """Printable characters and spaces, as many as the article has."""
    return "".join(random.choices(string.printable[:94] + " " * 16, k=len(article)))


def boilerplate(random: Random, article: str) -> str:
    """Lines from one family of templates, as long as the article."""
    lines, length, family = [], 0, random.choice(BOILERPLATE)
    while length < len(article):
        line = re.sub("#", lambda _: str(random.randrange(10)), random.choice(family))
        lines.append(line)
        length += len(line)
    return "".join(lines)


def misread(random: Random, article: str) -> str:
    """The article as a bad scan: characters become such as look alike, or any."""

    def glyph(character: str) -> str:
        if random.random() >= MISREAD or character.isspace():
            return character
        return random.choice(LOOKALIKES.get(character, GLYPHS))

    return "".join(map(glyph, article))


class Chain:
    """Words that each depend on the one before: sound in every pair, without meaning."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._words = words = " ".join(texts).split(" ")
        self._followers = defaultdict(list)
        for word, follower in pairwise([*words, words[0]]):  # a ring has no dead end
            self._followers[word].append(follower)

    def __call__(self, random: Random, article: str) -> str:
        """Words as long as the article."""
        word, words, length = random.choice(self._words), [], 0
        while length < len(article):
            word = random.choice(self._followers[word])
            words.append(word)
            length += len(word) + 1
        return " ".join(words)


def foreign(articles: Iterator[str], files: list[list[str]], random: Random) -> Iterator[str]:
    """Lines in another language, as long as articles are, until no file has any left."""
    left = [iter(lines) for lines in files]
    for article in articles:
        while left:
            lines = random.choice(left)
            if block := next(blocks(lines, len(article)), ""):
                yield block
                break
            left.remove(lines)
        else:
            return


def edited(random: Random, article: str) -> str:
    """The article with a few of its words replaced by others of its words."""
    parts = re.split(r"(\s+)", article)
    words = parts[::2]
    parts[::2] = [random.choice(words) if random.random() < EDITED_WORDS else w for w in words]
    return "".join(parts)


def clean(library: Library, size: float, random: Random) -> list[Document]:
    """R1: articles only."""
    pool = labeled(take(iter(library.articles), size), "clean")
    random.shuffle(pool)
    return pool


def noisy(library: Library, size: float, random: Random, share: float) -> list[Document]:
    """R3: articles, and `share` of noise in equal parts of six kinds."""
    articles = iter(library.articles)
    pool = labeled(take(articles, (1 - share) * size), "clean")
    makers: dict[str, Callable[[Random, str], str]] = {
        "shuffled": shuffled_words,
        "bytes": random_bytes,
        "boilerplate": boilerplate,
        "ocr": misread,
        "chains": Chain(take(articles, CHAIN_SHARE * size)),
    }
    kinds = {"foreign": foreign(articles, library.foreign(), random)}  # the only scarce one
    kinds |= {name: map(partial(make, random), articles) for name, make in makers.items()}
    pool += equal_parts(kinds, share * size)
    random.shuffle(pool)
    return pool


def copied(library: Library, size: float, random: Random) -> list[Document]:
    """R4: few articles many times, the rest once; the first of its kind is no copy."""
    count = len(library.holdout)
    trusted = [piece for article in library.holdout for piece in pieces(article)]
    articles = (piece for article in library.articles[count:] for piece in pieces(article))
    texts: list[str] = list(trusted)
    left = COPIED * size
    while left > 0:
        original = next(articles)
        times = min(random.randint(*TIMES), math.ceil(left / len(original.encode())))
        texts += [original] * (1 + times)
        left -= times * len(original.encode())
    texts += take(articles, size - weight(texts))
    random.shuffle(texts)
    seen: set[str] = set()
    pool = []
    for text in texts:
        is_copy = text in seen
        seen.add(text)
        is_edited = is_copy and random.random() < EDITED_COPIES
        pool.append(
            Document(edited(random, text) if is_edited else text, "copy" if is_copy else "unique")
        )
    return pool


def targeted(library: Library, size: float, random: Random) -> list[Document]:
    """R5: articles in a broad pool of equal parts of other domains."""
    pool = labeled(take(iter(library.articles), TARGET * size), "wiki")
    pool += equal_parts(library.domains(), (1 - TARGET) * size)
    random.shuffle(pool)
    return pool


REGIMES: dict[str, Callable[[Library, float, Random], list[Document]]] = {
    "r1": clean,
    "r3-50": partial(noisy, share=0.5),
    "r3-80": partial(noisy, share=0.8),
    "r4": copied,
    "r5": targeted,
}


def write(path: Path, pool: Iterable[Document]) -> None:
    """One document a line."""
    with path.open("w", encoding="utf8") as file:
        file.writelines(json.dumps(d._asdict(), ensure_ascii=False) + "\n" for d in pool)


def build(library: Library, regime: str, size: float, seed: int) -> list[Document]:
    """The pool of a regime, of about as many tokens as `size` bytes of articles have."""
    pool = REGIMES[regime](library, size, Random(f"{seed}:{regime}"))
    if sum(len(text.encode()) / density(label) for text, label in pool) < 0.95 * size:
        raise SystemExit(f"{regime}: there is not enough text for {size / MEGABYTE:g} MB")
    return pool


def table(pools: dict[str, list[Document]]) -> Table:
    """Bytes and documents of every label."""
    shown = Table("pool", "label", "documents", "bytes", "share of bytes")
    for name, pool in pools.items():
        documents = Counter(label for _, label in pool)
        sizes: Counter[str] = Counter()
        for text, label in pool:
            sizes[label] += len(text.encode())
        for label, size in sizes.most_common():
            share = f"{size / sizes.total():.1%}"
            shown.add_row(name, label, f"{documents[label]:,}", f"{size:,}", share)
    return shown


def main() -> None:
    """Build the pools that were asked for, beside the holdout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with the texts")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pools")
    parser.add_argument("--regime", choices=["all", *REGIMES], default="all")
    parser.add_argument("--megabytes", type=float, default=26.0, help="of articles, in tokens")
    parser.add_argument("--holdout", type=int, default=250, help="articles that are trusted")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    library = Library(asked.data, asked.seed, asked.holdout)
    asked.out.mkdir(parents=True, exist_ok=True)
    pools = {"holdout": labeled(library.holdout, "clean")}
    for regime in REGIMES if asked.regime == "all" else [asked.regime]:
        pools[regime] = build(library, regime, asked.megabytes * MEGABYTE, asked.seed)
    for name, pool in pools.items():
        write(asked.out / f"{name}.jsonl", pool)
    Console().print(table(pools))


if __name__ == "__main__":
    main()
