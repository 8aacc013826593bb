"""Text from outside, made safe to print on a terminal."""

from __future__ import annotations


def printable(value: object) -> str:
    """The text of `value` with each character that could control a terminal replaced by U+FFFD."""
    return "".join(character if character.isprintable() else "�" for character in str(value))
