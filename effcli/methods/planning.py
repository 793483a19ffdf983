"""What `--dry-run` shows: settings with their origins, and what they would cost."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch

from effcli.engine.assemble import assemble
from effcli.engine.data.opening import text_of
from effcli.engine.data.sources import plan
from effcli.engine.device import Device
from effcli.engine.measure.evaluate import HeldOut
from effcli.engine.measure.peak import peak_flops
from effcli.engine.plan import ASSUMED_MFU, forecast
from effcli.engine.runs.tracking import require
from effcli.engine.runs.trained import build_model, require_memory
from effcli.engine.trials import HORIZON
from effcli.settings.corpora import root
from effcli.settings.layers import Resolved


def plan_training(resolved: Resolved[Any]) -> dict[str, Any]:
    """Build everything on the meta device, where nothing takes room or time."""
    settings = resolved.settings
    require(settings.track)
    corpus = text_of(settings)
    device, asked = Device(settings.device), settings.for_text(corpus.train.tokens)
    # What would stop the run at its beginning stops its plan.
    require_memory(settings.model, corpus.tokenizer.vocab_size, device)
    token_bytes = corpus.tokenizer.token_bytes
    HeldOut.of(corpus.val, token_bytes, settings.model.context, settings.evaluation.tokens)
    with torch.device("meta"):
        model = build_model(settings.model, corpus.tokenizer.vocab_size, settings.seed)
        parts = assemble(asked, model, corpus.train, device)
    peak = peak_flops(device, keep=False)
    ahead = forecast(asked, parts, corpus.train.tokens, peak)
    return {
        "schema": 1,
        "command": "dry-run",
        "settings": dict(_rows(settings.model_dump(mode="json"), resolved.origins)),
        "corpus": f"{corpus} ({corpus.train.tokens:,} training tokens)",
        "device": device.describe(),
        "optimizer": parts.optimizer.describe(),
        "routing": parts.optimizer.routing(),
        "forecast": asdict(ahead),
        "tuning_flops": getattr(settings, "tune", 0) * HORIZON * ahead.flops,
        "assumed_mfu": ASSUMED_MFU,
        "peak_flops_per_second": peak,
    }


def plan_preparation(resolved: Resolved[Any]) -> dict[str, Any]:
    """What would be read, and where it would go."""
    chosen = plan(resolved.settings)
    folder = resolved.settings.out or root() / chosen.corpus
    found = {"sources": list(chosen.names), "tokenizer": chosen.tokenizer, "out": str(folder)}
    settings = {**resolved.settings.model_dump(mode="json"), **found}
    rows = dict(_rows(settings, resolved.origins))
    return {"schema": 1, "command": "dry-run", "settings": rows}


def _rows(
    tree: Mapping[str, Any], origins: Mapping[str, str], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in tree.items():
        name = prefix + key
        if isinstance(value, dict):
            yield from _rows(value, origins, f"{name}.")
        else:
            yield name, {"value": value, "from": origins.get(name, "default")}
