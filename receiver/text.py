"""Texts for people: what comes from outside, made safe to show, and how long something took."""

from __future__ import annotations

import json
import unicodedata

_LONGEST = 200  # characters
_LONG = 1000  # hours


def printable(value: object) -> str:
    """The text of `value` with each character that could control a terminal, or turn the text round, as U+FFFD."""
    return "".join(map(_shown, str(value)))


def escaped(text: str) -> str:
    """`text` with each character that could control a terminal, or end a line, written as JSON writes it."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in text)


def shortened(value: object, longest: int = _LONGEST) -> str:
    """`printable`, and no longer than so many characters."""
    text = str(value)
    return printable(text if len(text) <= longest else text[: longest - 1] + "…")


def duration(seconds: float) -> str:
    """Such as 1:02:03."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= _LONG:
        return "{}d {}h".format(*divmod(hours, 24))
    return f"{hours}:{minute:02}:{second:02}"


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    # Chinese titles have blanks of their own.
    return " " if unicodedata.category(character) == "Zs" else "\ufffd"
