"""What a source of text offers, and what happens to a row before it is a document."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from effcli.errors import InputError

SPLITS = ("val", "test", "train")  # held-out text first: it must be known before training text
TRUSTED = "holdout"  # a split that only few corpora have; it may be trained on
LONGEST_DOCUMENT = 2**20  # bytes; a longer one is cut, so that memory stays bounded
PIECE = 2**16  # bytes of each part of a document that was cut
UNDIVIDED = 2**14  # bytes; longer plain text is cut, so that it can be split and mixed
PLAIN_PIECE = 2**13  # bytes of each part of it
LONGEST_LABEL = 100  # characters


class Row(NamedTuple):
    """What a source yields: text, or whatever stood where text was expected."""

    text: object
    label: int = 0


@runtime_checkable
class Source(Protocol):
    """Something that text can be read from, as often as needed and always in the same order."""

    name: str
    """A short name, for the corpus folder."""
    splits: frozenset[str]
    """The splits that it brings itself; the others are taken from `train` by a hash."""
    tokenizer: str
    """The tokenizer that suits it."""
    held_out_share: float
    """Share of its documents for each split that it lacks."""

    def rows(self, split: str) -> Iterator[Row]:
        """Every row of a split."""
        ...

    def share_read(self) -> float | None:
        """How much of the current split has been read, 0..1, if that can be known."""
        ...

    def stamp(self) -> Any:
        """What is cheap to look up and differs if the text may differ; plain JSON."""
        ...

    def describe(self) -> dict[str, Any]:
        """Where the text comes from, well enough to get the same text again."""
        ...


@dataclass(slots=True)
class Item:
    """A document on its way to a split, or the reason why it will not get there."""

    text: str
    data: bytes
    label: int
    digest: int
    document: int
    """The digest of the whole document, of which this may be a piece."""
    split: str = ""
    rejected: str = ""


def items(rows: Iterable[Row], piece: int | None) -> Iterator[Item]:
    """Check every row, and cut at blank space where there is some.

    What is too long for a document becomes several. With `piece`, in bytes or so, a
    document is cut further, into items that stay in the same split.
    """
    for row in rows:
        text, label = row
        if isinstance(text, bytes):
            try:
                text = text.decode("utf8")
            except UnicodeDecodeError:
                yield _reject("not_utf8")
                continue
        if not isinstance(text, str):
            yield _reject("not_text")
        elif not text or text.isspace():
            yield _reject("empty")
        else:
            yield from _checked(text, label, piece)


def _checked(text: str, label: int, piece: int | None) -> Iterator[Item]:
    try:
        data = text.encode("utf8")
    except UnicodeEncodeError:  # half a surrogate pair, from an escape in JSON
        yield _reject("not_utf8")
        return
    if len(data) <= LONGEST_DOCUMENT:
        yield from _pieces(text, data, label, piece)
        return
    for document in cut(text, PIECE):
        yield from _pieces(document, document.encode("utf8"), label, piece)


def _pieces(text: str, data: bytes, label: int, piece: int | None) -> Iterator[Item]:
    document = digest(data)
    if piece is None or len(text) <= piece:
        yield Item(text, data, label, document, document)
        return
    for part in cut(text, piece):
        encoded = part.encode("utf8")
        yield Item(part, encoded, label, digest(encoded), document)


def _reject(reason: str) -> Item:
    return Item("", b"", 0, 0, 0, rejected=reason)


def digest(data: bytes) -> int:
    """64 bits that name a document by its content."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


def cut(text: str, limit: int) -> Iterator[str]:
    """Pieces of at most `limit` characters; each cut is before a word where there is one.

    A cut before a single space and a letter does not change what any of the known
    tokenizers makes of the text: there, both sides are pieces of their own.
    """
    start = 0
    while len(text) - start > limit:
        end = start + limit
        at = _word_start(text, start + limit // 2, end)
        yield text[start:at]
        start = at
    yield text[start:]


def _word_start(text: str, low: int, high: int) -> int:
    at = high
    while (at := text.rfind(" ", low, at)) > low:
        if text[at + 1].isalpha() and not text[at - 1].isspace():
            return at
    return high


def parts(document: bytes, is_last: bool = False) -> Iterator[bytes]:
    """A document of plain text, in parts if it is long; the end of a file is no document."""
    if len(document) <= UNDIVIDED:
        if document.strip() or not is_last:
            yield document.strip(b"\r\n")
        return
    yield from (part for part in cut_bytes(document) if part.strip())


def cut_bytes(text: bytes) -> Iterator[bytes]:
    """Parts of about PLAIN_PIECE bytes: at a blank line, else a line, a space, a character."""
    start = 0
    while len(text) - start > PLAIN_PIECE:
        end = start + PLAIN_PIECE
        for mark in (b"\n\n", b"\n", b" "):
            at = text.rfind(mark, start + PLAIN_PIECE // 2, end)
            if at > 0:
                end = at + len(mark)
                break
        else:
            while text[end] & 0b1100_0000 == 0b1000_0000 and end > start + 1:
                end -= 1  # inside a character of several bytes
        yield text[start:end]
        start = end
    yield text[start:]


def label_name(value: object) -> str:
    """What a label is known by: a short text or a whole number; nothing where there is none."""
    if isinstance(value, bytes):
        value = value.decode("utf8", "replace")
    if value is None:
        return ""
    if not isinstance(value, str | int) or len(str(value)) > LONGEST_LABEL:
        message = f"a label is neither a short text nor a whole number: {str(value)[:100]}"
        raise InputError(message, "choose another --label-column")
    return str(value).encode("utf8", "replace").decode()  # half a surrogate pair cannot be kept
