"""Byte-pair encodings trained on the corpus itself (Sennrich et al. 2016)."""

from collections.abc import Iterable, Iterator

from effcli.engine.data.source import cut
from effcli.engine.data.tokenizers import LONGEST_RUN, PATTERNS, Tokenizer
from effcli.errors import InputError

PATTERN = "eff"


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of `vocab_size` ids, the separator included; the same for the same texts."""
    pieces = (piece for text in texts for piece in cut(text, LONGEST_RUN))
    try:
        import rustbpe  # noqa: F401
    except ImportError:  # no wheel for this system: slower, as good
        ranks = _with_tokenizers(pieces, vocab_size - 1)
    else:
        ranks = _with_rustbpe(pieces, vocab_size - 1)
    if len(ranks) < vocab_size - 1:
        raise InputError(
            f"the text is too small or too uniform for bpe:{vocab_size}: "
            f"it gives {len(ranks) + 1} ids",
            f"use --tokenizer bpe:{len(ranks) + 1} or bytes",
        )
    return Tokenizer(f"bpe:{vocab_size}", PATTERN, ranks, vocab_size - 1)


def _with_rustbpe(pieces: Iterator[str], size: int) -> dict[bytes, int]:
    import rustbpe

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(pieces, size, pattern=PATTERNS[PATTERN])
    return {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}


def _with_tokenizers(pieces: Iterator[str], size: int) -> dict[bytes, int]:
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    letters = pre_tokenizers.ByteLevel.alphabet()
    bpe = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERNS[PATTERN]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    bpe.train_from_iterator(
        pieces,
        trainers.BpeTrainer(vocab_size=size, initial_alphabet=letters, show_progress=False),
    )
    to_byte = byte_of_letter()
    words = sorted(bpe.get_vocab().items(), key=lambda pair: pair[1])
    tokens = [bytes(to_byte[letter] for letter in word) for word, _ in words]
    # Ranks of single bytes are arbitrary there; here they are the bytes' own values.
    merged = [token for token in tokens if len(token) > 1]
    singles = [bytes([value]) for value in range(256)]
    return {token: rank for rank, token in enumerate(singles + merged)}


def byte_of_letter() -> dict[str, int]:
    """GPT-2's way to print any byte as one letter, reversed."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in printable]
    letters = {chr(value): value for value in printable}
    return letters | {chr(256 + index): value for index, value in enumerate(others)}
