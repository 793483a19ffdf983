"""The named corpora and mixes, in one table; and where prepared ones are."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from effcli.errors import InputError

CORPUS_FILE = "corpus.json"
"""What a folder has that is a prepared corpus."""
MIX_HINT = "make one corpus of its sources with eff prepare --mix"
"""For those who need the folder that a mix of prepared corpora does not have."""


@dataclass(frozen=True)
class NamedCorpus:
    """A corpus on the hub."""

    hub_id: str
    config: str | None
    license: str
    size: str
    """Text, roughly, in bytes."""
    column: str = "text"
    streaming: bool = False
    """Read while downloading, because it would not fit beside its shards."""
    tokenizer: str = "gpt2"
    held_out_share: float = 0.005
    """Share of documents for each split that the corpus itself lacks."""
    rows: str = "documents"
    """What a row is: a document, or a line of a WikiText article."""


CORPORA: dict[str, NamedCorpus] = {
    "wikitext-103": NamedCorpus(
        "Salesforce/wikitext", "wikitext-103-raw-v1", "CC BY-SA 3.0", "0.54 GB", rows="wikitext"
    ),
    "wikitext-2": NamedCorpus(
        "Salesforce/wikitext", "wikitext-2-raw-v1", "CC BY-SA 3.0", "13 MB", rows="wikitext"
    ),
    "tinystories": NamedCorpus(
        "roneneldan/TinyStories", None, "CDLA-Sharing-1.0", "1.9 GB", tokenizer="bpe:4096"
    ),
    "openwebtext": NamedCorpus(
        "Skylion007/openwebtext", None, "CC0-1.0", "40 GB", streaming=True, held_out_share=0.0005
    ),
    "pile": NamedCorpus(
        "monology/pile-uncopyrighted", None, "as its parts", "0.8 TB", streaming=True
    ),
    "fineweb-edu": NamedCorpus(
        "HuggingFaceFW/fineweb-edu",
        "sample-10BT",
        "ODC-By 1.0",
        "50 GB",
        streaming=True,
        held_out_share=0.0005,
    ),
    "text8": NamedCorpus("afmck/text8", None, "CC BY-SA 3.0", "0.1 GB", tokenizer="bytes"),
}


@dataclass(frozen=True)
class NamedMix:
    """Corpora by their shares of the tokens."""

    shares: dict[str, float] = field(default_factory=dict)
    tokenizer: str = "gpt2"


MIXES: dict[str, NamedMix] = {
    "multi": NamedMix({"wikitext-2": 0.4, "tinystories": 0.3, "openwebtext": 0.3}),
    "large": NamedMix({"pile": 0.5, "openwebtext": 0.3, "wikitext-2": 0.2}),
}


def root() -> Path:
    """Where corpora live: `data/`, or what EFF_DATA says."""
    return Path(os.environ.get("EFF_DATA") or "data")


def prepared() -> list[str]:
    """The names of the corpora that were prepared there."""
    return sorted(path.parent.name for path in root().glob(f"*/{CORPUS_FILE}"))


def is_mix(data: str | None) -> bool:
    """Whether prepared corpora are named with shares, as in `a:0.4,b:0.6`."""
    return data is not None and "," in data and ":" in data


def shares_of(text: str, flag: str) -> dict[str, float]:
    """What is to be mixed, by its share of the tokens; `flag` says so where it is wrong."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.strip().rpartition(":")
        if name in shares:
            raise InputError(f"{flag}: {name} is named twice")
        try:
            shares[name] = float(share)
        except ValueError:
            raise InputError(f"{flag} {part.strip()}: not of the form name:share") from None
    if not all(shares) or not all(share > 0 for share in shares.values()):
        raise InputError(f"{flag}: every part needs a name and a share above 0")
    total = sum(shares.values())
    if abs(total - 1) > 0.01:
        raise InputError(f"{flag}: the shares add up to {total:g}, not to 1")
    return shares
