"""Text to ids and back. A tokenizer is saved whole beside the shards it made."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effcli.catalog import TOKENIZERS
from effcli.engine.data.source import cut
from effcli.engine.runs.files import read_json, write_json
from effcli.errors import InputError, ResourceError
from effcli.registry import suggestion

SEPARATOR = "<|endoftext|>"
SCHEMA = 1
LONGEST_RUN = 2**17  # characters; tiktoken's engine is only safe on text of bounded length

# The only patterns that are run: one from an unknown file could take forever. The last three
# are those of tiktoken's encodings of the same names, which are compared with it when loaded.
PATTERNS = {
    "eff": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt2": (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"),
    "cl100k": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|"
        r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    "o200k": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}


class Tokenizer:
    """A reversible map between text and ids. `pattern` is empty for plain bytes.

    `marks` are languages. Each has two ids behind all others, and no text: a document in it begins
    with the first in the place of the separator; what is read from its middle on has the second.
    """

    def __init__(
        self,
        name: str,
        pattern: str,
        ranks: dict[bytes, int],
        separator: int,
        marks: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.pattern = pattern
        self.ranks = ranks
        self.separator = separator
        self.marks = tuple(marks)
        self.unmarked = max(separator, max(ranks.values())) + 1
        self.vocab_size = self.unmarked + 2 * len(self.marks)

    def marked(self, marks: Sequence[str]) -> "Tokenizer":
        """The same with marks."""
        return Tokenizer(self.name, self.pattern, self.ranks, self.separator, marks)

    def begin(self, language: str | None = None) -> int:
        """What a document begins with; without a name, one in the first language."""
        if language is None:
            return self.unmarked if self.marks else self.separator
        if language not in self.marks:
            hint = "leave out --language: the model knows none by name"
            known = suggestion(language, list(self.marks)) if self.marks else hint
            raise InputError(f"language: there is no {language!r}", known)
        return self.unmarked + self.marks.index(language)

    @property
    def ends(self) -> frozenset[int]:
        """What stands where another document begins."""
        return frozenset((self.separator, *range(self.unmarked, self.vocab_size)))

    @cached_property
    def hash(self) -> str:
        """Names the whole map: equal hashes mean equal ids for every text."""
        digest = hashlib.sha256(f"{self.pattern}\n{self.separator}\n".encode())
        for token, rank in sorted(self.ranks.items(), key=lambda pair: pair[1]):
            digest.update(rank.to_bytes(4, "little") + len(token).to_bytes(4, "little") + token)
        digest.update("".join(f"\n{mark}" for mark in self.marks).encode())
        return digest.hexdigest()

    @cached_property
    def _encoding(self) -> Any:
        import tiktoken

        special = {SEPARATOR: self.separator}
        return tiktoken.Encoding(
            self.name,
            pat_str=PATTERNS[self.pattern],
            mergeable_ranks=self.ranks,
            special_tokens=special,
        )

    @cached_property
    def token_bytes(self) -> NDArray[np.int64]:
        """Length in bytes of every id; the separator and unused ids have none."""
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for token, rank in self.ranks.items():
            sizes[rank] = len(token)
        return sizes

    @cached_property
    def _tokens(self) -> dict[int, bytes]:
        return {rank: token for token, rank in self.ranks.items()}

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Ids of a text; special tokens in it are text like any other."""
        if not self.pattern:
            return np.frombuffer(text.encode("utf8"), dtype=np.uint8).astype(np.uint32)
        if len(text) <= LONGEST_RUN:
            return self._run(text)
        return np.concatenate([self._run(part) for part in cut(text, LONGEST_RUN)])

    def _run(self, text: str) -> NDArray[np.uint32]:
        ids: NDArray[np.uint32] = self._encoding.encode_to_numpy(text, disallowed_special=())
        return ids

    def encode_several(self, texts: Iterable[str]) -> list[NDArray[np.uint32] | None]:
        """Ids of each text; None stands for one that the engine cannot take."""
        return [self._encode_or_none(text) for text in texts]

    def _encode_or_none(self, text: str) -> NDArray[np.uint32] | None:
        try:
            return self.encode(text)
        except BaseException as error:
            # The Rust engine panics past `except Exception` on some texts.
            if type(error).__name__ == "PanicException":
                return None
            raise

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids; the separator has none."""
        return b"".join(self._tokens.get(int(i), b"") for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; half a character becomes a replacement mark."""
        return self.decode_bytes(ids).decode("utf8", errors="replace")

    def save(self, path: Path) -> None:
        """Write the whole map, so that it can be used without a network for ever."""
        write_json(path, self.content())

    def content(self) -> dict[str, Any]:
        """The whole map, as JSON."""
        tokens = sorted(self.ranks.items(), key=lambda pair: pair[1])
        return {
            "schema": SCHEMA,
            "name": self.name,
            "pattern": self.pattern,
            "separator": self.separator,
            "hash": self.hash,
            **({"marks": list(self.marks)} if self.marks else {}),
            "tokens": [base64.b64encode(token).decode() for token, _ in tokens],
        }

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a saved tokenizer and check every part of it."""
        return cls.of(read_json(path), str(path))

    @classmethod
    def of(cls, content: Any, place: str) -> "Tokenizer":
        """What `content` gave, wherever it was kept; every part of it is checked."""
        try:
            tokens = [base64.b64decode(token, validate=True) for token in content["tokens"]]
            ranks = {token: rank for rank, token in enumerate(tokens)}
            how = (content["name"], content["pattern"], ranks, int(content["separator"]))
            tokenizer = cls(*how, content.get("marks", ()))
            is_whole = (
                len(ranks) == len(tokens)
                and isinstance(tokenizer.name, str)
                and tokenizer.pattern in ("", *PATTERNS)
                and tokenizer.separator >= len(tokens)
                and all(isinstance(mark, str) for mark in tokenizer.marks)
                and all(bytes([value]) in ranks for value in range(256))
                and tokenizer.content() == content  # Base64 can say the same in several ways
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"{place} is not a tokenizer: {error}") from error
        if not is_whole:
            raise InputError(f"{place} is damaged", "prepare the corpus again")
        return tokenizer


def parse(spec: str) -> tuple[str, str]:
    """Check a tokenizer's name as the user wrote it, and split it into kind and argument."""
    kind, _, argument = spec.partition(":")
    TOKENIZERS[kind]
    if kind == "bpe":
        if not argument.isdecimal() or not 257 < int(argument) <= 2**18:
            hint = "bpe:N makes N ids, 258 to 262144, for example bpe:4096"
            raise InputError(f"there is no tokenizer {spec!r}", hint)
    elif kind == "like":
        if not argument:
            hint = "like:CORPUS takes over the tokenizer of a prepared corpus"
            raise InputError(f"there is no tokenizer {spec!r}", hint)
    elif argument:
        raise InputError(f"there is no tokenizer {spec!r}", f"{kind} takes no number")
    return kind, argument


def byte_tokenizer(_: str) -> Tokenizer:
    """One id per byte, and one for the separator."""
    return Tokenizer("bytes", "", {bytes([value]): value for value in range(256)}, 256)


def published(name: str) -> Tokenizer:
    """One of OpenAI's, which `tiktoken` fetches at its first use."""
    import tiktoken

    full_name = name if name == "gpt2" else f"{name}_base"
    try:
        encoding = tiktoken.get_encoding(full_name)
    except Exception as error:
        first = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise ResourceError(
            f"the tokenizer {name!r} has to be downloaded once, and cannot be: {first}",
            "set TIKTOKEN_CACHE_DIR to a folder that has it, or use --tokenizer bpe:4096 or bytes",
        ) from error
    ranks, separator = encoding._mergeable_ranks, encoding.eot_token
    if encoding._pat_str != PATTERNS[name] or sorted(ranks.values()) != list(range(len(ranks))):
        raise InputError(f"this version of tiktoken has changed {name!r}", "use bpe:4096 or bytes")
    return Tokenizer(name, name, ranks, separator)


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a corpus says about its tokenizer."""
    return {
        "name": tokenizer.name,
        "hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "separator": tokenizer.separator,
    }
