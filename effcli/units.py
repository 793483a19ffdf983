"""Numbers for people."""


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
