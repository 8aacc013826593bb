"""The documentation's pages: their code blocks, tables and headings."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^(#+) (.+)$", flags=re.MULTILINE)


class Block(NamedTuple):
    """A fenced code block, and the page that it stands on."""

    page: str
    language: str
    text: str

    @property
    def name(self) -> str:
        """The page and the first line."""
        return f"{self.page}: {self.text.partition(chr(10))[0]}"


def pages() -> list[str]:
    """The README and every page of docs/, as paths in the project."""
    return ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


@cache
def read(page: str) -> str:
    """A page's text."""
    return (ROOT / page).read_text()


def prose(page: str) -> str:
    """A page's text with blanks in place of its code blocks."""
    return _FENCE.sub(lambda match: " " * len(match[0]), read(page))


def headings(page: str) -> list[str]:
    """A page's headings, of every level."""
    return [match[2] for match in _HEADING.finditer(prose(page))]


def section(page: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    found = list(_HEADING.finditer(prose(page)))
    (start,) = (match for match in found if match[2] == heading)
    ends = [match.start() for match in found if match.start() > start.start() and len(match[1]) <= len(start[1])]
    return read(page)[start.end() : min(ends, default=None)]


def blocks(page: str, heading: str = "", *, language: str = "") -> list[Block]:
    """The code blocks of a page, or of what stands under a heading, or those in one language.

    tests/docs/test_blocks.py reads the calls of this function to see which blocks are tested: give it plain strings.
    """
    text = section(page, heading) if heading else read(page)
    return [Block(page, *found) for found in _FENCE.findall(text) if language in ("", found[0])]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables in a text, without the lines that head them."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    tables = [[cell.strip() for cell in line] for line in lines]
    heads = {at - 1 for at, cells in enumerate(tables) if set("".join(cells)) <= set("-: ")}
    return [cells for at, cells in enumerate(tables) if at not in heads and at - 1 not in heads]


def code(text: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", text)
