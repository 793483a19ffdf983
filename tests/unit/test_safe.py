"""No foreign control character reaches a terminal or a page."""

import json
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from effcli.safe import safe, safe_json


@given(st.text())
def test_nothing_that_controls_passes(text: str) -> None:
    cleaned = safe(text)
    for character in cleaned:
        assert character in "\t\n" or unicodedata.category(character) not in ("Cc", "Cs")
        assert character not in "\u202e\u2066\u2069\u200f\u061c"
    assert safe(cleaned) == cleaned
    cleaned.encode("utf8")


@given(st.text(st.characters()))
def test_json_means_the_same_and_controls_nothing(text: str) -> None:
    document = safe_json(json.dumps({text: text}, ensure_ascii=False, indent=1))
    assert json.loads(document) == {text: text}
    assert safe(document) == document
    document.encode("utf8")


def test_ordinary_text_is_untouched() -> None:
    text = "Ünïcode, tabs\tand\nlines, 日本語 🙂"
    assert safe(text) == text


def test_escapes_are_made_visible() -> None:
    assert safe("\x1b]52;c;AAAA\x07") == "␛]52;c;AAAA␇"
    assert safe("\x9b31m") == "<9b>31m"
