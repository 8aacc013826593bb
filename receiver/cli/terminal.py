"""The terminal that tables and texts are printed on."""

from __future__ import annotations

from rich.console import Console

_NO_TERMINAL = 10_000  # columns
_LEAST = 80  # columns, in which each table has room for its numbers


def terminal() -> Console:
    """The terminal; where it is none, one so wide that nothing is cut off.

    A narrow terminal breaks lines itself, so that no number is cut off.
    """
    console = Console(highlight=False)
    return Console(highlight=False, width=max(console.width, _LEAST) if console.is_terminal else _NO_TERMINAL)
