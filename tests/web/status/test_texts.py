"""The texts of the status page, and how it says times."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import receiver.web.status
from receiver.metrics import REJECTIONS
from receiver.protocol.events import StreamState
from receiver.protocol.platform import Finding
from receiver.web.status.texts import CHINESE, ENGLISH, TEXTS
from receiver.web.status.view import ENDED_THERE, STALE
from receiver.web.status.words import clock, lasting

TEMPLATES = Path(receiver.web.status.__file__).parent / "templates"
BY_STATE = {"up", "down", "unknown", "not_found", "job_not_read"}  # which of these is shown depends on what is found
NOW = datetime(2026, 11, 30, 3, tzinfo=UTC)


def flat(texts: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Each text with its whole name."""
    for name, text in texts.items():
        if isinstance(text, dict):
            yield from flat(text, f"{before}{name}.")
        else:
            yield before + name, text


def test_languages_agree() -> None:
    """Each text is there in both languages, with as many values in it."""
    english, chinese = dict(flat(ENGLISH)), dict(flat(CHINESE))
    assert english.keys() == chinese.keys()
    assert {name for name, text in english.items() if str(text).count("%s") != str(chinese[name]).count("%s")} == set()


def test_chinese_is_chinese() -> None:
    """No text is left in English."""
    exceptions = {"lang", "space", "kinds.state"}
    assert {
        name for name, text in flat(CHINESE) if not re.search(r"[\u3000-\u9fff\uff00-\uffef]", str(text))
    } == exceptions


def test_templates_use_each_text() -> None:
    """The templates name each text and no other."""
    source = "".join(file.read_text() for file in TEMPLATES.glob("*.html"))
    used = {name for found in re.findall(r'\bt\.(\w+)|\bt\["(\w+)"\]', source) for name in found if name}
    assert used | BY_STATE == ENGLISH.keys()


@pytest.mark.parametrize("language", TEXTS)
def test_each_value_has_a_text(language: str) -> None:
    """Each state, finding and reason of a rejection is said in words."""
    texts = TEXTS[language]
    assert texts["states"].keys() == {*StreamState, STALE, ENDED_THERE, ""}
    assert texts["finding_names"].keys() == {*Finding}
    assert texts["reasons"].keys() == {*REJECTIONS, "unknown_path"}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (10_020, "2 h 47 min"), (200_000, "2 d")],
)
def test_lasting(seconds: float, said: str) -> None:
    """How long something lasts is said in the largest unit; hours with minutes."""
    assert lasting(seconds, ENGLISH["units"]) == said


def test_clock() -> None:
    """A time of today is the time alone; any other has its date."""
    assert clock(NOW, NOW) == "03:00:00"
    assert clock(NOW - timedelta(hours=4), NOW) == "2026-11-29 23:00:00"
