"""The status page in Debian's chromium, on a receiver after a night of livestreams."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Page

from receiver.protocol.events import EventType, StreamState
from receiver.tools.sender import body_of
from tests.helpers.browser import Look, chromium, opened, resize, too_wide, violations
from tests.helpers.livestreams import Night, running_at_night
from tests.helpers.picture import picture
from tests.helpers.receiver import Process

WIDTHS = (360, 768, 1600)
MARKUP = "<script>document.title = 'owned'</script><img src=//example.com/a.png onerror=alert(1)>"
OVERRIDE = "\u202e\u2066back to front"
HOSTILE = f'{MARKUP}"/../?#&amp; {OVERRIDE} 春季新茶'


class Shown(NamedTuple):
    """A browser, the receiver whose page it shows, and what was sent to that."""

    browser: Browser
    receiver: Process
    night: Night

    def opened(self, path: str, look: Look | None = None) -> AbstractContextManager[Page]:
        """The page at a path."""
        url = f"http://127.0.0.1:{self.receiver.operations_port}/{path}"
        return opened(self.browser, url, look or Look())


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """A receiver with a night's livestreams, one of them with hostile texts."""
    folder = tmp_path_factory.mktemp("receiver")
    with running_at_night(folder) as (receiver, night), chromium() as browser:
        send_hostile(receiver)
        yield Shown(browser, receiver, night)


def send_hostile(receiver: Process) -> None:
    ids = {"room_id": HOSTILE, "job_id": HOSTILE}
    bodies = [
        body_of(EventType.RTMP_STREAM_STATE_CHANGE, ids | {"state": state, "output_url": f"rtmp://a/{MARKUP}"})
        for state in (StreamState.CONNECTED, MARKUP)
    ]
    for title in (HOSTILE, 10_000 * "长", 10_000 * "W"):
        fields = {"scene_script_name": title, "shoot_script_sequence_no": "1", "shoot_script_title": title}
        bodies.append(body_of(EventType.SHOOT_SCRIPT_SWITCH, ids | fields | {"product_title": title}))
    for number, body in enumerate(bodies):
        assert receiver.post(body, at=time.time() - 60 + number).status == 200
    receiver.rows("SELECT 1")  # all is stored


@pytest.mark.parametrize(
    ("path", "look"),
    [
        ("", Look("en", "light", 360)),
        ("", Look("en", "dark", 1600)),
        ("", Look("zh-CN", "light", 1600)),
        ("", Look("zh-CN", "dark", 768)),
        ("jobs/", Look("en", "dark", 1600)),
        ("jobs/", Look("zh-CN", "light", 360)),
    ],
    ids=lambda one: "-".join(map(str, one)) if isinstance(one, Look) else one.strip("/") or "page",
)
def test_looks(shown: Shown, path: str, look: Look, tmp_path: Path) -> None:
    """No width needs a horizontal scroll bar, no rule of accessibility is broken, and nothing is asked elsewhere."""
    with shown.opened(f"{path}{shown.night.on_air if path else ''}?paused", look) as page:
        assert page.locator("html").get_attribute("lang") == {"en": "en", "zh-CN": "zh-Hans"}[look.language]
        assert violations(page) == []
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        for width in WIDTHS:
            resize(page, width)
            assert too_wide(page) == []


def focused(page: Page) -> str:
    """The target of the link that has the keyboard's focus, which is seen by its outline."""
    link = page.locator(":focus")
    assert link.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
    return link.get_attribute("href") or ""


def test_keyboard(shown: Shown) -> None:
    """The first key leads past the header; further ones to a job's link, each seen where it is; Enter opens the job."""
    with shown.opened("?paused") as page:
        page.keyboard.press("Tab")
        assert focused(page) == "#content"
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        while (target := focused(page)) != f"/jobs/{shown.night.on_air}":
            assert target.startswith("/jobs/")
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/jobs/{shown.night.on_air}")
        assert page.get_by_role("heading", level=1).inner_text() == f"Job {shown.night.on_air}"


@pytest.mark.parametrize(
    ("language", "on_air", "down", "stale"),
    [("en", "Connected", "Reconnecting", "Stale"), ("zh-CN", "已连接", "重连中", "失联")],
    ids=["English", "Chinese"],
)
def test_what_is_seen(shown: Shown, language: str, on_air: str, down: str, stale: str) -> None:
    """In words: the jobs' states, what is on now, how long it was connected in the last hour, and what to do."""
    with shown.opened("?paused", Look(language)) as page:
        rows = {job: page.get_by_role("row").filter(has=page.get_by_title(job)) for job in shown.night}
        live = rows[shown.night.on_air].first
        assert on_air in live.inner_text()
        assert "手工紫砂壶 · 3 限时优惠" in live.inner_text()
        assert "53" in (live.get_by_role("img").get_attribute("aria-label") or "")
        assert down in rows[shown.night.down].first.inner_text()
        assert stale in rows[shown.night.stale].last.inner_text()
        assert "receiver config --registration" in page.get_by_role("listitem").last.inner_text()


def test_hostile_texts(shown: Shown) -> None:
    """Markup is shown as it was sent, nothing turns the text round, and a link with all of it leads to its job."""
    with shown.opened("?paused", Look(width=360)) as page:
        link = page.get_by_role("link").filter(has_text="<script>").first
        assert OVERRIDE[0] not in page.content()
        assert page.locator("img, script").count() == 0
        page.goto(f"{link.get_attribute('href')}?paused")
        assert page.get_by_role("heading", level=1).inner_text().startswith(f"Job {MARKUP}")
        assert page.locator("img, script").count() == 0
        assert too_wide(page) == []


def test_refresh(shown: Shown) -> None:
    """Untouched, the page comes to show what is new, at the place that was being read; paused it asks for nothing."""
    with shown.opened("", Look(width=360)) as page:
        page.evaluate("window.scrollTo(0, 1000)")
        reply = body_of(EventType.REPLY_COMMAND_FINISH, {"job_id": "new", "reply_id": "1"})
        assert shown.receiver.post(reply, at=time.time()).status == 200
        page.get_by_title("new").first.wait_for(timeout=60_000)
        page.wait_for_function("window.scrollY === 1000")
        page.get_by_role("link", name="Pause").click()
        page.get_by_role("link", name="Resume").wait_for()
        assert page.locator("meta[http-equiv=refresh]").count() == 0


def test_picture(shown: Shown) -> None:
    """What `make picture` writes is a PNG small enough for the README."""
    taken = picture(shown.browser, shown.receiver)
    assert taken.startswith(b"\x89PNG")
    assert len(taken) < 150_000
