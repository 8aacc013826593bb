"""Each code block of the README and docs/ is taken by a test, or stands here with the reason why not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.pages import ROOT, Block, blocks, pages

NOT_RUN = {
    "README.md: MetaStudio ── HTTPS ──> verify ──> journal (local file, fsync) ──> 200": "a sketch",
}


def calls(file: Path) -> Iterator[ast.Call]:
    """The calls of `blocks` in a test file that say in plain strings which blocks they take; others count for none."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "blocks":
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            if all(isinstance(one, ast.Constant) for one in given):
                yield node


def taken() -> set[Block]:
    """The blocks that tests take: those that their calls of `blocks` return."""
    found = set[Block]()
    for file in (ROOT / "tests").rglob("test_*.py"):
        for call in calls(file):
            arguments = [ast.literal_eval(one) for one in call.args]
            found |= set(blocks(*arguments, **{str(one.arg): ast.literal_eval(one.value) for one in call.keywords}))
    return found


def test_each_block_is_taken_by_a_test() -> None:
    """No block is without a test that takes it, and none that a test takes is excused."""
    tested = taken()
    assert {block.name for page in pages() for block in blocks(page) if block not in tested} == NOT_RUN.keys()


def test_each_block_says_its_language() -> None:
    """Each block has a language, so that it is shown with colours, and is known for what it is."""
    languages = {block.language for page in pages() for block in blocks(page)}
    assert languages == {"bash", "sql", "toml", "mermaid", "text"}
