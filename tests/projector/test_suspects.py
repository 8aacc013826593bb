"""A delivery in a damaged journal that ends each worker which stores it: found, put aside, and not met again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from receiver.database.schema import events, quarantine
from receiver.delivery import Delivery
from receiver.journal.recovery import Readable
from tests.helpers.line import Line, body, delivery, laid, migrate, rows, started
from tests.helpers.receiver import wait_until

PUT_ASIDE = "delivery that ends the projector put aside"


def numbered(*deadly: int) -> list[Delivery]:
    """Deliveries, the first of which will be damaged."""
    return [delivery(body(state="deadly" if at in deadly else "END", job_id=f"job-{at}"), at) for at in range(5)]


def damage(folder: Path, deliveries: list[Delivery]) -> str:
    """A journal whose first row is damaged, and a database; returns the URL."""
    url = f"sqlite:///{folder}/receiver.db"
    migrate(url)
    with laid(folder, url) as line:
        line.put_each(*deliveries)
    with closing(sqlite3.connect(folder / "journal.db")) as connection, connection:
        connection.execute("UPDATE records SET oldest = 0 WHERE id = 1")
    return url


def recover(line: Line, folder: Path) -> int:
    """Recover the journal while another callback comes; returns how many workers have ended."""
    line.put(delivery(body(state="END", job_id="job-5"), 5))
    wait_until(lambda: list(folder.glob("journal.db.recovered-*")), "a recovered journal", 120)
    line.settle()
    return int(line.metric("projector_restarts_total"))


def moved_to(caplog: pytest.LogCaptureFixture) -> list[object]:
    return [vars(one)["moved_to"] for one in caplog.records if one.message == PUT_ASIDE]


@pytest.mark.parametrize("deadly", ["rows.parse"], indirect=True)
@pytest.mark.usefixtures("deadly", "logs")
def test_deliveries_that_end_the_worker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They go to quarantine as they are, each once; all others are stored, and what comes meanwhile too."""
    sent = numbered(2, 4)
    url = damage(tmp_path, sent)
    with started(tmp_path, url) as line:
        # Three to find the batch, and three for each of the two. Not all that a worker reports before it ends is read.
        assert recover(line, tmp_path) >= 9
    assert moved_to(caplog) == ["quarantine", "quarantine"]
    assert [row["job_id"] for row in rows(url, events)] == ["job-1", "job-3", "job-5"]
    assert [(row["reason"], row["body"]) for row in rows(url, quarantine)] == [
        ("crash", sent[2].body),
        ("crash", sent[4].body),
    ]


@pytest.mark.parametrize("deadly", ["database.Database.store"], indirect=True)
@pytest.mark.usefixtures("deadly", "logs")
def test_delivery_that_cannot_be_quarantined(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where quarantining ends the worker too, it is kept in the journal's file for such deliveries."""
    sent = numbered(2)
    url = damage(tmp_path, sent)
    with started(tmp_path, url) as line:
        assert recover(line, tmp_path) >= 9
    assert moved_to(caplog) == [f"{tmp_path}/journal.db.aside"]
    monkeypatch.undo()
    assert list(Readable(tmp_path / "journal.db.aside")) == [sent[2]]
    assert [row["job_id"] for row in rows(url, events)] == ["job-1", "job-3", "job-4", "job-5"]
    assert rows(url, quarantine) == []
