"""The benchmark's table: a row for each figure, with a column for the machine as it is and one for pinned processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.bench.machine import Machine

_HEAD = ("figure", "value", "ratio", "of", "pinned", "ratio, pinned", "target")


@dataclass
class _Row:
    of: str
    target: str
    cells: dict[bool, tuple[str, str]] = field(default_factory=dict)


class Table:
    """Printed as it grows on standard error; as text it is Markdown."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}

    def adder(self, machine: Machine) -> Callable[..., None]:
        """A function that adds a figure that was measured on this machine."""

        def add(figure: str, value: str, ratio: float | None = None, of: str = "", target: str = "") -> None:
            row = self._rows.setdefault(figure, _Row(of, target))
            row.cells[machine.pinned] = (value, "" if ratio is None else f"{ratio:.2f}")
            words = (figure, *row.cells[machine.pinned], of, target, "pinned" if machine.pinned else "")
            sys.stderr.write("  ".join(filter(None, words)) + "\n")

        return add

    def __str__(self) -> str:
        nothing = ("", "")
        rows = (
            (figure, *row.cells.get(False, nothing), row.of, *row.cells.get(True, nothing), row.target)
            for figure, row in self._rows.items()
        )
        lines = (_HEAD, ("---",) * len(_HEAD), *rows)
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
