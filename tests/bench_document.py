"""Documents of benches that never ran, for whatever shows them."""

import math
from random import Random
from typing import Any

HOSTILE = "\x1b]52;c;AAAA\x07<script>alert(1)</script>\u202e|`x` [a](javascript:b) $\\frac$"
COSTS = ("tokens", "unique_tokens", "flops", "seconds", "joules")
DEEP = {"textbook": (13.6, 0.30), "tuned": (13.4, 0.31), "modern": (13.0, 0.32)}
"""a and b of loss = a - b ln FLOPs."""


def bench_document(
    arms: tuple[str, ...] = ("textbook", "tuned", "modern"),
    seeds: int = 5,
    *,
    references: tuple[str, ...] | None = None,
    is_tuned: bool = True,
    is_partial: bool = False,
    has_failures: bool = False,
    bound: str | None = None,
) -> dict[str, Any]:
    """A document as `eff bench --json` prints it; `bound` puts the last arm out of range."""
    random = Random(7)
    names = list(arms)
    references = tuple(names) if references is None else references
    shares = [0.5, 0.7, 1.0]
    cells = [
        _cell(random, name, seed, share, number)
        for number, name in enumerate(names)
        for seed in range(seeds)
        for share in shares
    ]
    if has_failures:
        for cell, status in zip(cells[1::7], ("diverged", "failed") * 50, strict=False):
            _fail(cell, status)
    if is_partial:
        for cell in [c for c in cells if c["arm"] == names[-1]][2:]:
            cells.remove(cell)
    pairs = [(arm, ref) for arm in names for ref in references if arm != ref]
    last = names[-1]
    return {
        "schema": 1,
        "command": "bench",
        "suite": "baselines",
        "tier": "cpu",
        "title": "Baselines: what the recipes are worth",
        "about": "Three ways to train the same transformer, each tuned on a seed of its own.",
        "status": "partial" if is_partial else "complete",
        "manifest": _manifest(),
        "protocol": {
            "budget": {"tokens": 1500000},
            "shares": shares,
            "seeds": list(range(seeds)),
            "tuning_seed": 4294967296,
            "trials": 8 if is_tuned else 0,
            "margin": 0.02,
            "references": list(references),
        },
        "arms": [_arm(name, name in references, is_tuned) for name in names],
        "cells": cells,
        "multipliers": [
            _multiplier(random, names, *pair, cost, seeds, bound if pair[0] == last else None)
            for pair in pairs
            for cost in COSTS
        ],
        "differences": [
            _difference(names, *pair, at, seeds)
            for pair in pairs
            for at in ("tokens", "flops", "seconds")
        ],
        "laws": [
            {"arm": name, "seed": seed, "cost": "flops", "a": 13.1 - 0.2 * number, "b": 0.31}
            for number, name in enumerate(names)
            for seed in range(seeds)
        ],
        "notes": ["Losses are of the held-out split; windows of 256 tokens."],
    }


def hostile(document: dict[str, Any]) -> dict[str, Any]:
    """The same document where every text that somebody else chose is an attack."""
    first = document["arms"][0]["name"]

    def poisoned(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {k: poisoned(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poisoned(v, name) for v in value]
        foreign = ("title", "about", "error", "notes", "line", "processor", "commit", "tokenizer")
        is_foreign = isinstance(value, str) and (value == first or name in foreign)
        return HOSTILE if is_foreign else value

    changed: dict[str, Any] = poisoned(document)
    changed["arms"][0]["settings"] = {HOSTILE: HOSTILE}
    if changed["arms"][0]["tuning"]:
        changed["arms"][0]["tuning"]["chosen"] = {HOSTILE: 0.1}
    return changed


def _manifest() -> dict[str, Any]:
    return {
        "line": "eff bench baselines --tier cpu --data python-bpe4096",
        "eff": "0.1.0",
        "code": "0123456789ab",
        "commit": None,
        "python": "3.11.9",
        "torch": "2.13.0",
        "system": "Linux x86_64",
        "processor": "a processor",
        "cores": 2,
        "precision": "bfloat16",
        "corpus": {
            "name": "python-bpe4096",
            "hash": "ab" * 32,
            "tokenizer": "bpe:4096",
            "train_tokens": 3060000,
        },
        "measured_at": "2026-11-21T10:00:00+00:00",
    }


def _arm(name: str, is_reference: bool, is_tuned: bool) -> dict[str, Any]:
    chosen = {"optim.lr": 0.02, "optim.weight_decay": 0.1}
    tuning = {"trials": 8, "tokens": 3000000, "flops": 1.8e13, "seconds": 82.0, "chosen": chosen}
    return {
        "name": name,
        "about": f"The recipe {name}.",
        "is_reference": is_reference,
        "command": "baseline",
        "settings": {"recipe": name},
        "parameters": 1441792,
        "artifact_bytes": 5767168,
        "tuning": {**tuning, "losses": [4.1, 4.0, None]} if is_tuned else None,
    }


def _cell(random: Random, arm: str, seed: int, share: float, number: int) -> dict[str, Any]:
    a, b = DEEP.get(arm, (13.2 - 0.1 * number, 0.31))
    tokens, flops = int(1500000 * share), 9e12 * share * (1 + 0.03 * number)
    seconds = 41 * share * (1 + 0.1 * number) * random.uniform(0.98, 1.02)
    final = a - b * math.log(flops) + random.gauss(0, 0.01)
    curve = []
    if share == 1.0:
        for look in range(11):
            part = look / 10
            loss = 8.3 if not look else final + 1.6 * (1 - part) ** 2 - 0.35 * math.log(part)
            curve.append([tokens * part, flops * part, seconds * part, 19.6 * seconds * part, loss])
    accounts = {"train": flops, "select": flops * 0.04 * number, "eval": flops * 0.07}
    return {
        "id": f"{random.getrandbits(64):016x}",
        "arm": arm,
        "seed": seed,
        "share": share,
        "status": "complete",
        "error": None,
        "steps": int(367 * share),
        "tokens": tokens,
        "unique_tokens": tokens,
        "flops": flops,
        "seconds": seconds,
        "joules": 19.6 * seconds,
        "energy_source": "estimated:tdp",
        "loss": final,
        "bits_per_byte": final * 0.3937,
        "tail": [final * (1.9 - 0.19 * tenth) for tenth in range(10)],
        "accounts": {
            "flops": accounts,
            "seconds": {"train": seconds, "eval": seconds * 0.15, "total": seconds * 1.2},
        },
        "artifact_bytes": 5767168,
        "peak_memory_bytes": 610000000,
        "curve": curve,
    }


def _fail(cell: dict[str, Any], status: str) -> None:
    kept = ("id", "arm", "seed", "share")
    for name in cell:
        if name not in kept:
            cell[name] = None
    cell |= {"status": status, "error": f"{status}: loss nan after step 12", "curve": []}


def _multiplier(
    random: Random, names: list[str], arm: str, reference: str, cost: str, n: int, bound: str | None
) -> dict[str, Any]:
    ahead = names.index(arm) - names.index(reference)
    mean = math.exp(0.55 * ahead + random.gauss(0, 0.05))
    half = 0.06 if n > 2 else 0.5
    verdict = "beyond" if bound else "better" if ahead > 0 else "worse"
    values = [{"seed": s, "value": mean, "bound": bound} for s in range(n)]
    return {
        "arm": arm,
        "reference": reference,
        "cost": cost,
        "share": 1.0,
        "values": values,
        "mean": mean,
        "low": None if bound else mean * math.exp(-half),
        "high": None if bound else mean * math.exp(half),
        "bound": bound,
        "n": n,
        "is_screen": n < 5,
        "verdict": verdict,
        "p": None if bound else 0.0012,
        "p_adjusted": None if bound else 0.0048,
        "p_flip": None if bound else 0.031,
    }


def _difference(names: list[str], arm: str, reference: str, at: str, n: int) -> dict[str, Any]:
    ahead = names.index(arm) - names.index(reference)
    return {
        "arm": arm,
        "reference": reference,
        "at": at,
        "share": 1.0,
        "mean": -0.2 * ahead,
        "low": -0.2 * ahead - 0.02,
        "high": -0.2 * ahead + 0.02,
        "n": n,
        "is_screen": n < 5,
        "verdict": "better" if ahead > 0 else "worse",
        "p": 0.001,
        "p_adjusted": 0.004,
        "p_flip": 0.031,
    }
