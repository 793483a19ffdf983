"""A view: what was chosen of a corpus, once and without training, as a corpus of its own."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from effcli import __version__
from effcli.engine.data.corpus import Corpus, manifest_hash
from effcli.engine.data.write import SplitWriter
from effcli.engine.records import Stop
from effcli.engine.runs.files import read_json, sync_folder, write_bytes, write_json
from effcli.engine.selection.assemble import (
    copies_of,
    exponent_of,
    good_passages,
    quotas_of,
    selector_of,
)
from effcli.engine.selection.choose import choose
from effcli.engine.selection.chooser import Standards
from effcli.engine.selection.passages import Ids, Passages, flat
from effcli.engine.selection.pool import Candidates
from effcli.engine.selection.prep import request_of
from effcli.engine.selection.selectors import Known
from effcli.engine.selection.sidecar import Scores, key
from effcli.errors import InputError, Stopped
from effcli.settings.aql import SelectSettings
from effcli.settings.corpora import CORPUS_FILE

NUMBERS, TEXT = "documents.txt", "text.jsonl"


@dataclass(frozen=True)
class Picked:
    """What was chosen of a pool."""

    corpus: Corpus
    scores: Scores
    pool: Ids
    """The passages that might be chosen."""
    ids: Ids
    """Those that were, in the text's order."""
    is_good: NDArray[np.bool_] | None
    """Of every passage, whether it is labeled as worth reading."""

    @property
    def passages(self) -> Passages:
        """Where they are."""
        return self.scores.passages.part(self.ids)

    @property
    def precision(self) -> float | None:
        """Share of the chosen tokens that is labeled as worth reading."""
        if self.is_good is None:
            return None
        return float(np.average(self.is_good[self.ids], weights=self.passages.lengths))

    def facts(self) -> dict[str, Any]:
        """What it came to."""
        known = self.scores.facts
        return {
            "tokens": self.passages.tokens,
            "pool_tokens": known["tokens"],
            "passages": len(self.ids),
            "documents": len(np.unique(self.passages.documents)),
            "clusters_used": len(np.unique(self.scores["cluster"][self.ids])),
            "clusters": known["clusters"],
            "contamination": known["contamination"],
            "mode": known["holdout"]["mode"],
            "quarantined": known["quarantined"],
            "precision": self.precision,
        }


def pick(corpus: Corpus, scores: Scores, settings: SelectSettings) -> Picked:
    """Choose once, by what is known without a model; rarity stands for uncertainty."""
    selector, choice = selector_of(settings.selector, scores), settings.choice
    eligible = scores.eligible(copies_of(selector, settings.prep))
    pool = np.flatnonzero(eligible)
    candidates = Candidates(pool, {name: c[pool] for name, c in scores.columns.items()})
    lengths, clusters = candidates["length"], candidates["cluster"]
    wanted, there = int(settings.ratio * scores.facts["tokens"]), int(lengths.sum())
    if not 0 < wanted <= there:
        message = f"the pool has {there:,} tokens that may be read, {wanted:,} are wanted"
        raise InputError(message, "another --ratio, or more copies with --set prep.copies")
    exponent, size = exponent_of(choice, scores), scores.clusters
    uncertainty = Standards.of(dict(candidates.columns), "rarity", size).uncertainty(candidates)
    values = selector.score(Known(candidates, uncertainty, exponent, choice.tilt or 0.0))
    quotas = None
    if selector.has_quotas:
        bounds = quotas_of(scores, eligible, exponent, choice)
        quotas = bounds.left(np.zeros(size), wanted, float(lengths.mean()))
    noise = (settings.seed, 0) if selector.is_drawn else None
    ids = np.sort(choose(values, pool, lengths, clusters, quotas, wanted, noise).ids)
    return Picked(corpus, scores, pool, ids, good_passages(corpus, scores, choice))


def describe(corpus: Corpus, settings: SelectSettings) -> dict[str, Any]:
    """All that a view depends on."""
    own = settings.model_dump(mode="json", include={"ratio", "selector", "seed", "choice"})
    scores = key(request_of(corpus, settings.prep))
    return {"of": corpus.hash, "corpus": corpus.name, "scores": scores, **own}


def is_there(folder: Path, request: dict[str, Any]) -> bool:
    """Whether a folder holds this view; anything else in it is an error."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    path = folder / CORPUS_FILE
    known = read_json(path) if path.is_file() else None
    if isinstance(known, dict) and known.get("request") == {"view": request}:
        return True
    raise InputError(f"{folder} holds something else", "choose another --out, or remove it")


def write(picked: Picked, folder: Path, request: dict[str, Any], stop: Stop) -> None:
    """Write a view: whole or not at all."""
    corpus, started = picked.corpus, time.perf_counter()
    with _drafted(folder) as draft:
        entry = _write_train(picked, draft, stop)
        splits = {**corpus.manifest["splits"], "train": entry}
        kept = [name for split in splits if split != "train" for name in splits[split]["files"]]
        for name in ("tokenizer.json", *kept):
            write_bytes(draft / name, (corpus.folder / name).read_bytes())
        seconds = time.perf_counter() - started
        manifest = {
            **corpus.manifest,
            "eff": __version__,
            "request": {"view": request},
            "splits": splits,
            "duplicates_removed": 0,
            "rejected": {},
            "mix": {},
            "seconds": seconds,
            "tokens_per_second": entry["tokens"] / seconds,
        }
        write_json(draft / CORPUS_FILE, {**manifest, "sha256": manifest_hash(manifest)})


@contextmanager
def _drafted(folder: Path) -> Iterator[Path]:
    """A folder that takes its place when it is whole, and else is gone."""
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)  # of whoever was killed
    draft.mkdir(parents=True)
    try:
        yield draft
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def _write_train(picked: Picked, draft: Path, stop: Stop) -> dict[str, Any]:
    """The chosen text as a split, as numbers and as lines of JSON."""
    passages, manifest = picked.passages, picked.corpus.manifest
    columns = np.stack([passages.documents, passages.starts, passages.lengths], axis=1)
    np.savetxt(draft / NUMBERS, columns, fmt="%d")
    shape = (manifest["dtype"], manifest["shard_tokens"])
    writer = SplitWriter(draft, "train", *shape, None)
    try:
        with (draft / TEXT).open("w", encoding="utf8", newline="\n") as lines:
            _write_documents(picked, writer, lines, stop)
        return writer.close()
    finally:
        writer.abandon()


def _write_documents(picked: Picked, writer: SplitWriter, lines: IO[str], stop: Stop) -> None:
    corpus, pieces = picked.corpus, joined(picked.passages)
    tokenizer, names, labels = corpus.tokenizer, corpus.label_names, corpus.train.labels()
    for part in pieces.stretches():
        if (number := stop()) is not None:
            raise Stopped(number, "the view was not finished", "start it again")
        some = pieces.part(part)
        ends = np.cumsum(some.lengths)[:-1]
        documents = np.split(flat(corpus.train, some), ends)
        for place, ids in zip(some.documents, documents, strict=True):
            label = 0 if labels is None else int(labels[place])
            data = tokenizer.decode_bytes(ids)
            row = {"text": data.decode("utf8", "ignore")}  # a cut may go through a character
            if names and labels is not None:
                row["label"] = names[label]
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            if ids[0] != tokenizer.separator:
                ids = np.append(tokenizer.separator, ids)
            writer.add(ids, len(data), label)


def joined(passages: Passages) -> Passages:
    """Neighbors of one document as one."""
    if not len(passages):
        return passages
    places, starts, ends = passages.documents, passages.starts, passages.starts + passages.lengths
    is_new = (places[1:] != places[:-1]) | (starts[1:] != ends[:-1])
    firsts = np.flatnonzero(np.append(True, is_new))
    return Passages(places[firsts], starts[firsts], np.add.reduceat(passages.lengths, firsts))
