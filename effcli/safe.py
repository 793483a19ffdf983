"""Third-party text must not control a terminal or a page."""

import logging
import re
import warnings
from typing import Any

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and newline, DEL, C1
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # directions of writing, other line ends
    "\ud800-\udfff]"  # halves of characters, which no stream can encode
)


def safe(text: str) -> str:
    """`text` with every control character but tab and newline made visible."""
    return _CONTROL.sub(lambda match: _visible(match[0]), text)


def safe_json(text: str) -> str:
    """A JSON document that means the same, with control characters as JSON's own escapes."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _visible(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode has a picture for each: ␀ … ␛ … ␟
    return "\u2421" if code == 0x7F else f"<{code:02x}>"


def guard_libraries() -> None:
    """Make what libraries log and warn safe, too: some of it comes from the servers they ask."""
    logging.setLogRecordFactory(_SafeRecord)
    plain = warnings.formatwarning

    def formatted(*args: Any, **named: Any) -> str:
        return safe(plain(*args, **named))

    warnings.formatwarning = formatted


class _SafeRecord(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802  logging's name
        """The message, without anything that controls."""
        return safe(super().getMessage())
