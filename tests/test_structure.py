"""The tests' own structure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent


def imported(path: Path) -> Iterator[str]:
    """The full names of all that a file imports."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{one.name}" for one in node.names)


def test_no_test_file_is_imported() -> None:
    """Each test file stands alone: what two of them need is in tests/helpers, or is a fixture in a conftest.py."""
    files = [*FOLDER.rglob("*.py")]
    names = {
        f"{path.relative_to(FOLDER)}: {name}"
        for path in files
        for name in imported(path)
        if any(part == "conftest" or part.startswith("test_") for part in name.split("."))
    }
    assert names == set()
