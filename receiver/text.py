"""Text from outside, made safe to show to people."""

from __future__ import annotations

import unicodedata

_LONGEST = 200  # characters


def printable(value: object) -> str:
    """The text of `value` with each character that could control a terminal, or turn the text round, as U+FFFD."""
    return "".join(character if _is_printable(character) else "\ufffd" for character in str(value))


def shortened(value: object, longest: int = _LONGEST) -> str:
    """`printable`, and no longer than so many characters."""
    text = str(value)
    return printable(text if len(text) <= longest else text[: longest - 1] + "…")


def _is_printable(character: str) -> bool:
    # Chinese titles have blanks of their own, which Python does not call printable.
    return character.isprintable() or unicodedata.category(character) == "Zs"
