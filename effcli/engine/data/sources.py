"""From what the user wrote to the sources that are read."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effcli.catalog import SOURCES
from effcli.engine.data.source import SPLITS, TRUSTED, Source
from effcli.errors import InputError
from effcli.settings.corpora import CORPORA, MIXES, shares_of
from effcli.settings.prepare import PrepareSettings


@dataclass(frozen=True)
class Plan:
    """Which sources are read, in which shares, and what the corpus is called."""

    names: tuple[str, ...]
    shares: tuple[float, ...] | None
    tokenizer: str
    corpus: str

    @property
    def is_mix(self) -> bool:
        """Whether shares of tokens were asked for."""
        return self.shares is not None


def plan(settings: PrepareSettings) -> Plan:
    """Decide what to read, without opening anything."""
    names, shares, title = settings.sources, None, ""
    if settings.mix is not None:
        if names:
            raise InputError("give sources or --mix, not both")
        given = shares_of(settings.mix, "--mix")
        total = sum(given.values())
        names, shares = tuple(given), tuple(share / total for share in given.values())
        title = "mix-" + "-".join(_short_name(name) for name in names)
    elif len(names) == 1 and names[0] in MIXES:
        title = names[0]
        mix = MIXES[title]
        names, shares = tuple(mix.shares), tuple(mix.shares.values())
    names = names or ("python",)
    if len(set(names)) < len(names):
        raise InputError("a source is named twice")
    if settings.repeat and shares is None:
        raise InputError("repeat: has no effect without a mix")
    if settings.repeat and settings.max_tokens is None:
        raise InputError("repeat: such a mix would never end", "give --max-tokens, too")
    tokenizer = settings.tokenizer or _default_tokenizer(names, title)
    title = title or "+".join(_short_name(name) for name in names)
    kind, _, argument = tokenizer.partition(":")
    suffix = f"like-{Path(argument).name[:80]}" if kind == "like" else kind + argument
    return Plan(names, shares, tokenizer, f"{title[:80]}-{suffix}")


def _default_tokenizer(names: Collection[str], title: str) -> str:
    if title in MIXES:
        return MIXES[title].tokenizer
    choices = {_kind(name)[1] for name in names}
    return choices.pop() if len(choices) == 1 else "bpe:4096"


def _kind(name: str) -> tuple[str, str]:
    """The kind of a source and the tokenizer that suits it, from its name alone."""
    if name in CORPORA:
        return "hub", CORPORA[name].tokenizer
    kind = name.partition(":")[0]
    if kind in SOURCES and kind not in ("hub", "local") and not Path(name).exists():
        return kind, SOURCES.load(kind).tokenizer
    return "local", "bpe:4096"


def _short_name(name: str) -> str:
    kind, _ = _kind(name)
    if kind == "local":
        from effcli.engine.data.local import title

        return title(name)
    return name.replace(":", "-")


def open_source(name: str, settings: PrepareSettings) -> Source:
    """Open one source; a source on the hub is looked up there."""
    kind, _ = _kind(name)
    make: Any = SOURCES.load(kind)
    opened: Source
    if kind == "hub":
        opened = make(name, settings.text_column)
    elif kind == "local":
        files = {"val": settings.val, "test": settings.test, TRUSTED: settings.holdout}
        held_out = {split: path for split, path in files.items() if path}
        opened = make(
            name, settings.text_column, settings.separator, held_out, settings.label_column
        )
    else:
        opened = make(name.partition(":")[2])
    return opened


def open_sources(chosen: Plan, settings: PrepareSettings, given: Collection[str]) -> list[Source]:
    """Open every source. A setting in `given` that none of them heeds is an error."""
    has_own = any((settings.val, settings.test, settings.holdout))
    if has_own and (len(chosen.names) > 1 or _kind(chosen.names[0])[0] != "local"):
        raise InputError("--val, --test and --holdout go with one local source")
    sources = [open_source(name, settings) for name in chosen.names]
    if settings.label_column is not None and len(chosen.names) > 1:
        raise InputError("--label-column goes with one source", "a folder or a glob may be one")
    for field in ("text_column", "label_column", "separator"):
        if field in given and not any(field in getattr(s, "used", ()) for s in sources):
            raise InputError(f"{field}: has no effect on {', '.join(chosen.names)}")
    is_hashed = any(not source.splits.issuperset(SPLITS) for source in sources)
    if "held_out_share" in given and not is_hashed:
        raise InputError("held_out_share: has no effect, the source brings its own splits")
    if "bpe_sample" in given and not chosen.tokenizer.startswith("bpe:"):
        raise InputError("bpe_sample: has no effect, no tokenizer is trained")
    if "seed" in given and not is_hashed and not chosen.is_mix:
        raise InputError("seed: has no effect, nothing is drawn here")
    return sources
