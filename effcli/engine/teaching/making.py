"""Ask teachers about the windows of a corpus, and keep what they say.

A draw is a function of seed, window and position alone: in whatever order windows are asked
for, the same is said about each. At each position there is one random number u, and the ids
at (j + u) / n of the cumulative probabilities, j = 0..n-1, are drawn (systematic sampling,
Madow 1949). So an id of probability p is drawn n p times in the mean, as if draws were
independent, but never more or less often than n p rounded up or down: there is less noise.
"""

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from effcli.engine.data.corpus import manifest_hash
from effcli.engine.data.order import training_order
from effcli.engine.device import Device
from effcli.engine.records import Notice, Reading, Stop, Watch
from effcli.engine.runs.files import write_json
from effcli.engine.runs.lock import turn
from effcli.engine.selection.keys import uniform
from effcli.engine.teaching.cache import (
    MANIFEST,
    PRECISIONS,
    SCHEMA,
    Cost,
    Digest,
    Ids,
    Request,
    TeacherCache,
)
from effcli.engine.teaching.teachers import Teachers
from effcli.errors import InputError, ResourceError, Stopped
from effcli.units import size

COMMIT_EVERY = 10.0  # seconds of work that a kill can cost
SPARE = 2**20  # bytes beyond what is written about windows
LEAST_LOG = -60.0  # of all others together, where they have nothing
CHECKED_WINDOWS, CHECKED_POSITIONS = 8, 8
LEAST_AGREEMENT = 0.8  # of draws that are made again; rounding moves one in a hundred
MOST_APART = {"float32": 0.02, "bfloat16": 0.25}  # nats; what was rounded to 8 bits is farther
_OTHERWISE = "make room, keep less with --cache sampled:12, or nothing with --cache online"
_ELSEWHERE = "change its permissions, copy the corpus, or keep nothing with --cache online"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_SALT = 3
_BELOW_ONE = 1 - 2.0**-24


def reached(request: Request, sequences: int, steps: int | None, seed: int) -> Ids:
    """The windows that a run of so many steps reads in the plain order; all, if none are named."""
    draws = request.windows if steps is None else min(steps * sequences, request.windows)
    return np.sort(training_order(0, draws, request.windows, seed))


def prepared(
    request: Request, teachers: Teachers, windows: Ids, device: Device, watch: Watch, stop: Stop
) -> TeacherCache:
    """A cache that has at least these windows, made as far as it is not there yet.

    While another run makes it, this one waits. Raises InputError for one that is damaged or
    that these teachers would not have said, ResourceError if there is no room for it, Stopped
    on a signal: what was done is kept.
    """
    cache = _opened(request)
    if cache is None or len(cache.missing(windows)):
        lock = request.folder / ".lock", f"the teacher's cache in {request.folder}"
        with _room(request), turn(*lock, lambda text: watch(Notice(text)), stop):
            cache = _opened(request)
            if cache is None or len(cache.missing(windows)):
                cache = _made(cache, request, teachers, windows, device, watch, stop)
    require_same(cache, teachers, device)
    return cache


@contextmanager
def _room(request: Request) -> Iterator[None]:
    """A folder for a cache; where it cannot be written, what else can be done is said."""
    try:
        request.folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno not in (*_FULL, *_FORBIDDEN):
            raise
        message = f"the teacher's cache in {request.folder} cannot be written"
        hint = _OTHERWISE if error.errno in _FULL else _ELSEWHERE
        raise ResourceError(f"{message}: {os.strerror(error.errno).lower()}", hint) from None


def _opened(request: Request) -> TeacherCache | None:
    return TeacherCache.open(request) if (request.folder / MANIFEST).exists() else None


def _made(
    before: TeacherCache | None,
    request: Request,
    teachers: Teachers,
    windows: Ids,
    device: Device,
    watch: Watch,
    stop: Stop,
) -> TeacherCache:
    """Ask about those windows that are missing, in ascending order."""
    wanted = np.unique(windows) if before is None else before.missing(windows)
    _require_space(request, len(wanted))
    with ExitStack() as stack:
        writer = _Writer(request, before, _precision(device), stack)
        begun = time.perf_counter()
        for start in range(0, len(wanted), request.at_once):
            if (number := stop()) is not None:
                writer.commit()
                done = f"{writer.count} windows of the teacher's cache are there"
                hint = "the same command goes on from there"
                raise Stopped(number, f"{done}, {len(wanted) - start} are not", hint)
            some = wanted[start : start + request.at_once]
            rows, flops = speak(request, teachers, some, device), teachers.forward_flops
            writer.append(some, rows, flops(len(some), request.context))
            asked, seconds = start + len(some), time.perf_counter() - begun
            amounts = asked * request.context, asked * request.window_bytes
            watch(Reading("teacher", asked / len(wanted), *amounts, seconds))
        writer.commit()
    return TeacherCache(request, writer.manifest, writer.digests)


def _require_space(request: Request, windows: int) -> None:
    """Refuse what would not fit, before anything is asked."""
    needed = windows * request.window_bytes + SPARE
    free = shutil.disk_usage(request.folder).free
    if free < needed:
        sizes = f"{size(needed)}, and {size(free)} are free"
        message = f"what the teacher says takes {sizes} in {request.folder}"
        raise ResourceError(message, _OTHERWISE)


class _Writer:
    """Appends windows to a cache. Whatever came after the last manifest is cut off."""

    def __init__(
        self, request: Request, before: TeacherCache | None, precision: str, stack: ExitStack
    ) -> None:
        self._request = request
        self.count = 0 if before is None else before.count
        self._cost = Cost() if before is None else before.made
        known = [precision] if before is None or not before.count else [precision, before.precision]
        self._precision = min(known, key=PRECISIONS.index)
        self.manifest: dict[str, Any] = {}
        self.digests: dict[str, Digest] = {}
        self._streams: dict[str, IO[bytes]] = {}
        for name, array in request.arrays.items():
            path, end = request.folder / name, self.count * array.bytes
            path.touch()
            stream = self._streams[name] = stack.enter_context(path.open("r+b"))
            stream.truncate(end)
            stream.seek(end)
            self.digests[name] = hashlib.sha256() if before is None else before.digests[name]
        self._since = self._committed = time.perf_counter()

    def append(self, windows: Ids, rows: Mapping[str, NDArray[Any]], flops: float) -> None:
        """Write what was said about some windows, and from time to time see that it is safe."""
        for name, array in self._request.arrays.items():
            row = windows if name == "windows.bin" else rows[name]
            data = np.ascontiguousarray(row, dtype=array.dtype).tobytes()
            self._streams[name].write(data)
            self.digests[name].update(data)
        self.count += len(windows)
        self._cost = Cost(self._cost.flops + flops, self._cost.seconds)
        if time.perf_counter() - self._since > COMMIT_EVERY:
            self.commit()

    def commit(self) -> None:
        """Everything is safe on disk before the manifest says that it is there."""
        for stream in self._streams.values():
            stream.flush()
            os.fsync(stream.fileno())
        now = time.perf_counter()
        self._cost = Cost(self._cost.flops, self._cost.seconds + now - self._since)
        self._since = now
        content = self.manifest = {
            "schema": SCHEMA,
            "request": self._request.facts(),
            "count": self.count,
            "files": {name: digest.hexdigest() for name, digest in self.digests.items()},
            "flops": self._cost.flops,
            "seconds": self._cost.seconds,
            "precision": self._precision,
        }
        path = self._request.folder / MANIFEST
        write_json(path, {**content, "sha256": manifest_hash(content)})


@torch.no_grad()
def speak(
    request: Request, teachers: Teachers, windows: Ids, device: Device
) -> dict[str, NDArray[Any]]:
    """What is written about some windows, but for their numbers; by the name of the file."""
    # One shape for all batches: what is rounded in one way is so wherever a window is asked for.
    filled = np.resize(windows, request.at_once)
    tokens = torch.from_numpy(_tokens(request, filled)).to(device.torch)
    features = teachers.features(tokens)
    chances = _chances(request, filled).ravel()
    kept = [_kept(request, log_p, chances[part]) for part, log_p in teachers.by_rows(features)]
    rows: dict[str, Tensor] = {"pooled.bin": torch.cat([x.float().mean(1) for x in features], -1)}
    rows["ids.bin"] = torch.cat([ids for ids, _ in kept]).view(*tokens.shape, -1)
    if request.form.mode == "topk":
        rows["logs.bin"] = torch.cat([logs for _, logs in kept]).view(*tokens.shape, -1)
    return {name: row[: len(windows)].cpu().numpy() for name, row in rows.items()}


def _tokens(request: Request, windows: Ids) -> Ids:
    return request.corpus.train.read(windows * request.context, request.context)


def _chances(request: Request, windows: Ids) -> NDArray[np.float64]:
    """One random number for each position of some windows."""
    positions = windows[:, None] * request.context + np.arange(request.context)
    return uniform(positions, request.seed, 0, _SALT)


def _kept(
    request: Request, log_p: Float[Tensor, "rows vocab"], chances: NDArray[np.float64]
) -> tuple[Tensor, Tensor]:
    if request.form.mode == "topk":
        return likeliest(log_p, request.form.count)
    return drawn(log_p, chances, request.form.count), log_p


def drawn(
    log_p: Float[Tensor, "rows vocab"], chances: NDArray[np.float64], count: int
) -> Int[Tensor, "rows count"]:
    """So many ids of each row in ascending order, drawn by one number in (0, 1) for each row."""
    points = np.minimum((np.arange(count) + chances[:, None]) / count, _BELOW_ONE)
    edges = log_p.exp().cumsum(-1)
    at = torch.from_numpy(points).to(torch.float32).to(edges.device) * edges[:, -1:]
    return torch.searchsorted(edges, at, right=True).clamp_(max=log_p.shape[1] - 1)


def likeliest(
    log_p: Float[Tensor, "rows vocab"], count: int
) -> tuple[Int[Tensor, "rows count"], Float[Tensor, "rows outcomes"]]:
    """The most probable ids, and the log-probabilities of each and of all others together."""
    logs, ids = log_p.topk(count)
    others = log_p.exp().scatter_(1, ids, 0.0).sum(-1, keepdim=True).log()
    return ids, torch.cat((logs, others), 1).clamp_(min=LEAST_LOG)


@torch.no_grad()
def require_same(cache: TeacherCache, teachers: Teachers, device: Device) -> None:
    """Compare some positions of a cache with what the teachers say now; refuse another teacher's.

    Where the most probable ids are kept, their log-probabilities have to be those of now; where
    draws are, the same are made again.
    """
    request = cache.request
    places = np.unique(np.linspace(0, cache.count - 1, CHECKED_WINDOWS).astype(np.int64))
    at = np.unique(np.linspace(0, request.context - 1, CHECKED_POSITIONS).astype(np.int64))
    windows = cache.windows[places[places >= 0]]
    if not len(windows):
        return
    features = teachers.features(torch.from_numpy(_tokens(request, windows)).to(device.torch))
    log_p = teachers.log_probabilities([x[:, at].flatten(0, 1) for x in features]).cpu()
    said = cache.said(windows)
    ids = said.ids[:, at].flatten(0, 1).long()
    if said.logs is None:
        again = drawn(log_p, _chances(request, windows)[:, at].ravel(), request.form.count)
        same = (again == ids).double().mean().item()
        is_same, found = same >= LEAST_AGREEMENT, f"{same:.0%} of its draws are the same"
    else:
        precision = min(cache.precision, _precision(device), key=PRECISIONS.index)
        live = log_p.gather(1, ids).clamp_(min=LEAST_LOG)
        apart = (live - said.logs[:, at].flatten(0, 1)[:, :-1]).abs().max().item()
        is_same, found = apart < MOST_APART[precision], f"up to {apart:.3g} nats away"
    if not is_same:
        message = f"the teacher's cache in {request.folder} is not what the teacher says: {found}"
        raise InputError(message, "remove that folder, and it will be made again")


def _precision(device: Device) -> str:
    return str(device.dtype).removeprefix("torch.")
