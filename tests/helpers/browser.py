"""Debian's chromium without a window: how a page looks there, and what it does that it should not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]  # it has no types
from playwright.sync_api import Browser, Page, sync_playwright

_HEIGHT = 900
# WCAG 2.1, levels A and AA, and what the rules' authors hold to be good practice.
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
_TOO_WIDE = """() => {
  const room = document.documentElement.clientWidth
  const wide = [...document.querySelectorAll('body *')].filter(one => one.getBoundingClientRect().right > room + 0.5)
  const found = wide.map(one => one.outerHTML.slice(0, 80))
  return document.documentElement.scrollWidth > room ? ['the page', ...found] : []
}"""


class Look(NamedTuple):
    """How somebody looks at a page: the language asked for, the colour scheme, and the window's width in pixels."""

    language: str = "en"
    scheme: Literal["light", "dark"] = "light"
    width: int = 1024


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running browser, for many pages."""
    path = shutil.which("chromium")
    assert path is not None, "Debian's chromium is not installed"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, look: Look) -> Iterator[Page]:
    """The page at `url`, which until the end says nothing on the console and asks for nothing elsewhere."""
    own = urlsplit(url).netloc
    said: list[str] = []
    asked: list[str] = []
    with browser.new_context(
        locale=look.language, color_scheme=look.scheme, viewport={"width": look.width, "height": _HEIGHT}, base_url=url
    ) as context:
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(error.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        yield page
    assert said == []
    assert [one for one in asked if urlsplit(one).netloc != own] == []


def resize(page: Page, width: int) -> None:
    """Make the window so wide."""
    page.set_viewport_size({"width": width, "height": _HEIGHT})


def too_wide(page: Page) -> list[str]:
    """What makes a page wider than its window."""
    found: list[str] = page.evaluate(_TOO_WIDE)
    return found


def violations(page: Page) -> list[str]:
    """What breaks a rule of accessibility in a page as it is now; it must not be one that refreshes itself."""
    options = {"resultTypes": ["violations"], "runOnly": {"type": "tag", "values": _RULES}}
    found: list[dict[str, Any]] = Axe().run(page, options=options).response["violations"]
    return [f"{one['id']}: {node['html']} {node['failureSummary']}" for one in found for node in one["nodes"]]
