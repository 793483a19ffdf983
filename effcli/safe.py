"""Third-party text must not control a terminal or a page."""

import re

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and newline, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # directions of writing
    "\ud800-\udfff]"  # halves of characters, which no stream can encode
)


def safe(text: str) -> str:
    """`text` with every control character but tab and newline made visible."""
    return _CONTROL.sub(lambda match: _visible(match[0]), text)


def _visible(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode has a picture for each: ␀ … ␛ … ␟
    return "\u2421" if code == 0x7F else f"<{code:02x}>"
