"""Numbers for people."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any


def count(value: float) -> str:
    """1234567 as 1.23M."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}"


def flops(value: float) -> str:
    """FLOPs with a power of ten: 1.23e+15 as 1.23e15."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if value else "0"


def size(value: float) -> str:
    """Bytes as kB, MB or GB."""
    for scale, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= scale:
            return f"{value / scale:.3g} {name}"
    return f"{value:.0f} bytes"


def clock(seconds: float) -> str:
    """Seconds as 0:07, 1:02:03 or 3 days."""
    if seconds > 3 * 86400:
        return f"{seconds / 86400:.0f} days"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


# Two-sided 95 % quantiles of Student's t for 1, 2, … 30 degrees of freedom.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
FEWEST_SEEDS = 5
"""With fewer of them a comparison is a screen: figures, and no verdict."""


def estimate(values: Sequence[float]) -> str:
    """A mean with its 95 % t-interval, as 3.884 ± 0.016; without one for a single value."""
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else "-"
    freedom = len(values) - 1
    quantile = _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.4 / freedom
    half = quantile * stdev(values) / len(values) ** 0.5
    return f"{fmean(values):.3f} ± {half:.3f}"


def interval(found: Mapping[str, Any], digits: int = 2) -> str:
    """`mean` with `low` and `high`, as 3.10 [2.90, 3.40], or only its `bound`, as >3.10."""
    if found["mean"] is None:
        return "-"
    if found.get("bound"):
        return f"{found['bound']}{found['mean']:.{digits}f}"
    if found["low"] is None or found["high"] is None:
        return f"{found['mean']:.{digits}f}"
    return f"{found['mean']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def verdict(found: Mapping[str, Any]) -> str:
    """The word for a comparison: few seeds are a screen, whatever they say."""
    if found["is_screen"] or found["n"] < FEWEST_SEEDS:
        return "screen"
    return "no verdict" if found["verdict"] is None else str(found["verdict"])
