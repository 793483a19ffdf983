"""`selection.html`: what was chosen beside what there was."""

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from effcli.engine.runs import plots
from effcli.engine.runs.files import write_text
from effcli.engine.runs.page import render
from effcli.engine.selection.view import Picked

PAGE = "selection.html"
_BINS = 40
_SHARE = "share of the tokens"
Numbers = NDArray[Any]


def write_page(picked: Picked, folder: Path, document: dict[str, Any]) -> Path:
    """Draw a view."""
    drawn = [Markup(svg) for svg in (*_histograms(picked), *_groups(picked))]
    write_text(folder / PAGE, render("view.html", view=document, plots=drawn))
    return folder / PAGE


def _histograms(picked: Picked) -> list[str]:
    scores = picked.scores
    ratios = np.log10(np.maximum(scores["ratio"].astype(np.float64), 1e-6))
    kinds = {
        "log10 of the density ratio to trusted text": ratios,
        "rarity of contexts": scores["rarity"],
        "loss under counts, nats per token": scores["loss"],
    }
    if not scores.is_gated:
        del kinds["log10 of the density ratio to trusted text"]
    return [_histogram(name, values, picked) for name, values in kinds.items()]


def _histogram(name: str, values: Numbers, picked: Picked) -> str:
    low, high = np.quantile(values[picked.pool], [0.001, 0.999])
    edges = np.linspace(low, max(high, low + 1e-6), _BINS + 1)
    centers = (edges[1:] + edges[:-1]) / 2
    lines = {}
    for who, ids in (("pool", picked.pool), ("chosen", picked.ids)):
        lengths = picked.scores["length"][ids]
        counts = np.histogram(values[ids].clip(low, high), edges, weights=lengths)[0]
        lines[who] = list(zip(centers.tolist(), (counts / lengths.sum()).tolist(), strict=True))
    return plots.curves(name, _SHARE, lines, {})


def _groups(picked: Picked) -> list[str]:
    """Clusters, and labels where there are some, before and after."""
    before, after = (_tokens(picked, ids, picked.scores["cluster"]) for ids in _both(picked))
    lines = {
        who: list(enumerate((tokens / tokens.sum()).tolist()))
        for who, tokens in (("pool", before), ("chosen", after))
    }
    drawn = [plots.curves("cluster, large ones first", _SHARE, lines, {})]
    names, labels = picked.corpus.label_names, picked.corpus.train.labels()
    if names and labels is not None:
        of_passage = labels[picked.scores["document"]].astype(np.int64)
        for what, ids in zip(("pool", "chosen"), _both(picked), strict=True):
            tokens = _tokens(picked, ids, of_passage).tolist()
            amounts = dict(zip(names, tokens, strict=False))
            drawn.append(
                plots.bars(f"tokens by label: {what}", {k: v for k, v in amounts.items() if v})
            )
    return drawn


def _both(picked: Picked) -> tuple[Numbers, Numbers]:
    return picked.pool, picked.ids


def _tokens(picked: Picked, ids: Numbers, groups: Numbers) -> Numbers:
    counts: Numbers = np.bincount(groups[ids], picked.scores["length"][ids], int(groups.max()) + 1)
    return counts
