"""One preparation, from the first row to the manifest, continued wherever it was stopped."""

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from effcli import __version__
from effcli.catalog import TOKENIZERS
from effcli.engine.data import tokenizers
from effcli.engine.data.checks import require_text, require_usable
from effcli.engine.data.corpus import SCHEMA, manifest_hash
from effcli.engine.data.progress import Progress
from effcli.engine.data.source import SPLITS, TRUSTED, Item, Source, items
from effcli.engine.data.sources import Plan
from effcli.engine.data.stream import ELSEWHERE, MIX_PIECE, Flowing, Mixer, Router, tokenized
from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.data.write import SplitWriter
from effcli.engine.records import Notice, Reading, Stop, Watch
from effcli.engine.runs.files import read_json, write_bytes, write_json
from effcli.errors import InputError, Stopped
from effcli.settings.corpora import CORPUS_FILE
from effcli.settings.prepare import PrepareSettings

COMMIT_SECONDS = 5.0
WATCH_SECONDS = 0.2


class Job:
    """Reads all sources, split by split, into `<folder>.partial`."""

    def __init__(
        self,
        settings: PrepareSettings,
        chosen: Plan,
        request: dict[str, Any],
        sources: list[Source],
        watch: Watch,
        stop: Stop,
    ) -> None:
        self._settings, self._plan, self._sources = settings, chosen, sources
        self._watch, self._stop = watch, stop
        self._piece = MIX_PIECE if chosen.is_mix else None
        self._router = Router(settings.seed, settings.held_out_share)
        self._progress = Progress(request, [source.stamp() for source in sources])
        self._writers: dict[str, SplitWriter] = {}
        self._started = time.perf_counter()

    def run(self, folder: Path) -> Path:
        """Do everything that is not done yet, and return the finished folder."""
        self._work = folder.with_name(f"{folder.name}.partial")
        self._begin_or_continue()
        try:
            self._make()
        except InputError:  # no further try would end otherwise
            shutil.rmtree(self._work)
            raise
        finally:
            for writer in self._writers.values():
                writer.abandon()
        return self._work

    def _make(self) -> None:
        tokenizer = self._tokenizer()
        dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
        trusted = [TRUSTED] if any(TRUSTED in source.splits for source in self._sources) else []
        for split in (*trusted, *SPLITS):
            done = self._progress.writers.get(split)
            limit = self._settings.shard_tokens
            self._writers[split] = SplitWriter(self._work, split, dtype, limit, done)
        passes, most = self._passes(), self._settings.max_rejected
        while self._progress.step < len(passes):
            self._read(passes[self._progress.step], tokenizer)
            require_usable(self._progress.rejected, self._progress.rows, most)
            self._progress.begin(self._progress.step + 1, len(self._sources))
            self._commit()
        self._finish(tokenizer, dtype)

    def _begin_or_continue(self) -> None:
        saved, digests = self._work / "state.json", self._work / "held_out.u64"
        if saved.exists():
            progress, fresh = Progress(**read_json(saved)), self._progress
            if (progress.request, progress.stamps) == (fresh.request, fresh.stamps):
                self._progress = progress
                # Digests of documents behind the saved position do no harm: those are read again.
                self._router.held_out = set(map(int, np.fromfile(digests, dtype="<u8")))
                self._watch(Notice(f"continuing what was begun in {self._work}"))
                return
            self._watch(Notice("what was begun was for other text or settings: beginning again"))
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        self._progress.begin(0, len(self._sources))

    def _passes(self) -> list[frozenset[str]]:
        """Which splits are written together: held-out text is known before training text."""
        if len(self._sources) > 1:
            return [frozenset({split}) for split in SPLITS]
        known = self._sources[0].splits - {"train"}
        own = [split for split in (TRUSTED, *SPLITS) if split in known]
        return [*(frozenset({split}) for split in own), frozenset(SPLITS).difference(own)]

    def _tokenizer(self) -> Tokenizer:
        path = self._work / "tokenizer.json"
        if path.exists():
            return Tokenizer.load(path)
        kind, argument = tokenizers.parse(self._plan.tokenizer)
        make = TOKENIZERS.load(kind)
        if kind == "bpe":
            self._watch(Notice(f"training the tokenizer {self._plan.tokenizer}"))
            tokenizer: Tokenizer = make(self._sample(), int(argument))
        else:
            tokenizer = make(argument or kind)
        tokenizer.save(path)
        return tokenizer

    def _sample(self) -> Iterator[str]:
        """Training text for a tokenizer, from each source up to its share."""
        targets = frozenset({"train"})
        rejected: Counter[str] = Counter()
        rows = 0
        shares = self._plan.shares or [1 / len(self._sources)] * len(self._sources)
        for source, share in zip(self._sources, shares, strict=True):
            left = share * self._settings.bpe_sample
            for item in items(self._router.rows(source, targets), self._piece):
                self._check_stop()
                reason = self._router.route(source, targets, item).rejected
                rows += 1
                if not reason:
                    yield item.text
                    left -= len(item.data)
                    if left <= 0:
                        break
                elif reason != ELSEWHERE:
                    rejected[reason] += 1
        # Before the trainer complains of too little text: it does not know why.
        require_usable(rejected, rows, self._settings.max_rejected)

    def _read(self, targets: frozenset[str], tokenizer: Tokenizer) -> None:
        progress = self._progress
        committed = watched = time.perf_counter()
        flow = iter(()) if self._is_full(targets) else self._flow(targets, tokenizer)
        for number, item, ids in flow:
            progress.positions[number] += 1
            progress.drawn += 1
            if item.rejected:
                self._count(item, self._router.is_home(self._sources[number], targets))
            else:
                self._write(item, ids, tokenizer)
            now = time.perf_counter()
            if now - watched > WATCH_SECONDS:
                watched = now
                self._report(item.split or min(targets))
            if now - committed > COMMIT_SECONDS:
                committed = now
                self._commit()
            if self._is_full(targets):
                break
            self._check_stop()
        if self._plan.is_mix:
            shares = zip(self._plan.names, progress.tokens, strict=True)
            progress.mix[min(targets)] = dict(shares)
        self._report(min(targets))

    def _is_full(self, targets: frozenset[str]) -> bool:
        return "train" in targets and self._writers["train"].tokens == self._settings.max_tokens

    def _flow(self, targets: frozenset[str], tokenizer: Tokenizer) -> Iterator[Flowing]:
        def stream(number: int, skip: int) -> Iterator[Flowing]:
            source = self._sources[number]
            return tokenized(number, source, targets, self._router, tokenizer, self._piece, skip)

        def restart(number: int) -> Iterator[Flowing] | None:
            if not self._settings.repeat or targets != {"train"}:
                return None
            if self._progress.tokens[number] == 0:
                raise InputError(f"there is no training text in {self._plan.names[number]}")
            self._progress.positions[number] = 0
            return stream(number, 0)

        progress = self._progress
        streams = [stream(number, skip) for number, skip in enumerate(progress.positions)]
        if self._plan.shares is None:
            for one in streams:
                yield from one
        else:
            mixer = Mixer(self._plan.shares, self._settings.seed, progress.tokens, restart)
            yield from mixer.flow(streams, progress.drawn)

    def _count(self, item: Item, is_home: bool) -> None:
        progress = self._progress
        is_sorted = bool(item.split)  # else it was turned away before, and so in every pass
        if item.rejected == ELSEWHERE or not (is_sorted or is_home):
            return
        progress.rows += 1
        if item.rejected == "duplicate":
            progress.duplicates += 1
        else:
            progress.rejected[item.rejected] = progress.rejected.get(item.rejected, 0) + 1

    def _write(self, item: Item, ids: Any, tokenizer: Tokenizer) -> None:
        writer, limit = self._writers[item.split], self._settings.max_tokens
        self._progress.rows += 1
        ids = np.concatenate(([np.uint32(tokenizer.separator)], ids))
        size = len(item.data)
        if item.split not in ("train", TRUSTED):
            self._router.held_out.add(item.digest)
        elif item.split == "train" and limit is not None and len(ids) > limit - writer.tokens:
            ids = ids[: limit - writer.tokens]
            size = int(tokenizer.token_bytes[ids].sum())
        if len(ids):
            writer.add(ids, size, item.label)

    def _report(self, split: str) -> None:
        shares = [share for s in self._sources if (share := s.share_read()) is not None]
        share = sum(shares) / len(shares) if len(shares) == len(self._sources) else None
        tokens = sum(writer.tokens for writer in self._writers.values())
        size = sum(writer.bytes for writer in self._writers.values())
        self._watch(Reading(split, share, tokens, size, self._seconds()))

    def _seconds(self) -> float:
        return self._progress.seconds + time.perf_counter() - self._started

    def _commit(self) -> None:
        digests = np.fromiter(self._router.held_out, dtype="<u8")
        write_bytes(self._work / "held_out.u64", digests.tobytes())
        for split, writer in self._writers.items():
            writer.flush()
            self._progress.writers[split] = writer.state()
        write_json(
            self._work / "state.json", {**asdict(self._progress), "seconds": self._seconds()}
        )

    def _check_stop(self) -> None:
        if (signal_number := self._stop()) is not None:
            if not self._writers:
                raise Stopped(signal_number, "on request, before anything was written")
            self._commit()
            message = f"on request; what is done is kept in {self._work}"
            raise Stopped(signal_number, message, "give the same command again to go on")

    def _finish(self, tokenizer: Tokenizer, dtype: str) -> None:
        splits = {split: writer.close() for split, writer in self._writers.items()}
        tokens = {split: described["tokens"] for split, described in splits.items()}
        progress = self._progress
        require_text(tokens, progress.rows, progress.duplicates, self._settings)
        sources, seconds = [source.describe() for source in self._sources], self._seconds()
        manifest = {
            "schema": SCHEMA,
            "eff": __version__,
            "request": progress.request,
            "sources": sources,
            "stamps": progress.stamps,
            "tokenizer": tokenizers.describe(tokenizer),
            "dtype": dtype,
            "shard_tokens": self._settings.shard_tokens,
            "splits": splits,
            "split_rule": self._split_rule(),
            "duplicates_removed": progress.duplicates,
            "rejected": progress.rejected,
            "mix": progress.mix,
            "entropy_bits_per_byte": sources[0].get("entropy_bits_per_byte"),
            "seconds": seconds,
            "tokens_per_second": sum(tokens.values()) / seconds,
        }
        if len(sources) > 1:
            manifest["entropy_bits_per_byte"] = None
        for name in ("state.json", "held_out.u64"):
            (self._work / name).unlink(missing_ok=True)
        write_json(self._work / CORPUS_FILE, {**manifest, "sha256": manifest_hash(manifest)})

    def _split_rule(self) -> dict[str, str]:
        missing = {s.name: ", ".join(sorted(set(SPLITS) - s.splits)) for s in self._sources}
        return {n: f"{m} by hash of the text" if m else "its own" for n, m in missing.items()}
