"""The pages lead to each other, and to nothing that is not there."""

from __future__ import annotations

import posixpath
import re

import pytest

from tests.helpers.pages import ROOT, blocks, headings, pages, prose

PAGES = [*pages(), "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


def links(page: str) -> list[tuple[str, str]]:
    """The relative links of a page: each as a path in the project, and an anchor or nothing."""
    found = (link.partition("#") for link in _LINK.findall(prose(page)) if "://" not in link)
    return [
        (posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page, anchor)
        for path, _, anchor in found
    ]


def anchors(page: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(page)}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Each relative link leads to a file of the project, and each anchor to a heading of it."""
    for path, anchor in links(page):
        assert (ROOT / path).is_file(), path
        assert not anchor or anchor in anchors(path), f"{path}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_headings_are_unambiguous(page: str) -> None:
    """No page has two headings with one anchor, but for the changelog, whose versions have the same parts."""
    assert len(anchors(page)) == len(headings(page)) or page == "CHANGELOG.md"


def test_each_page_is_listed() -> None:
    """The page docs/README.md lists every other one, and the README leads to it."""
    listed = {path for path, _ in links("docs/README.md")}
    assert listed == {page for page in PAGES if page.startswith("docs/")} - {"docs/README.md"}
    assert ("docs/README.md", "") in links("README.md")


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    """Each path of the project that stands in backticks is there."""
    top = {path.name for path in ROOT.iterdir()} - {"var"}
    named = {path for path in re.findall(r"`([\w.-]+(?:/[\w.-]+)*/?)`", prose(page)) if path.split("/")[0] in top}
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_the_layout_is_as_described() -> None:
    """Each folder and file of the layout in CONTRIBUTING.md is there."""
    (block,) = blocks("CONTRIBUTING.md", "Layout")
    named = re.findall(r"(?:^|  )((?:receiver|migrations|tests|deploy|docs)/[\w./]*)", block.text, flags=re.MULTILINE)
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_readme_is_short() -> None:
    """The README has at most 150 lines."""
    assert (ROOT / "README.md").read_text().count("\n") <= 150
