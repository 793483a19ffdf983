"""`eff bench`: which suite, how far, and where its results go."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from effcli.settings.base import Flag, Settings
from effcli.settings.corpora import prepared
from effcli.settings.suite import Seeds, shipped


def separated(names: Any) -> Any:
    """Several, by commas or by repeating the flag."""
    given = [names] if isinstance(names, str) else names
    return [part for name in given for part in str(name).split(",") if part]


class BenchSettings(Settings):
    """What `eff bench` is told."""

    words: Annotated[
        tuple[str, ...],
        Field(min_length=1, max_length=2),
        Flag(positional=True, metavar="[show|export] SUITE", choices=shipped),
    ]
    """A suite, by name or file; after `show` or `export`, only what is known of it."""
    tier: Annotated[
        Literal["smoke", "cpu", "cpu-long", "gpu"],
        Flag(panel="Suite", choices=("smoke", "cpu", "cpu-long", "gpu")),
    ] = "cpu"
    """How large the runs are."""
    data: Annotated[str | None, Flag(panel="Suite", metavar="CORPUS", choices=prepared)] = None
    """Prepared corpus, by name or folder; by default the one prepared last."""
    seeds: Annotated[Seeds | None, Flag(panel="Suite", metavar="N")] = None
    """Seeds of every arm instead of the tier's number; fewer than 5 are a screen."""
    arms: Annotated[
        tuple[str, ...], BeforeValidator(separated), Flag(panel="Suite", metavar="NAMES")
    ] = ()
    """Only these arms, by commas; the references among them are compared with."""
    max_minutes: Annotated[float | None, Field(gt=0), Flag(panel="Suite", metavar="N")] = None
    """Begin no cell that would end later than this; what is done is reported."""
    out: Annotated[Path | None, Flag(panel="Output", metavar="FOLDER")] = None
    """Where bench.html, bench.md and bench.json go; by default beside the results in runs/bench."""
    csv: Annotated[Path | None, Flag(panel="Output", metavar="FILE")] = None
    """With `export`: the table of all cells, instead of printing it."""

    @property
    def action(self) -> str:
        """`run`, `show` or `export`."""
        return self.words[0] if len(self.words) == 2 else "run"

    @property
    def suite(self) -> str:
        """Its name or file."""
        return self.words[-1]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.action not in ("run", "show", "export"):
            raise ValueError(f"it is `eff bench [show|export] SUITE`, not {self.words[0]!r}")
        if self.csv is not None and self.action != "export":
            raise ValueError("csv has an effect with `export` only")
        if self.action != "run":
            for name in ("seeds", "max_minutes", "arms"):
                if getattr(self, name) not in (None, ()):
                    raise ValueError(f"{name} has no effect where nothing is run")
        return self
