"""Whether what was read is worth being a corpus."""

import math
from collections.abc import Mapping

from effcli.errors import InputError
from effcli.settings.prepare import PrepareSettings


def require_usable(rejected: Mapping[str, int], rows: int, most: float) -> None:
    """At most a share `most` of the rows may have been rejected."""
    bad = sum(rejected.values())
    if bad > most * rows:
        reasons = ", ".join(f"{n} {why}" for why, n in sorted(rejected.items()))
        least = math.ceil(1000 * bad / rows) / 1000
        hint = f"mend the source, or allow it with --set max_rejected={least:g}"
        raise InputError(f"{bad} of {rows} rows are not usable text ({reasons})", hint)


def require_text(
    tokens: Mapping[str, int], rows: int, duplicates: int, settings: PrepareSettings
) -> None:
    """There is text to train on, text to look at, and text in files that were named for it."""
    named = {split for split in ("val", "test") if getattr(settings, split) is not None}
    for split in sorted({"train", "val"} | named):
        if tokens[split] >= 2:
            continue
        hint = "give --val FILE, or raise --held-out-share"
        if split == "train":
            hint = "give more text, or lower --held-out-share"
        if settings.max_tokens is not None:
            hint = f"raise --max-tokens, or {hint}"
        if split in named:
            hint = f"name another --{split}"
        found = f"{rows} documents, {duplicates} of them also held out"
        raise InputError(f"there is no text for the {split} split ({found})", hint)
