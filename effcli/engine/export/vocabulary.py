"""A tokenizer as GGUF keeps it: tokens in printable letters, and merges in the order of ranks."""

from dataclasses import dataclass
from itertools import pairwise

from effcli.engine.data.bpe import byte_of_letter
from effcli.engine.data.tokenizers import SEPARATOR, Tokenizer
from effcli.errors import InputError

NORMAL, CONTROL, UNUSED = 1, 3, 5  # types of tokens

# llama.cpp cuts text by patterns of its own, which have names. No other is nearer to ours.
CUTS = {
    "": ("gpt-2", ""),  # any: without merges each byte is a token
    "gpt2": ("gpt-2", ""),
    "eff": ("llama-bpe", "cuts runs of three or more digits in threes, not in pairs"),
    "cl100k": ("llama-bpe", "may cut white space with line feeds otherwise at the end of a text"),
    "o200k": ("gpt-4o", "may cut words with marks, and in some scripts, otherwise"),
}


@dataclass(frozen=True)
class Vocabulary:
    """What a file says about tokens."""

    tokens: list[str]
    """By id; each byte is a letter, as GPT-2 prints them."""
    kinds: list[int]
    merges: list[str]
    """Two tokens each, with a space between; the first has the lowest rank."""
    cut: str
    """How text is cut before its bytes are merged, by llama.cpp's name."""
    differences: tuple[str, ...]
    """What llama.cpp's tokenizer does otherwise."""


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """The tokens of a tokenizer, with the merges that lead to them."""
    letters = {value: letter for letter, value in byte_of_letter().items()}

    def printed(token: bytes) -> str:
        return "".join(letters[value] for value in token)

    tokens = [f"<|unused{number}|>" for number in range(tokenizer.vocab_size)]
    kinds = [UNUSED] * len(tokens)
    for token, rank in tokenizer.ranks.items():
        tokens[rank], kinds[rank] = printed(token), NORMAL
    tokens[tokenizer.separator], kinds[tokenizer.separator] = SEPARATOR, CONTROL
    if len(set(tokens)) < len(tokens):
        raise InputError(f"{tokenizer.name} has a token that reads as another one in GGUF")
    longer = sorted((t for t in tokenizer.ranks if len(t) > 1), key=tokenizer.ranks.__getitem__)
    pairs = [pair for token in longer if (pair := merged(token, tokenizer.ranks))]
    merges = [f"{printed(first)} {printed(second)}" for first, second in pairs]
    cut, difference = CUTS[tokenizer.pattern]
    differences = [difference] if difference else []
    if len(pairs) < len(longer):
        differences.append(f"cannot reach {len(longer) - len(pairs)} tokens of its vocabulary")
    # A list may not be empty: this merge is of a token that no text has.
    never = [f"{SEPARATOR} {SEPARATOR}"]
    return Vocabulary(tokens, kinds, merges or never, cut, tuple(differences))


def merged(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that become this one, if merges of lower rank leave two of its bytes.

    Whenever its bytes are merged to it in a text, they are these two before: no merge has crossed
    its ends, so those within it were the same as if it stood alone.
    """
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        found = [ranks.get(first + second, ranks[token]) for first, second in pairwise(parts)]
        lowest = min(found)
        if lowest >= ranks[token]:
            return None
        at = found.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]
