from __future__ import annotations

import sys
import unicodedata

import pytest

from receiver.text import printable, shortened


def test_every_character() -> None:
    """Whatever comes from outside, what is shown is printable and can be encoded, and letters and symbols stay."""
    text = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()
    replaced = {one for one, other in zip(text, shown, strict=True) if one != other}
    assert {unicodedata.category(one)[0] for one in replaced} == {"C", "Z"}


def test_blanks_of_other_scripts() -> None:
    """A blank of another width is a blank, and not what cannot be shown."""
    assert printable("手工\u3000紫砂壶\u00a0") == "手工 紫砂壶 "


@pytest.mark.parametrize(("given", "shown"), [("12345", "12345"), ("123456", "1234…"), ("", ""), (123, "123")])
def test_shortened(given: object, shown: str) -> None:
    """What is longer ends in an ellipsis, and has the length that was asked for."""
    assert shortened(given, 5) == shown
