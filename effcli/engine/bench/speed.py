"""A suite of throughputs: its parts, what is known of them, and the document that they make.

A ratio is worth something within one run in turns only, so what is done and kept as a whole is
a shape with all of its arms, or the preparation of text.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from effcli.engine.bench import preparing, throughput
from effcli.engine.bench.document import machine
from effcli.engine.bench.matrix import source_hash
from effcli.engine.bench.store import Store
from effcli.engine.bench.throughput import Race
from effcli.engine.device import Device
from effcli.engine.measure.peak import peak_flops
from effcli.engine.plan import ASSUMED_MFU
from effcli.engine.records import Stop, Watch
from effcli.errors import InputError
from effcli.settings.baseline import BaselineSettings
from effcli.settings.bench import BenchSettings
from effcli.settings.layers import stack, storable
from effcli.settings.speed import PREPARE, Shape, SpeedSuite, Text
from effcli.settings.train import DeviceSettings

STARTING, COMPILING = 4.0, 25.0  # seconds that a process takes before its first step, about
ENCODED = 1e7  # bytes per second, all ways together, about
ENDLESS = 10**9  # steps: no turn comes to the end of a budget
_SOURCE = ("preparing.py", "reference_gpt.py", "throughput.py", "workers.py")


@dataclass(frozen=True)
class Part:
    """What is measured in one run: a shape, or the preparation of text."""

    id: str
    title: str
    work: Race | Text
    seconds: float
    """That it will take, about."""

    def measure(self, folder: Path, watch: Watch, stop: Stop) -> dict[str, Any]:
        """Its figures; the folder is empty and will be removed."""
        if isinstance(self.work, Text):
            return preparing.measure(self.work, folder, watch, stop)
        return throughput.measure(self.work, folder, watch, stop)


class Speed:
    """A suite at one tier, checked as a whole."""

    def __init__(self, suite: SpeedSuite, settings: BenchSettings) -> None:
        for name in ("seeds", "data", "csv"):
            if getattr(settings, name) is not None:
                raise InputError(f"{name} has no effect on {settings.suite}: it measures speed")
        if settings.tier not in suite.tiers:
            message = f"this suite has no tier {settings.tier!r}: {', '.join(suite.tiers)}"
            raise InputError(message)
        self.suite, self.tier, self._asked = suite, suite.tiers[settings.tier], settings
        known = [*suite.arms, *([PREPARE] if self.tier.prepare else [])]
        for name in settings.arms:
            if name not in known:
                raise InputError(f"there is no arm {name!r}: {', '.join(known)}")
        self.chosen = settings.arms or tuple(known)
        races = [self._race(name, suite.shapes[name]) for name in self.tier.shapes]
        self.parts = [self._part(race.name, race) for race in races if race.arms]
        if self.tier.prepare is not None and PREPARE in self.chosen:
            self.parts.append(self._part(PREPARE, self.tier.prepare))
        if not self.parts:
            raise InputError("no shape of this tier has these arms", "choose others")

    def _race(self, name: str, shape: Shape) -> Race:
        arms = [arm for arm in shape.arms or self.suite.arms if arm in self.chosen]
        return Race(
            name,
            shape.vocabulary,
            self._settings(name, shape, {"recipe": "textbook"}, "the plain script"),
            {
                arm: self._settings(name, shape, self.suite.arms[arm].settings, f"arm {arm}")
                for arm in arms
            },
            self.tier.rounds,
            self.tier.seconds,
        )

    def _settings(
        self, name: str, shape: Shape, own: Mapping[str, Any], title: str
    ) -> BaselineSettings:
        base = {"preset": shape.preset or name, "batch.sequences": shape.sequences}
        layers = [
            ("bench", {**base, "steps": ENDLESS}),
            ("suite", self.suite.settings),
            (f"tier {self._asked.tier}", self.tier.settings),
            (f"shape {name}", shape.settings),
            (title, own),
        ]
        try:
            return stack(BaselineSettings, layers).settings
        except InputError as error:
            raise InputError(f"{title}, shape {name}: {error.message}", error.hint) from None

    def _part(self, title: str, work: Race | Text) -> Part:
        if isinstance(work, Text):
            seconds = (1 + work.rounds) * work.bytes / ENCODED
            facts: Any = work.model_dump(mode="json")
            place = DeviceSettings(name="cpu")
        else:
            seconds, place = _seconds(work), work.reference.device
            runs = {name: storable(arm) for name, arm in work.arms.items()}
            facts = [work.vocabulary, storable(work.reference), runs, work.rounds, work.seconds]
        where = [Device(place).describe(), torch.__version__, source_hash(), _own_hash()]
        name = json.dumps([title, facts, where], sort_keys=True)
        return Part(hashlib.sha256(name.encode()).hexdigest()[:16], title, work, seconds)

    def plan(self) -> dict[str, Any]:
        """Everything of the document that is no result, and the names of the parts."""
        asked = self._asked
        given = {"--tier": asked.tier, "--arms": ",".join(asked.arms) or None}
        arms = self.suite.arms.items()
        return {
            "kind": self.suite.kind,
            "suite": Path(asked.suite).stem,
            "tier": asked.tier,
            "title": self.suite.title,
            "about": self.suite.about,
            "manifest": machine(asked.suite, given),
            "protocol": {"rounds": self.tier.rounds, "turn_seconds": self.tier.seconds},
            "arms": [
                {"name": name, "about": arm.about, "settings": arm.settings}
                for name, arm in arms
                if name in self.chosen
            ],
            "parts": [
                {"id": part.id, "title": part.title, "is_shape": isinstance(part.work, Race)}
                for part in self.parts
            ],
        }


def document_of(plan: Mapping[str, Any], store: Store) -> dict[str, Any]:
    """What is known of the parts of a plan."""
    known = {part["title"]: store.known(part["id"]) for part in plan["parts"]}
    done = {title: result for title, result in known.items() if _is_done(result)}
    failed = [
        {"part": title, "error": result["error"]}
        for title, result in known.items()
        if result is not None and title not in done
    ]
    shapes = [part["title"] for part in plan["parts"] if part["is_shape"]]
    missing = [title for title, result in known.items() if result is None]
    notes = [f"{', '.join(missing)}: not measured yet."] if missing else []
    names = ("kind", "suite", "tier", "title", "about", "manifest", "protocol", "arms")
    return {
        "schema": 1,
        "command": "bench",
        "status": "partial" if missing else "complete",
        **{name: plan[name] for name in names},
        "shapes": {title: _figures(done[title]) for title in shapes if title in done},
        "prepare": _figures(done[PREPARE]) if PREPARE in done else None,
        "failed": failed,
        "notes": notes,
    }


def _is_done(result: Mapping[str, Any] | None) -> bool:
    return result is not None and result["status"] == "complete"


def _figures(result: Mapping[str, Any] | None) -> dict[str, Any]:
    return {k: v for k, v in (result or {}).items() if k not in ("status", "error")}


def _seconds(race: Race) -> float:
    """How long a shape will take, by a guess at its rate."""
    total = 0.0
    for settings in (race.reference, *race.arms.values()):
        rate = _peak(settings.device) * ASSUMED_MFU
        step = throughput.step_flops(settings, race.vocabulary) / rate
        total += STARTING + 2 * step + race.rounds * max(step, race.seconds)
        if settings is not race.reference and throughput.is_compiled(settings.device):
            total += COMPILING
    return total + STARTING + race.rounds * race.seconds


@cache
def _peak(settings: DeviceSettings) -> float:
    return peak_flops(Device(settings), keep=False)


@cache
def _own_hash() -> str:
    """Names what measures: an edit of it makes other parts."""
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in _SOURCE)).hexdigest()
