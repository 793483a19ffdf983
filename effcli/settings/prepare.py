"""`eff prepare`: which text becomes a corpus, and how."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from effcli.settings.base import Count, Flag, Settings
from effcli.settings.corpora import CORPORA, MIXES, prepared

_TOKENIZERS = "bytes|bpe:N|gpt2|cl100k|o200k|like:CORPUS"
_SOURCES = ("python", "python:docs", "grammar:1", "grammar-noisy:1", *CORPORA, *MIXES)
Share = Annotated[float, Field(ge=0, lt=0.5)]
Written = Annotated[
    str,
    BeforeValidator(lambda text: str(text).replace("\\n", "\n").replace("\\t", "\t")),
    Field(min_length=1),
]


def _tokenizers() -> tuple[str, ...]:
    likes = (f"like:{corpus}" for corpus in prepared())
    return "bytes", "bpe:4096", "gpt2", "cl100k", "o200k", *likes


class PrepareSettings(Settings):
    """What `eff prepare` reads and writes."""

    #: Fields that say where things are or what to do, not what the corpus holds.
    PLACES: ClassVar[tuple[str, ...]] = ("out", "force", "verify")

    sources: Annotated[
        tuple[str, ...], Flag(positional=True, metavar="SOURCE", choices=_SOURCES)
    ] = ()
    """Named corpora, files, folders or globs; without one, `python`, which is on every machine."""
    mix: Annotated[str | None, Flag(panel="Source", metavar="NAME:SHARE,...")] = None
    """Several sources by their shares of the tokens, as in wikitext-2:0.6,tinystories:0.4."""
    text_column: Annotated[str | None, Flag(panel="Source", metavar="NAME")] = None
    """Column or JSON field that holds the text; by default `text`."""
    label_column: Annotated[str | None, Flag(panel="Source", metavar="NAME")] = None
    """Column or JSON field that holds a label of each document: a short text or a number."""
    separator: Annotated[Written | None, Flag(panel="Source", metavar="TEXT")] = None
    """What stands between documents in plain text, as in `\\n\\n`; by default <|endoftext|>."""
    val: Annotated[Path | None, Flag(panel="Splits", metavar="FILE")] = None
    """Your own validation text."""
    test: Annotated[Path | None, Flag(panel="Splits", metavar="FILE")] = None
    """Your own test text."""
    holdout: Annotated[Path | None, Flag(panel="Splits", metavar="FILE")] = None
    """Text that you trust, for `eff aql`, which learns from it what good text is."""
    held_out_share: Annotated[Share | None, Flag(panel="Splits", metavar="SHARE")] = None
    """Share of the documents for each split that the source lacks; by default 0.05 or less."""
    tokenizer: Annotated[
        str | None,
        Flag(panel="Tokens", metavar=_TOKENIZERS, choices=_tokenizers),
    ] = None
    """How text becomes tokens; by default what suits the source, mostly bpe:4096 or gpt2.

    `like:CORPUS` is the tokenizer of a prepared corpus, so that losses can be compared.
    """
    max_tokens: Annotated[Count | None, Flag(panel="Tokens", metavar="N")] = None
    """Stop the training split after this many tokens."""
    seed: Annotated[int, Field(ge=0, lt=2**63), Flag(panel="Splits", metavar="N")] = 0
    """Decides which documents are held out, and the order of a mix."""
    out: Annotated[Path | None, Flag(panel="Output", metavar="FOLDER")] = None
    """Corpus folder; by default a telling name in data/ (or EFF_DATA)."""
    force: Annotated[bool, Flag(panel="Output")] = False
    """Replace a corpus of the same name that was made differently."""
    verify: Annotated[bool, Flag(panel="Output")] = False
    """Re-hash the prepared corpus instead of preparing it."""

    repeat: bool = False
    """In a mix, read a source again when it ends; otherwise the mix ends with its first source.

    Without an end of its own, such a mix takes `max_tokens`.
    """
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of rows that may be empty, not text or not UTF-8 before the preparation fails."""
    bpe_sample: Annotated[Count, Field(ge=1000)] = 64_000_000
    """Bytes of training text that a `bpe:N` tokenizer is trained on."""
    shard_tokens: Annotated[Count, Field(ge=1024)] = 2**27
    """Tokens per shard file."""
